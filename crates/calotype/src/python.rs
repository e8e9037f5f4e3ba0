//! The Python of the worker: looked at, and installed. The only place of the command line that starts programs.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::places;

/// What a Python can compute with, in its own words.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Probe {
    /// Version of Python.
    pub python: String,
    /// Package to version.
    pub packages: BTreeMap<String, String>,
    /// Devices that torch sees beside the processor.
    pub accelerators: Vec<String>,
}

/// Asked of a Python: one line of JSON, or an exception that names what is missing.
const QUESTION: &str = r#"
import json, platform
import torch, diffusers, transformers, safetensors, msgspec, numpy, psutil
names = dict(torch=torch, diffusers=diffusers, transformers=transformers, safetensors=safetensors, numpy=numpy)
seen = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
if getattr(torch.backends, "mps", None) and torch.backends.mps.is_available():
    seen.append("Apple GPU")
print(json.dumps(dict(python=platform.python_version(), accelerators=seen,
                      packages={name: module.__version__ for name, module in names.items()})))
"#;

/// Why the Python of the worker could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// None is there.
    #[error("no Python of version 3.10 or later was found; install one, or give it with --with FILE")]
    NoPython,
    /// The package of the worker is not where it should be.
    #[error(
        "the folder `python` with the package calotype_worker is neither beside the program nor in its repository"
    )]
    NoPackage,
    /// A program did not do its part.
    #[error("`{program}` failed: {reason}")]
    Failed {
        /// Which, with its first arguments.
        program: String,
        /// Its last words.
        reason: String,
    },
}

/// Asks a Python what it has.
pub fn probe(python: &Path) -> Result<Probe, String> {
    let output = Command::new(python)
        .args(["-c", QUESTION])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{}: {error}", python.display()))?;
    let last = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        text.lines().last().unwrap_or_default().to_owned()
    };
    if !output.status.success() {
        return Err(last(&output.stderr));
    }
    serde_json::from_str(&last(&output.stdout)).map_err(|error| error.to_string())
}

/// Makes the environment in a data directory, and installs what the worker needs at the versions of its lock. `tell`
/// hears of each package, with how many there will be at the most.
pub fn install(
    data_dir: &Path,
    with: Option<&Path>,
    tell: &mut dyn FnMut(&str, usize, usize),
) -> Result<PathBuf, SetupError> {
    let package = places::python_package().ok_or(SetupError::NoPackage)?;
    let base = interpreter(with).ok_or(SetupError::NoPython)?;
    let environment = places::python_environment(data_dir);
    let shown = environment.display().to_string();
    let locked = locked(&std::fs::read_to_string(package.join("uv.lock")).unwrap_or_default());
    let mut seen = 0;
    let mut line = |line: &str| {
        let word = line
            .trim_start()
            .split([' ', '=', '>', '<', '['])
            .nth(1)
            .unwrap_or_default();
        if line.starts_with("Collecting ") || line.trim_start().starts_with("+ ") {
            seen += 1;
            tell(word, seen, locked.len().max(seen));
        }
    };
    if works("uv") {
        let base = base.display().to_string();
        run(
            "uv",
            &["venv", "--quiet", "--allow-existing", "--python", &base, &shown],
            &[],
            &mut line,
        )?;
        // By the lock, without the tools of the tests and without the package: it is run from where it is.
        let project = package.display().to_string();
        let arguments = [
            "sync",
            "--frozen",
            "--no-dev",
            "--no-install-project",
            "--project",
            &project,
        ];
        run("uv", &arguments, &[("UV_PROJECT_ENVIRONMENT", &shown)], &mut line)?;
    } else {
        run(
            &base.display().to_string(),
            &["-m", "venv", &shown],
            &[],
            &mut line,
        )?;
        let project = std::fs::read_to_string(package.join("pyproject.toml")).unwrap_or_default();
        let constraints = written(&environment.join("constraints.txt"), &locked.join("\n"))?;
        let requirements = written(
            &environment.join("requirements.txt"),
            &needed(&project).join("\n"),
        )?;
        let python = environment.join("bin/python").display().to_string();
        let arguments = [
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--progress-bar",
            "off",
            "--constraint",
            &constraints,
            "--requirement",
            &requirements,
        ];
        run(&python, &arguments, &[], &mut line)?;
    }
    Ok(places::python_of(data_dir))
}

fn written(path: &Path, text: &str) -> Result<String, SetupError> {
    std::fs::write(path, text).map_err(|error| SetupError::Failed {
        program: format!("writing {}", path.display()),
        reason: error.to_string(),
    })?;
    Ok(path.display().to_string())
}

