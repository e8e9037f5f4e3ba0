//! The configuration of a worker.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use calotype_protocol::WorkerDevice;

use super::memory_kills::MemoryKillCounters;

/// Names a worker; its processes come and go under it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerName(pub String);

impl fmt::Display for WorkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The program of a worker's processes and the device that it owns.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// The worker.
    pub name: WorkerName,
    /// What to start.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Environment on top of our own.
    pub env: Vec<(String, String)>,
    /// The device that it owns.
    pub device: WorkerDevice,
    /// Each process gets a folder of its own in here, removed after it.
    pub scratch: PathBuf,
    /// Most CPU threads to compute with; 0 for the worker's choice.
    pub threads: u32,
    /// Every patience that we have with it.
    pub timing: Timing,
    /// By which a kill of the kernel's for memory is known.
    pub memory_kills: MemoryKillCounters,
}

/// Every patience that the supervisor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// From the start to `hello`.
    pub hello: Duration,
    /// From `welcome` to `ready`.
    pub ready: Duration,
    /// How often the worker is asked to beat.
    pub heartbeat_every: Duration,
    /// Longest time without any line from a ready worker.
    pub silence: Duration,
    /// Least time given to the first step of a phase, which nothing before it tells the length of.
    pub step_first: Duration,
    /// Least time given to a further step.
    pub step_least: Duration,
    /// A step may take this many times the recent one.
    pub step_factor: u32,
    /// Least time given to a load, and to each further piece of it.
    pub load_least: Duration,
    /// On top of it, one second for each so many bytes that remain.
    pub load_bytes_per_s: u64,
    /// From asking to insisting: cancel to SIGTERM, SIGTERM to SIGKILL.
    pub term_grace: Duration,
    /// Wait before the restart after a first failure; doubles with each further one.
    pub backoff_first: Duration,
    /// Longest wait before a restart.
    pub backoff_most: Duration,
    /// Failures older than this are forgotten.
    pub backoff_window: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            hello: Duration::from_secs(30),
            ready: Duration::from_secs(120),
            heartbeat_every: Duration::from_secs(1),
            silence: Duration::from_secs(5),
            step_first: Duration::from_secs(120),
            step_least: Duration::from_secs(10),
            step_factor: 5,
            load_least: Duration::from_secs(30),
            load_bytes_per_s: 20_000_000,
            term_grace: Duration::from_secs(2),
            backoff_first: Duration::from_millis(500),
            backoff_most: Duration::from_secs(30),
            backoff_window: Duration::from_secs(300),
        }
    }
}
