//! What the engine is told once, at its start.

use std::path::PathBuf;

use crate::worker::Timing;

/// Settings of one engine.
#[derive(Debug, Clone)]
pub struct Config {
    /// Journal, artifacts and scratch files. One engine at a time.
    pub data_dir: PathBuf,
    /// Folders with models, in order; the first that has a name wins.
    pub model_dirs: Vec<PathBuf>,
    /// The worker program and its arguments, usually this binary and `worker`.
    pub worker_program: PathBuf,
    /// Arguments of the worker program.
    pub worker_args: Vec<String>,
    /// Environment of the worker program on top of our own.
    pub worker_env: Vec<(String, String)>,
    /// Most jobs that wait; more are refused.
    pub queue_max_jobs: usize,
    /// Most bytes that the waiting requests hold.
    pub queue_max_bytes: u64,
    /// Most jobs that share one worker; 0 for the worker's own figure.
    pub max_concurrency: u32,
    /// Share of the host's memory that models and jobs may take, 0 to 1.
    pub memory_share: f64,
    /// CPU threads of a worker; 0 for its choice.
    pub threads: u32,
    /// Every patience with a worker.
    pub timing: Timing,
}

impl Config {
    /// The defaults for a data directory.
    pub fn new(data_dir: PathBuf, worker_program: PathBuf) -> Self {
        Self {
            data_dir,
            model_dirs: Vec::new(),
            worker_program,
            worker_args: vec!["worker".into()],
            worker_env: Vec::new(),
            queue_max_jobs: 10_000,
            queue_max_bytes: 1 << 30,
            max_concurrency: 0,
            memory_share: 0.8,
            threads: 0,
            timing: Timing::default(),
        }
    }
}
