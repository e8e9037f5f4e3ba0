//! What the chores take from PyPI, at versions of ours, installed into `target/` where it is missing: so that a machine
//! with Rust and Python alone runs every check and every test. Without Python the caller says what it skips.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{root, sh};

const RUFF: &str = "ruff==0.17.6";
const ONNXRUNTIME: &str = "onnxruntime==1.32.0";

/// The linter of Python code.
pub(crate) fn ruff() -> Result<Option<PathBuf>, String> {
    Ok(installed(RUFF)?.map(|environment| environment.join("bin/ruff")))
}

/// The library of ONNX Runtime.
pub(crate) fn onnxruntime() -> Result<Option<PathBuf>, String> {
    let Some(environment) = installed(ONNXRUNTIME)? else {
        return Ok(None);
    };
    let lib = environment.join("lib");
    let pythons = fs::read_dir(&lib).map_err(|error| format!("{}: {error}", lib.display()))?;
    let libraries = pythons
        .flatten()
        .filter_map(|python| fs::read_dir(python.path().join("site-packages/onnxruntime/capi")).ok())
        .flat_map(|files| files.flatten());
    let found = libraries.map(|file| file.path()).find(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("libonnxruntime.so"))
    });
    found
        .map(Some)
        .ok_or_else(|| format!("{ONNXRUNTIME} has no library in {}", lib.display()))
}

/// The Python of the worker, made by our own `calotype setup python`, with the tools of its tests.
pub(crate) fn python_worker() -> Result<Option<PathBuf>, String> {
    let data = root().join("target/python-worker");
    let python = data.join("python/bin/python");
    let project =
        fs::read_to_string(root().join("python/pyproject.toml")).map_err(|error| error.to_string())?;
    let lock = fs::read_to_string(root().join("python/uv.lock")).map_err(|error| error.to_string())?;
    // Made anew in part when what it is made from has changed.
    let mark = data.join("made-from");
    let made_from = format!("{project}{lock}");
    if fs::read_to_string(&mark).is_ok_and(|before| before == made_from) {
        return Ok(Some(python));
    }
    if !has_python() {
        return Ok(None);
    }
    sh("cargo", &["build", "--package", "calotype", "--quiet"], &[])?;
    let (program, shown) = (root().join("target/debug/calotype"), data.display().to_string());
    sh(
        &program.display().to_string(),
        &["setup", "python", "--data-dir", &shown],
        &[],
    )?;
    let mut arguments = vec!["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    let constraints = data.join("python/constraints.txt");
    let constraints = constraints.display().to_string();
    if Path::new(&constraints).is_file() {
        arguments.extend(["--constraint", &constraints]);
    }
    let tools = project.split("\ndev = [").nth(1).unwrap_or_default();
    let tools = tools.lines().take_while(|line| !line.starts_with(']'));
    arguments.extend(tools.filter_map(|line| line.split('"').nth(1)));
    sh(&python.display().to_string(), &arguments, &[])?;
    fs::write(&mark, made_from).map_err(|error| format!("failed to write {}: {error}", mark.display()))?;
    Ok(Some(python))
}

fn has_python() -> bool {
    Command::new("python3")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The environment with `package` in it. A file beside it tells what was installed before, by version.
fn installed(package: &str) -> Result<Option<PathBuf>, String> {
    let environment = root().join("target/python-tools");
    let mark = environment.join(package);
    if mark.is_file() {
        return Ok(Some(environment));
    }
    if !has_python() {
        return Ok(None);
    }
    let shown = environment.display().to_string();
    if !environment.join("bin/pip").is_file() {
        sh("python3", &["-m", "venv", &shown], &[])?;
    }
    let pip = format!("{shown}/bin/pip");
    sh(
        &pip,
        &["install", "--quiet", "--disable-pip-version-check", package],
        &[],
    )?;
    fs::write(&mark, "").map_err(|error| format!("failed to write {}: {error}", mark.display()))?;
    Ok(Some(environment))
}
