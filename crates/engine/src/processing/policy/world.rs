//! What the policy is shown, and what it answers.

use std::sync::Arc;

use calotype_protocol::{Capabilities, JobId, ModelId};

use crate::inference::{AdapterNeed, MissingFeature, ModelNeed, Needs};
use crate::memory::WorkingSets;
use crate::memory::memory_plan::{MemoryFeatures, Precision, Residency, Slicing};
use crate::processing::Class;

/// A job that could run.
#[derive(Debug, Clone, PartialEq)]
pub struct Waiting {
    /// Which.
    pub job: JobId,
    /// Its class.
    pub class: Class,
    /// Its priority.
    pub priority: i32,
    /// Its place in the order of arrival.
    pub sequence: u64,
    /// The models that must be resident together.
    pub models: Arc<[ModelNeed]>,
    /// The LoRAs that are laid on the first of them.
    pub adapters: Option<Arc<AdapterNeed>>,
    /// What its worker must be able to do.
    pub needs: Arc<Needs>,
    /// What the job takes beside the weights.
    pub working_sets: Arc<WorkingSets>,
    /// Whether it must be the only job in its worker.
    pub alone: bool,
    /// Workers that had it and said that they cannot do it, and why.
    pub refused_by: Vec<(String, MissingFeature)>,
}

/// A model in a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resident {
    /// Which.
    pub model: ModelId,
    /// What it takes.
    pub bytes: u64,
    /// How it is held.
    pub residency: Residency,
    /// Whether a job uses it.
    pub in_use: bool,
    /// Grows with each use; the smallest is evicted first.
    pub last_use: u64,
}

/// Whether a worker takes work, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Now.
    Ready,
    /// Soon: its first process starts, or the one after a death that was the first since it was ready.
    Starting,
    /// Once it is started.
    Asleep,
    /// Perhaps: its processes die without having been ready.
    Broken,
}

/// A worker as the policy sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    /// Its name.
    pub worker: String,
    /// The device whose room it shares.
    pub device: String,
    /// What is of one kind takes the same memory for the same work.
    pub kind: Arc<str>,
    /// What it computes in.
    pub precision: Precision,
    /// What it can do to hold more than fits.
    pub ways: MemoryFeatures,
    /// Smaller is better where several can do a job.
    pub rank: usize,
    /// Whether it takes work.
    pub standing: Standing,
    /// Why not, for people.
    pub not_ready: String,
    /// What it said that it can do; unknown before its first process was ready.
    pub capabilities: Option<Arc<Capabilities>>,
    /// Jobs inside.
    pub busy: usize,
    /// Most jobs inside.
    pub most: usize,
    /// Whether a job inside must stay alone.
    pub taken_alone: bool,
    /// Whether a load or unload is under way.
    pub moving: bool,
    /// Models inside.
    pub resident: Vec<Resident>,
    /// Sets of LoRAs that jobs inside use.
    pub adapter_sets: Vec<Arc<str>>,
    /// Models that it could not load.
    pub unusable: Vec<ModelId>,
}

/// The memory of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Not leased.
    pub free_bytes: u64,
    /// The most that can be leased.
    pub budget_bytes: u64,
}

/// What the driver shall do, each with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Start the job.
    Run {
        /// Which.
        job: JobId,
        /// Where.
        worker: String,
        /// What of it is done in pieces.
        slicing: Slicing,
        /// What its LoRAs will take, where no other job uses the same set.
        lora_bytes: u64,
    },
    /// Make a model resident for the job.
    Load {
        /// For which job.
        job: JobId,
        /// Which model.
        model: ModelId,
        /// Where.
        worker: String,
        /// How it is to be held.
        residency: Residency,
        /// What it will take of the device.
        weights_bytes: u64,
    },
    /// Drop an idle model to make room.
    Evict {
        /// Which.
        model: ModelId,
        /// Where.
        worker: String,
    },
    /// Start a worker that only this job needs so far.
    Wake {
        /// Which.
        worker: String,
        /// For which job.
        job: JobId,
    },
    /// Nothing can be done for this job now.
    Wait {
        /// Which.
        job: JobId,
        /// Why.
        reason: String,
    },
    /// Nothing can ever be done for it here.
    Refuse {
        /// Which.
        job: JobId,
        /// Why.
        why: Refusal,
    },
}

/// Why a job can never run here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
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
        lacks: Vec<(String, MissingFeature)>,
    },
}
