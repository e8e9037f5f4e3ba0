//! The figures of `docs/benchmarks.md`, measured with real processes and a real journal. `cargo xtask bench` runs this
//! and keeps what it prints: a JSON line for each row of the table.
//!
//! `figures [--calotype FILE --fake-worker FILE] [GROUP...]`. The groups `control`, `queue` and `watch` speak HTTP with
//! the program and nothing else, so they measure the binaries of any commit; `pipe` and `pictures` measure this tree.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a benchmark that cannot go on has nothing to say"
)]

mod control;
mod fleet;
mod http;
mod pictures;
mod pipe;
mod queue;
mod row;
mod server;
#[path = "../../tests/support/mod.rs"]
#[expect(dead_code, reason = "the tests use all of it, the benchmark a part")]
mod support;
mod watch;

use std::path::PathBuf;
use std::process::exit;

/// What is measured.
pub struct Programs {
    /// The server.
    pub calotype: PathBuf,
    /// The worker without a model, of the same commit.
    pub fake_worker: PathBuf,
}

/// A group's name and its measurement.
type Group = (&'static str, fn(&Programs));

const GROUPS: &[Group] = &[
    ("pipe", |programs| pipe::measure(&programs.fake_worker)),
    ("control", control::measure),
    ("queue", queue::measure),
    ("watch", watch::measure),
    ("pictures", |_| pictures::measure()),
];

fn main() {
    let built = PathBuf::from(env!("CARGO_BIN_EXE_calotype"));
    let mut programs = Programs {
        // Built beside us by `cargo xtask bench`.
        fake_worker: built.with_file_name("fake_worker"),
        calotype: built,
    };
    let mut chosen = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // Cargo says this to every benchmark.
            "--bench" => {}
            "--calotype" => programs.calotype = file(arguments.next()),
            "--fake-worker" => programs.fake_worker = file(arguments.next()),
            name => match GROUPS.iter().find(|(group, _)| *group == name) {
                Some((_, measure)) => chosen.push(*measure),
                None => usage(&format!("there is no group `{name}`")),
            },
        }
    }
    for program in [&programs.calotype, &programs.fake_worker] {
        if !program.is_file() {
            usage(&format!(
                "{} is missing: run `cargo xtask bench`",
                program.display()
            ));
        }
    }
    if chosen.is_empty() {
        chosen.extend(GROUPS.iter().map(|(_, measure)| *measure));
    }
    for measure in chosen {
        measure(&programs);
    }
}

fn file(value: Option<String>) -> PathBuf {
    let Some(value) = value else {
        usage("a file name is missing");
    };
    PathBuf::from(value)
}

fn usage(why: &str) -> ! {
    let names: Vec<&str> = GROUPS.iter().map(|(group, _)| *group).collect();
    eprintln!(
        "{why}\nusage: figures [--calotype FILE --fake-worker FILE] [GROUP...]; groups: {}",
        names.join(", ")
    );
    exit(2);
}
