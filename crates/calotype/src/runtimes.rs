//! Which worker programs there are, and which of them the engine gets.

use std::path::{Path, PathBuf};

use calotype_engine::{Runtime, StartOnCpu};
use clap::ValueEnum;

use crate::exit_code::Failure;
use crate::local::EngineArgs;
use crate::places;

/// Kinds of devices that the Python worker computes on.
const PYTHON_DEVICES: &[&str] = &["cuda", "rocm", "xpu", "mps", "directml", "cpu"];

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RuntimeChoice {
    /// Whatever suits.
    Auto,
    /// The native worker alone, in pure Rust.
    Rten,
    /// The native worker alone, with ONNX Runtime.
    Onnxruntime,
    /// The Python worker alone: PyTorch and diffusers.
    Python,
}

/// The runtimes, the preferred one first.
pub fn chosen(args: &EngineArgs, data_dir: &Path) -> Result<Vec<Runtime>, Failure> {
    if let Some(program) = &args.worker_program {
        return Ok(vec![Runtime {
            name: "test".into(),
            program: program.clone(),
            args: args.worker_arg.clone(),
            env: Vec::new(),
            device_kinds: vec!["cpu".into()],
            on_cpu: StartOnCpu::AtOnce,
        }]);
    }
    let python = args.python.clone().or_else(|| places::python(data_dir));
    match args.runtime {
        RuntimeChoice::Rten => Ok(vec![native(args, "rten")?]),
        RuntimeChoice::Onnxruntime => Ok(vec![native(args, "onnxruntime")?]),
        RuntimeChoice::Python => {
            let missing = "there is no Python with the worker's packages; `calotype setup python` makes one";
            let python = python.ok_or_else(|| Failure::Other(missing.into()))?;
            Ok(vec![self::python(python, StartOnCpu::AtOnce)])
        }
        RuntimeChoice::Auto => {
            let python = python.map(|python| self::python(python, StartOnCpu::WhenNeeded));
            Ok([native(args, "auto")?].into_iter().chain(python).collect())
        }
    }
}

fn native(args: &EngineArgs, engine: &str) -> Result<Runtime, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::Other(format!("failed to find this program: {error}")))?;
    let mut own = vec!["worker".to_owned(), "--runtime".into(), engine.into()];
    if let Some(library) = &args.onnxruntime {
        own.extend(["--onnxruntime".into(), library.display().to_string()]);
    }
    Ok(Runtime {
        name: "native".into(),
        program,
        args: own,
        env: Vec::new(),
        device_kinds: vec!["cpu".into()],
        on_cpu: StartOnCpu::AtOnce,
    })
}

/// `python -m calotype_worker`, with the package of this repository or installation where there is one.
fn python(program: PathBuf, on_cpu: StartOnCpu) -> Runtime {
    let mut env = vec![
        // No model is looked up anywhere but where we say.
        ("HF_HUB_OFFLINE".to_owned(), "1".to_owned()),
        ("TRANSFORMERS_OFFLINE".to_owned(), "1".to_owned()),
        // OpenMP's threads sleep between two pieces of work: spinning, they take the cores from everybody else.
        ("OMP_WAIT_POLICY".to_owned(), "PASSIVE".to_owned()),
    ];
    if let Some(package) = places::python_package() {
        // Before what the caller has there, and not in its place.
        let own = std::env::var_os("PYTHONPATH").filter(|own| !own.is_empty());
        let paths = [package]
            .into_iter()
            .chain(own.iter().flat_map(std::env::split_paths));
        if let Ok(joined) = std::env::join_paths(paths) {
            env.push(("PYTHONPATH".to_owned(), joined.to_string_lossy().into_owned()));
        }
    }
    Runtime {
        name: "python".into(),
        program,
        args: vec!["-m".into(), "calotype_worker".into()],
        env,
        device_kinds: PYTHON_DEVICES.iter().map(|kind| (*kind).to_owned()).collect(),
        on_cpu,
    }
}
