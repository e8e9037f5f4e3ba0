//! Runs the simulations of the dispatcher and prints their figures; `cargo xtask simulate` keeps them in `docs/`.

use std::process::ExitCode;

use calotype_engine::simulation::{Extent, run};

fn main() -> ExitCode {
    let (mut extent, mut plot, mut only) = (Extent::Full, None, String::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.len()) {
            ("--quick", _) => extent = Extent::Quick,
            ("--plot", 1..) => plot = arguments.next(),
            ("--only", 1..) => only = arguments.next().unwrap_or_default(),
            _ => {
                eprintln!("usage: simulate [--quick] [--only WORD] [--plot FILE.svg]");
                return ExitCode::from(2);
            }
        }
    }
    let report = run(extent, &only);
    println!("{}", report.markdown());
    if let Some(file) = plot
        && let Err(error) = std::fs::write(&file, report.svg())
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
