//! The Python worker, for tests of the engine with it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use calotype_engine::{Runtime, StartOnCpu};

/// Far more than anything here takes: several starts of PyTorch on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// The root of this repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The Python that `CALOTYPE_PYTHON` names, with these arguments; says aloud where there is none.
pub fn python(args: Vec<String>, env: Vec<(String, String)>) -> Option<Runtime> {
    let Some(program) = std::env::var_os("CALOTYPE_PYTHON").map(PathBuf::from) else {
        eprintln!("skipped: CALOTYPE_PYTHON names no Python with the worker's packages");
        return None;
    };
    Some(Runtime {
        name: "python".into(),
        program,
        args,
        env,
        device_kinds: vec!["cpu".into()],
        on_cpu: StartOnCpu::AtOnce,
    })
}
