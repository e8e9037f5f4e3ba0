//! `calotype worker`: the native worker, started by the server.

use std::path::PathBuf;
use std::process::ExitCode;

use calotype_worker::{Runtime, WorkerOptions};

/// Options of the native worker.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What computes: `auto` takes ONNX Runtime when its library is found, else rten.
    #[arg(long, value_enum, default_value_t = RuntimeArg::Auto)]
    runtime: RuntimeArg,
    /// The ONNX Runtime library.
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
}

/// A runtime by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum RuntimeArg {
    /// ONNX Runtime when found, else rten.
    Auto,
    /// Pure Rust; needs nothing installed.
    Rten,
    /// ONNX Runtime; an error when its library is not found.
    Onnxruntime,
}

/// Runs until the server leaves.
pub fn run(args: &Args) -> ExitCode {
    let runtime = match args.runtime {
        RuntimeArg::Auto => Runtime::Auto,
        RuntimeArg::Rten => Runtime::Rten,
        RuntimeArg::Onnxruntime => Runtime::Onnxruntime,
    };
    calotype_worker::run(WorkerOptions {
        runtime,
        onnxruntime_library: args.onnxruntime.clone(),
    })
}
