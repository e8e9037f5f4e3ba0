//! `calotype setup`: installs what the program cannot bring along.

use std::path::PathBuf;

use clap::Subcommand;

use crate::console::{PackageBar, say};
use crate::exit_code::{Exit, Failure};
use crate::{places, python};

/// What to install.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The environment of the Python worker: PyTorch and diffusers, some gigabytes.
    Python(PythonArgs),
}

#[derive(Debug, clap::Args)]
struct PythonArgs {
    /// The data directory that gets it, in its folder `python`; by default the user's.
    #[arg(long, value_name = "DIR", env = "CALOTYPE_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// The Python to make it with, 3.10 or later; by default the first that is found.
    #[arg(long = "with", value_name = "FILE")]
    with: Option<PathBuf>,
}

/// Installs it, and says what it can compute with.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let What::Python(args) = &args.what;
    let data_dir = args.data_dir.clone().unwrap_or_else(places::data_dir);
    let bar = PackageBar::new();
    let installed = python::install(&data_dir, args.with.as_deref(), &mut |name, done, most| {
        bar.show(name, done, most);
    });
    bar.finish();
    let python = installed.map_err(|error| Failure::Other(error.to_string()))?;
    let probe = python::probe(&python)
        .map_err(|reason| Failure::Other(format!("it is installed and does not work: {reason}")))?;
    let packages: Vec<String> = probe
        .packages
        .iter()
        .map(|(name, version)| format!("{name} {version}"))
        .collect();
    say!(
        "{} (Python {}): {}",
        python.display(),
        probe.python,
        packages.join(", ")
    );
    match probe.accelerators.as_slice() {
        [] => say!("it sees no accelerator: it computes on the processor, for what only it can do"),
        seen => say!("it computes on {}", seen.join(", ")),
    }
    Ok(Exit::Ok)
}
