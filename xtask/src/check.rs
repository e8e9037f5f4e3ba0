//! Everything that can be said without running the product.

use std::process::{Command, Stdio};

use crate::{Done, schema, sh, tidy};

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
    let ruff = Command::new("ruff")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if ruff.is_ok_and(|status| status.success()) {
        sh("ruff", &["check", "training"], &[])?;
        sh("ruff", &["format", "--check", "training"], &[])?;
    } else {
        eprintln!("skipped: ruff is not installed, training/ is not linted (pip install ruff)");
    }
    Ok(())
}
