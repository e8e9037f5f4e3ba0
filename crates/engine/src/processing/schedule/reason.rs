//! Why a step waits, and why it is refused: one type for the dispatcher, the queue's view and the logs.

use std::fmt;

use calotype_protocol::ModelId;

use crate::inference::MissingFeature;

/// Why the steps of a lane do not start now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WaitReason {
    /// No worker is configured.
    NoWorker,
    /// The best worker for it is not ready.
    WorkerNotReady {
        /// The name of the worker.
        worker: String,
        /// Why not.
        why: String,
    },
    /// It has not reported its capabilities yet.
    CapabilitiesUnknown {
        /// The name of the worker.
        worker: String,
    },
    /// As many runs as the worker takes are in it.
    PlacesTaken {
        /// The name of the worker.
        worker: String,
        /// How many it takes.
        places: usize,
    },
    /// Its model is being loaded.
    ModelLoads {
        /// Where.
        worker: String,
        /// The id of the model.
        model: ModelId,
    },
    /// Another model is being loaded or dropped there.
    WorkerMovesModels {
        /// The name of the worker.
        worker: String,
    },
    /// The load of its model waits until the runs in the worker have ended: this worker cannot do both.
    LoadWaitsForRuns {
        /// The name of the worker.
        worker: String,
        /// The model.
        model: ModelId,
    },
    /// Others hold the memory that it needs.
    MemoryInUse {
        /// The device.
        device: String,
        /// What it needs.
        need_bytes: u64,
        /// What is free.
        free_bytes: u64,
    },
    /// A run that must be alone is in the worker.
    WorkerRunsAlone {
        /// The name of the worker.
        worker: String,
    },
    /// It must be alone in its worker, and others are there.
    NeedsWorkerAlone {
        /// The name of the worker.
        worker: String,
    },
    /// The worker is kept free for steps that have waited longer.
    Reserved {
        /// The name of the worker.
        worker: String,
    },
    /// A run of lower class is being paused for it.
    Preempts {
        /// Where.
        worker: String,
    },
    /// Outputs that wait to be encoded and stored hold as much memory as they may.
    OutputsPending {
        /// What they hold.
        held_bytes: u64,
        /// What they may hold.
        limit_bytes: u64,
    },
    /// The journal cannot be written.
    StoreOutage {
        /// What it says.
        message: String,
    },
    /// The server is going down.
    Draining,
}

impl WaitReason {
    /// The stable word for programs.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::NoWorker => "no_worker",
            Self::WorkerNotReady { .. } | Self::CapabilitiesUnknown { .. } => "worker_not_ready",
            Self::PlacesTaken { .. } => "places_taken",
            Self::ModelLoads { .. } => "model_loads",
            Self::WorkerMovesModels { .. } => "worker_moves_models",
            Self::LoadWaitsForRuns { .. } => "load_waits_for_runs",
            Self::MemoryInUse { .. } => "memory_in_use",
            Self::WorkerRunsAlone { .. } => "worker_runs_alone",
            Self::NeedsWorkerAlone { .. } => "needs_worker_alone",
            Self::Reserved { .. } => "reserved",
            Self::Preempts { .. } => "preempts",
            Self::OutputsPending { .. } => "outputs_pending",
            Self::StoreOutage { .. } => "store_outage",
            Self::Draining => "draining",
        }
    }

    /// Whether it passes only when others give something up, so that a long wait earns a reservation.
    pub(super) fn can_starve(&self) -> bool {
        match self {
            Self::LoadWaitsForRuns { .. } | Self::MemoryInUse { .. } | Self::NeedsWorkerAlone { .. } => true,
            Self::NoWorker
            | Self::WorkerNotReady { .. }
            | Self::CapabilitiesUnknown { .. }
            | Self::PlacesTaken { .. }
            | Self::ModelLoads { .. }
            | Self::WorkerMovesModels { .. }
            | Self::WorkerRunsAlone { .. }
            | Self::Reserved { .. }
            | Self::Preempts { .. }
            | Self::OutputsPending { .. }
            | Self::StoreOutage { .. }
            | Self::Draining => false,
        }
    }
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoWorker => f.write_str("there is no worker"),
            Self::WorkerNotReady { worker, why } => write!(f, "no worker is ready: {worker}: {why}"),
            Self::CapabilitiesUnknown { worker } => {
                write!(f, "{worker} has not reported what it can do yet")
            }
            Self::PlacesTaken { worker, places } => write!(f, "all {places} places of {worker} are taken"),
            Self::ModelLoads { worker, model } => write!(f, "{worker} loads {model}"),
            Self::WorkerMovesModels { worker } => write!(f, "{worker} is loading or dropping a model"),
            Self::LoadWaitsForRuns { worker, model } => {
                write!(f, "{worker} loads {model} when the jobs in it have ended")
            }
            Self::MemoryInUse {
                device,
                need_bytes,
                free_bytes,
            } => write!(f, "needs {need_bytes} bytes on {device}, {free_bytes} are free"),
            Self::WorkerRunsAlone { worker } => write!(f, "{worker} runs a job that must be alone"),
            Self::NeedsWorkerAlone { worker } => {
                write!(f, "must be the only job in its worker, and {worker} has others")
            }
            Self::Reserved { worker } => write!(f, "{worker} is kept free for jobs that have waited longer"),
            Self::Preempts { worker } => write!(f, "a job of lower class in {worker} is being paused for it"),
            Self::OutputsPending {
                held_bytes,
                limit_bytes,
            } => write!(
                f,
                "pictures that wait to be encoded hold {held_bytes} bytes, {limit_bytes} are allowed"
            ),
            Self::StoreOutage { message } => write!(f, "the journal cannot be written: {message}"),
            Self::Draining => f.write_str("the server is going down; the job is kept for the next start"),
        }
    }
}

/// Why a step can never run here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It does not fit the largest device.
    TooLarge {
        /// What it would take.
        need_bytes: u64,
        /// The most there is.
        budget_bytes: u64,
    },
    /// A worker that could do it could not load its model.
    Unusable {
        /// Which worker.
        worker: String,
        /// Which model.
        model: ModelId,
    },
    /// No worker can do it: each with what it lacks.
    NotServed {
        /// By the worker's name.
        missing: Vec<(String, MissingFeature)>,
    },
}