/// What a `pyproject.toml` says that the package depends on. The package itself is not installed: it is run from where
/// it is, and building it would write beside it.
fn needed(project: &str) -> Vec<String> {
    let list = project.split("\ndependencies = [").nth(1).unwrap_or_default();
    list.lines()
        .take_while(|line| !line.starts_with(']'))
        .filter_map(|line| line.split('"').nth(1).map(str::to_owned))
        .collect()
}

/// The first Python that is new enough.
fn interpreter(with: Option<&Path>) -> Option<PathBuf> {
    let names = [
        "python3",
        "python3.13",
        "python3.12",
        "python3.11",
        "python3.10",
        "python",
    ]
    .map(PathBuf::from);
    let new_enough = |python: &PathBuf| {
        Command::new(python)
            .args(["-c", "import sys, venv; sys.exit(sys.version_info < (3, 10))"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    match with {
        Some(python) => Some(python.to_owned()).filter(new_enough),
        None => names.into_iter().find(new_enough),
    }
}

/// What a `uv.lock` says of each package, as pip takes it for a constraint: a package that stands there in several
/// versions has each for some versions of Python.
fn locked(lock: &str) -> Vec<String> {
    let field = |package: &str, name: &str| {
        let line = package
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \""))?;
        Some(line.trim_end_matches('"').to_owned())
    };
    let pinned = |package: &str| {
        let (name, version) = (field(package, "name")?, field(package, "version")?);
        let markers: Vec<String> = package
            .lines()
            .skip_while(|line| *line != "resolution-markers = [")
            .skip(1)
            .map_while(|line| Some(line.trim().strip_suffix(',')?.trim_matches('"').to_owned()))
            .map(|marker| format!("({marker})"))
            .collect();
        let only = if markers.is_empty() {
            String::new()
        } else {
            format!(" ; {}", markers.join(" or "))
        };
        (name != "calotype-worker").then(|| format!("{name}=={version}{only}"))
    };
    lock.split("[[package]]").skip(1).filter_map(pinned).collect()
}

fn works(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs a program to its end; `line` hears what it says, and its last words are kept for the error.
fn run(
    program: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
    line: &mut dyn FnMut(&str),
) -> Result<(), SetupError> {
    let failed = |reason: String| SetupError::Failed {
        program: [program]
            .into_iter()
            .chain(arguments.iter().copied().take(3))
            .collect::<Vec<_>>()
            .join(" "),
        reason,
    };
    // Both streams as one: uv tells its progress on the second, pip on the first.
    let (said, mouth) = std::io::pipe().map_err(|error| failed(error.to_string()))?;
    let second = mouth.try_clone().map_err(|error| failed(error.to_string()))?;
    let mut child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(mouth)
        .stderr(second)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let mut last = String::new();
    for said in BufReader::new(said).lines().map_while(Result::ok) {
        line(&said);
        if !said.trim().is_empty() {
            last = said;
        }
    }
    let status = child.wait().map_err(|error| failed(error.to_string()))?;
    if status.success() {
        Ok(())
    } else {
        Err(failed(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_gives_the_versions_for_each_python() {
        let lock = r#"version = 1
resolution-markers = [
    "python_full_version >= '3.11'",
]
[[package]]
name = "numpy"
version = "2.2.6"
resolution-markers = [
    "python_full_version < '3.11'",
]
dependencies = [
    { name = "torch" },
]
[[package]]
name = "numpy"
version = "2.4.0"
resolution-markers = [
    "python_full_version >= '3.12'",
    "python_full_version == '3.11.*'",
]
[[package]]
name = "calotype-worker"
version = "0.1.0"
[[package]]
name = "torch"
version = "2.15.0"
source = { registry = "x" }
"#;
        assert_eq!(
            locked(lock),
            [
                "numpy==2.2.6 ; (python_full_version < '3.11')",
                "numpy==2.4.0 ; (python_full_version >= '3.12') or (python_full_version == '3.11.*')",
                "torch==2.15.0",
            ]
        );
        assert!(locked("").is_empty());
        let own = locked(include_str!("../../../python/uv.lock"));
        let torch = own.iter().filter(|line| line.starts_with("torch=="));
        assert!(torch.count() > 0);
    }

    #[test]
    fn what_the_package_needs_is_what_its_project_says() {
        let project =
            "[project]\nname = \"x\"\ndependencies = [\n  \"torch>=2.4\",  # why\n  \"numpy\",\n]\n[y]\n";
        assert_eq!(needed(project), ["torch>=2.4", "numpy"]);
        let own = include_str!("../../../python/pyproject.toml");
        assert!(needed(own).iter().any(|need| need.starts_with("diffusers")));
    }

    #[test]
    fn a_python_without_the_packages_names_the_one_that_is_missing() {
        // `-S` is no option of ours: a program that is no Python says what it says.
        let refused = probe(Path::new("/nowhere/python"));
        assert!(refused.unwrap_err().contains("/nowhere/python"));
    }
}
