//! The chores of this repository: `cargo xtask` lists them.

mod bench;
mod check;
mod fuzz;
mod schema;
mod simulate;
mod test;
mod tidy;
mod tools;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// A chore fails with a text for a person.
type Done = Result<(), String>;

/// Name, what it does, and the chore itself.
type Chore = (&'static str, &'static str, fn(&[String]) -> Done);

const CHORES: &[Chore] = &[
    (
        "check",
        "format, lints, docs, invariants, generated files",
        check::run,
    ),
    ("test", "build what the tests need, and run them all", test::run),
    (
        "bench",
        "measure, print the table and keep it in docs/benchmarks.md (--print: only print)",
        bench::run,
    ),
    (
        "simulate",
        "the dispatcher in a virtual world: print the table and keep it in docs/simulation.md (--quick: less, only print)",
        simulate::run,
    ),
    (
        "fuzz",
        "the framing against arbitrary bytes: [SECONDS], 60 by default",
        fuzz::run,
    ),
    ("tidy", "the invariants of the architecture", tidy::run),
    (
        "schema",
        "write schema/ from the types of the wire (--check: only compare)",
        schema::run,
    ),
];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(name) = arguments.next() else {
        list();
        return ExitCode::SUCCESS;
    };
    let rest: Vec<String> = arguments.collect();
    let Some((_, _, chore)) = CHORES.iter().find(|(chore, _, _)| *chore == name) else {
        eprintln!("xtask: there is no chore `{name}`");
        list();
        return ExitCode::from(2);
    };
    match chore(&rest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("xtask {name}: {why}");
            ExitCode::FAILURE
        }
    }
}

fn list() {
    eprintln!("cargo xtask CHORE");
    for (name, what, _) in CHORES {
        eprintln!("  {name:<8} {what}");
    }
}

/// The repository's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// Runs a program in the root, its output passed through.
fn sh(program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Done {
    sh_in("", program, arguments, environment)
}

/// The same in a folder below the root.
fn sh_in(folder: &str, program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Done {
    eprintln!("$ {program} {}", arguments.join(" "));
    let status = Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(root().join(folder))
        .status()
        .map_err(|error| format!("failed to start {program}: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("`{program} {}` ended with {status}", arguments.join(" ")))
    }
}
