//! Runs the simulations of the dispatcher and prints their figures; `cargo xtask simulate` keeps them in `docs/`.

use std::process::ExitCode;

use calotype_engine::simulation::{Extent, run};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (extent, plot) = match words[..] {
        [] => (Extent::Full, None),
        ["--quick"] => (Extent::Quick, None),
        ["--plot", file] => (Extent::Full, Some(file)),
        ["--quick", "--plot", file] => (Extent::Quick, Some(file)),
        _ => {
            eprintln!("usage: simulate [--quick] [--plot FILE.svg]");
            return ExitCode::from(2);
        }
    };
    let report = run(extent);
    println!("{}", report.markdown());
    if let Some(file) = plot
        && let Err(error) = std::fs::write(file, report.svg())
    {
        eprintln!("simulate: failed to write {file}: {error}");
        return ExitCode::FAILURE;
    }
    let missed = report.missed();
    for missed in &missed {
        eprintln!("simulate: missed: {missed}");
    }
    if missed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
