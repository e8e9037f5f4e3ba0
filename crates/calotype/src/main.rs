//! Calotype: an image-generation server, its workers and its command line in one binary.

mod client;
mod commands;
mod console;
mod exit_code;
mod keep;
mod local;
mod places;
mod python;
mod runtimes;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use commands::control::{self, Deed};

#[derive(Debug, Parser)]
#[command(
    name = "calotype",
    version,
    about = "Serves pictures from text: a server, its workers and a client in one program.",
    after_help = "Examples:\n  \
        calotype generate \"a red apple on the beach, 3d\"\n  \
        calotype generate \"a castle at night\" --lora pixel:0.8 --preset quality --seed 7 --output castle.png\n  \
        calotype serve --listen 127.0.0.1:7801\n  \
        calotype generate \"a dog\" --server http://127.0.0.1:7801\n  \
        calotype doctor"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve pictures over HTTP.
    Serve(commands::serve::Args),
    /// Make pictures from a prompt, here or on a running server.
    Generate(Box<commands::generate::Args>),
    /// List the jobs of a server.
    Jobs(commands::jobs::Args),
    /// Cancel a job.
    Cancel(control::Args),
    /// Hold a job at its next step.
    Pause(control::Args),
    /// Let a paused job go on.
    Resume(control::Args),
    /// Follow a job until it ends.
    Watch(commands::watch::Args),
    /// Show the devices of a server and their workers.
    Devices(commands::devices::Args),
    /// List models and LoRAs, of a server or of the folders here.
    Models(commands::models::Args),
    /// Install what the program cannot bring along: `calotype setup python`.
    Setup(commands::setup::Args),
    /// Check, recover or back up the journal of a data directory.
    Journal(commands::journal::Args),
    /// Say what was found here and what is missing.
    Doctor(commands::doctor::Args),
    /// Be a worker: speak the protocol on stdin and stdout. The server starts these itself.
    Worker(commands::worker::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (json, ended) = match cli.command {
        // No runtime, no logging, nothing before it: its stdout is the protocol's.
        Command::Worker(args) => return commands::worker::run(&args),
        Command::Serve(args) => (false, commands::serve::run(args)),
        Command::Generate(args) => (args.json, commands::generate::run(&args)),
        Command::Jobs(args) => (args.remote.json, commands::jobs::run(&args)),
        Command::Cancel(args) => (args.remote.json, control::run(&args, Deed::Cancel)),
        Command::Pause(args) => (args.remote.json, control::run(&args, Deed::Pause)),
        Command::Resume(args) => (args.remote.json, control::run(&args, Deed::Resume)),
        Command::Watch(args) => (args.remote.json, commands::watch::run(&args)),
        Command::Devices(args) => (args.remote.json, commands::devices::run(&args)),
        Command::Models(args) => (args.json, commands::models::run(&args)),
        Command::Setup(args) => (false, commands::setup::run(&args)),
        Command::Journal(args) => (args.json, commands::journal::run(&args)),
        Command::Doctor(args) => (args.json, commands::doctor::run(&args)),
    };
    match ended {
        Ok(code) => code.into(),
        Err(failure) => {
            console::failure(&failure, json);
            failure.exit_code().into()
        }
    }
}
