//! The Python tools that `check` needs, at versions of ours: found where they were installed before, else installed into
//! `target/`, so that a machine with Rust and Python alone can run every check.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::{Done, root, sh};

/// As pip wants it.
const RUFF: &str = "ruff==0.17.6";

/// Where `ruff` is. `None` where there is no Python to install it with: the caller says that it was skipped.
pub(crate) fn ruff() -> Result<Option<PathBuf>, String> {
    let environment = root().join("target/python-tools");
    let ruff = environment.join("bin/ruff");
    if !works(&ruff.display().to_string()) {
        if !works("python3") {
            return Ok(None);
        }
        install(&environment.display().to_string())?;
    }
    Ok(Some(ruff))
}

fn install(environment: &str) -> Done {
    sh("python3", &["-m", "venv", environment], &[])?;
    let pip = format!("{environment}/bin/pip");
    sh(
        &pip,
        &["install", "--quiet", "--disable-pip-version-check", RUFF],
        &[],
    )
}

fn works(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
