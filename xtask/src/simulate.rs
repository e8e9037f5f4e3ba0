//! The dispatcher in its virtual world: builds for release, runs every scenario, prints the table, and keeps it with the
//! plot in `docs/`.

use std::fs;
use std::process::{Command, Stdio};

use crate::{Done, root};

/// What is between these lines is ours to replace.
const BEGIN: &str = "<!-- cargo xtask simulate: begin -->";
const END: &str = "<!-- cargo xtask simulate: end -->";
const FILE: &str = "docs/simulation.md";
const PLOT: &str = "docs/simulation.svg";
const PICTURE: &str = "![Makespans beside their bounds, and the shares of the classes](simulation.svg)";

pub(crate) fn run(arguments: &[String]) -> Done {
    let is_quick = match arguments {
        [] => false,
        [one] if one == "--quick" => true,
        _ => {
            return Err("usage: cargo xtask simulate [--quick]; --quick leaves docs/ as it is".into());
        }
    };
    let mut command = Command::new("cargo");
    command.args(["run", "--release", "--quiet", "--package", "calotype-engine"]);
    command.args(["--features", "simulation", "--bin", "simulate", "--"]);
    if is_quick {
        command.arg("--quick");
    } else {
        command.args(["--plot", PLOT]);
    }
    let output = command
        .current_dir(root())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("failed to start cargo: {error}"))?;
    let table = String::from_utf8_lossy(&output.stdout);
    println!("{table}");
    if !is_quick && !table.trim().is_empty() {
        keep(&table)?;
    }
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("the simulation ended with {}", output.status))
    }
}

fn keep(table: &str) -> Done {
    let path = root().join(FILE);
    let text = fs::read_to_string(&path).map_err(|error| format!("{FILE}: {error}"))?;
    let parts = text.split_once(BEGIN).zip(text.split_once(END));
    let ((head, _), (_, tail)) = parts.ok_or_else(|| format!("{FILE} lacks the lines {BEGIN} and {END}"))?;
    let machine = crate::bench::machine()?;
    let text = format!(
        "{head}{BEGIN}\n{machine}\n{}\n\n{PICTURE}\n{END}{tail}",
        table.trim_end()
    );
    fs::write(&path, text).map_err(|error| format!("failed to write {FILE}: {error}"))
}
