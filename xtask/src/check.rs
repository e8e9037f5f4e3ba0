//! Everything that can be said without running the product.

use crate::{Done, schema, sh, sh_in, tidy, tools};

/// Folders with Python code; each has its own settings.
const PYTHON: &[&str] = &["training", "python"];

pub(crate) fn run(_: &[String]) -> Done {
    sh("cargo", &["fmt", "--all", "--check"], &[])?;
    tidy::run(&[])?;
    schema::run(&["--check".to_owned()])?;
    sh(
        "cargo",
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ],
        &[],
    )?;
    sh(
        "cargo",
        &[
            "doc",
            "--workspace",
            "--no-deps",
            "--document-private-items",
            "--quiet",
        ],
        &[("RUSTDOCFLAGS", "-D warnings")],
    )?;
    match tools::ruff()? {
        Some(ruff) => {
            let ruff = ruff.display().to_string();
            for folder in PYTHON {
                sh(&ruff, &["check", "--quiet", folder], &[])?;
                sh(&ruff, &["format", "--quiet", "--check", folder], &[])?;
            }
        }
        None => eprintln!(
            "skipped: there is no python3 to install ruff with; {} not linted",
            PYTHON.join(", ")
        ),
    }
    match tools::python_worker()? {
        Some(python) => sh_in("python", &python.display().to_string(), &["-m", "mypy"], &[]),
        None => {
            eprintln!("skipped: there is no python3, the Python worker is not type-checked");
            Ok(())
        }
    }
}
