//! What the verdicts are made from. Whoever owns a fact fills it in: the dispatcher the workers, ledgers and runs, the probes
//! what they tried, the catalogue its counts.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Code, Error};
use crate::model::ModelRecord;

/// Everything that the health of the server is judged by, at one moment.
#[derive(Debug, Clone)]
pub struct HealthFacts {
    /// The moment, in milliseconds since 1970.
    pub now_ms: u64,
    /// Whether the dispatcher answers.
    pub dispatching: bool,
    /// Whether the server takes nothing new and finishes what runs.
    pub draining: bool,
    /// Whether any worker has been ready since the start.
    pub was_ready: bool,
    /// Every worker that there can be.
    pub workers: Vec<WorkerFacts>,
    /// Every device's ledger beside what its driver says.
    pub memory: Vec<MemoryFacts>,
    /// The catalogue's scan.
    pub models: ModelCounts,
    /// Pairs of worker and model that failed to load, and have not been tried with success since.
    pub load_failures: usize,
    /// Jobs that have not ended.
    pub jobs_live: usize,
    /// A write to the journal.
    pub journal: Tried,
    /// A picture encoded and decoded again.
    pub encoding: Tried,
    /// Ends of runs.
    pub runs: RunFacts,
}

impl HealthFacts {
    /// Devices that have workers of which none is ready, starting or asleep.
    pub(super) fn offline_devices(&self) -> BTreeSet<&str> {
        let mut offline: BTreeSet<&str> = self.workers.iter().map(|worker| worker.device.as_str()).collect();
        for worker in &self.workers {
            if worker.health != WorkerHealth::Gone {
                offline.remove(worker.device.as_str());
            }
        }
        offline
    }
}

/// How a worker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerHealth {
    /// Not started before something needs it.
    Asleep,
    /// Its process has not reported ready yet.
    Starting,
    /// Its process takes work.
    Ready,
    /// It has no process.
    Gone,
}

/// A worker.
#[derive(Debug, Clone)]
pub struct WorkerFacts {
    /// As `/api/devices` calls it.
    pub name: String,
    /// Its device.
    pub device: String,
    /// How it stands.
    pub health: WorkerHealth,
    /// Since its last heartbeat, where that is known.
    pub beat_age_ms: Option<u64>,
    /// Name and version of its runtime, once it was ready.
    pub engine: Option<String>,
    /// Why its last process ended, if one did.
    pub last_exit: Option<String>,
}

impl WorkerFacts {
    /// Whether a process of it ended that had not been asked to.
    pub(super) fn has_failed(&self) -> bool {
        self.health == WorkerHealth::Gone || self.last_exit.is_some()
    }
}

/// A device's ledger beside what its driver says.
#[derive(Debug, Clone)]
pub struct MemoryFacts {
    /// The device.
    pub device: String,
    /// What models and jobs may take.
    pub budget_bytes: u64,
    /// What is leased of it.
    pub leased_bytes: u64,
    /// What the worker processes hold, from their last beats.
    pub worker_used_bytes: u64,
    /// What the driver calls free; `None` where none is asked.
    pub free_bytes: Option<u64>,
    /// Since that was read.
    pub read_age_ms: Option<u64>,
}

/// How many records of the catalogue can be used, by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelCounts {
    /// Those without a problem. `model` is what makes pictures by itself.
    pub usable: BTreeMap<&'static str, usize>,
    /// Those with a problem.
    pub unusable: BTreeMap<&'static str, usize>,
}

impl ModelCounts {
    /// Counts records.
    pub fn of<'a>(records: impl IntoIterator<Item = &'a ModelRecord>) -> Self {
        let mut counts = Self::default();
        for record in records {
            let of_its_kind = match &record.problem {
                None => &mut counts.usable,
                Some(_) => &mut counts.unusable,
            };
            *of_its_kind.entry(record.kind.word()).or_default() += 1;
        }
        counts
    }

    /// Usable models that make pictures by themselves.
    pub fn usable_makers(&self) -> usize {
        self.usable.get("model").copied().unwrap_or(0)
    }
}

/// What came of something that was tried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Tried {
    /// Not yet.
    #[default]
    Never,
    /// It worked.
    Passed {
        /// When, in milliseconds since 1970.
        at_ms: u64,
    },
    /// It did not work.
    Failed {
        /// When, in milliseconds since 1970.
        at_ms: u64,
        /// What was said.
        why: String,
    },
}

impl Tried {
    /// How long ago.
    pub fn age_ms(&self, now_ms: u64) -> Option<u64> {
        match self {
            Self::Never => None,
            Self::Passed { at_ms } | Self::Failed { at_ms, .. } => Some(now_ms.saturating_sub(*at_ms)),
        }
    }
}

/// The last ends of runs. Its owner tells it each end of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunFacts {
    /// When the last run succeeded.
    pub succeeded_at_ms: Option<u64>,
    /// The last failure of a run.
    pub failure: Option<RunFailure>,
    /// Runs that failed since one succeeded.
    pub failures_in_a_row: u32,
}

/// A run that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFailure {
    /// When.
    pub at_ms: u64,
    /// Its error.
    pub why: String,
}

impl RunFacts {
    /// A run has succeeded.
    pub fn succeeded(&mut self, at_ms: u64) {
        self.succeeded_at_ms = Some(at_ms);
        self.failures_in_a_row = 0;
    }

    /// A job has failed. Only what a worker did wrong counts: a job that never fitted says nothing of inference.
    pub fn failed(&mut self, at_ms: u64, error: &Error) {
        let of_a_run = match error.code {
            Code::WorkerFailed | Code::Quarantined | Code::OutOfMemory | Code::NoWorker => true,
            Code::InvalidInput
            | Code::MalformedBody
            | Code::TooLarge
            | Code::ImageRefused
            | Code::UnknownModel
            | Code::ModelUnusable
            | Code::NotSupported
            | Code::NotFound
            | Code::MethodNotAllowed
            | Code::Conflict
            | Code::KeyReused
            | Code::QueueFull
            | Code::DoesNotFit
            | Code::Cancelled
            | Code::DeadlineMissed
            | Code::Unauthorized
            | Code::ShuttingDown
            | Code::StoreFull
            | Code::StoreFailed
            | Code::Internal => false,
        };
        if of_a_run {
            let why = error.message.clone();
            self.failure = Some(RunFailure { at_ms, why });
            self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        }
    }
}
