//! What the engine is told once, at its start.

use std::path::PathBuf;

use crate::device::Declared;
use crate::store::Retention;
use crate::worker::Timing;

/// Settings of one engine.
#[derive(Debug, Clone)]
pub struct Config {
    /// Journal, artifacts and scratch files. One engine at a time.
    pub data_dir: PathBuf,
    /// Folders with models, in order; the first that has a name wins.
    pub model_dirs: Vec<PathBuf>,
    /// Worker programs, the preferred one first.
    pub runtimes: Vec<Runtime>,
    /// Devices beside those that are found.
    pub declared: Vec<Declared>,
    /// Most jobs that wait; more are refused.
    pub queue_max_jobs: usize,
    /// Most bytes that the waiting requests hold.
    pub queue_max_bytes: u64,
    /// Most jobs that share one worker; 0 for the worker's own figure.
    pub max_concurrency: u32,
    /// Whether accelerators compile what they run, in the background.
    pub compile: bool,
    /// Share of the host's memory that models and jobs may take, 0 to 1.
    pub memory_share: f64,
    /// Share of the host's memory that keeps weights ready for accelerators, 0 to 1; 0 for none. Without an accelerator
    /// nothing is kept: processors compute from the mapped files.
    pub weight_cache_share: f64,
    /// Whether workers on a processor get weights from there too, for tests without an accelerator.
    pub weight_cache_on_cpu: bool,
    /// CPU threads of a worker; 0 for its choice.
    pub threads: u32,
    /// How many finished jobs are kept, with their artifacts.
    pub retention: Retention,
    /// Every patience with a worker.
    pub timing: Timing,
}

/// A worker program, and the devices that it is for.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// `native` or `python`; a part of its workers' names.
    pub name: String,
    /// What to start.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Environment on top of our own.
    pub env: Vec<(String, String)>,
    /// Kinds of devices that it computes on, for instance `cpu` and `cuda`.
    pub device_kinds: Vec<String>,
    /// When its processes are started on a processor. On an accelerator they are always started at once.
    pub on_cpu: StartOnCpu,
}

/// When a worker on a processor is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartOnCpu {
    /// With the engine.
    AtOnce,
    /// For the first job that no worker that runs can do: it costs memory and seconds that most may never need.
    WhenNeeded,
}

impl Config {
    /// The defaults for a data directory.
    pub fn new(data_dir: PathBuf, runtimes: Vec<Runtime>) -> Self {
        Self {
            data_dir,
            model_dirs: Vec::new(),
            runtimes,
            declared: Vec::new(),
            queue_max_jobs: 10_000,
            queue_max_bytes: 1 << 30,
            max_concurrency: 0,
            compile: false,
            memory_share: 0.8,
            weight_cache_share: 0.25,
            weight_cache_on_cpu: false,
            threads: 0,
            retention: Retention::default(),
            timing: Timing::default(),
        }
    }
}
