//! The figures of `docs/benchmarks.md`, measured with real processes and a real journal. `cargo xtask bench` runs this
//! and keeps what it prints: a JSON line for each row of the table.
#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on has nothing to say"
)]

mod control;
mod pictures;
mod pipe;
mod row;
#[path = "../../tests/support/mod.rs"]
#[expect(dead_code, reason = "the tests use all of it, the benchmark a part")]
mod support;

use std::path::PathBuf;

fn main() {
    // Built beside us by `cargo xtask bench`.
    let fake_worker = PathBuf::from(env!("CARGO_BIN_EXE_calotype")).with_file_name("fake_worker");
    if !fake_worker.is_file() {
        eprintln!("{} is missing: run `cargo xtask bench`", fake_worker.display());
        std::process::exit(2);
    }
    pipe::measure(&fake_worker);
    control::measure(&fake_worker);
    pictures::measure();
}
