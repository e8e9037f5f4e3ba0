//! What the engine shows of itself.

use std::collections::BTreeMap;

use bytes::Bytes;
use calotype_protocol::{Capabilities, ModelId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Domain;
use crate::inference::{Plan, Warning};
use crate::processing::{Class, JobState, JobView, Promise};

/// How a job is to be treated, apart from what it draws.
#[derive(Debug, Clone)]
pub struct SubmitOptions {
    /// Who asks: the name of an API key, else an address. Clients share the devices fairly.
    pub client: String,
    /// The same key with the same request gives the same job.
    pub key: Option<String>,
    /// Who goes first.
    pub class: Class,
    /// Larger goes first within the class.
    pub priority: i32,
    /// What is promised by the acceptance alone.
    pub promise: Promise,
}

impl Default for SubmitOptions {
    fn default() -> Self {
        Self {
            client: "local".into(),
            key: None,
            class: Class::default(),
            priority: 0,
            promise: Promise::default(),
        }
    }
}

/// A job that is on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Submitted {
    /// The job.
    pub job: JobView,
    /// What was accepted although it may not be meant.
    pub warnings: Vec<Warning>,
    /// Whether the key was known and the job is the earlier one.
    pub existing: bool,
}

/// What a request would become.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Validation {
    /// What would be run; a seed that was left out is drawn anew at each submission.
    pub plan: Plan,
    /// What may not be meant.
    pub warnings: Vec<Warning>,
    /// What the weights of its models would take of the device, with what LoRAs change of them.
    pub weights_bytes: u64,
    /// Memory that the work would take beside the weights.
    pub working_set_bytes: u64,
    /// Whether that figure comes from a measured peak.
    pub measured: bool,
    /// What would be done to make it fit, as a result's plan tells it: `vae_slicing`, `vae_tiling`, `attention_slicing`,
    /// `offload_model` or `offload_sequential`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory_plan: Vec<String>,
    /// The worker that would run it; none is ready when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Why it would not start there at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
}

/// Which jobs to list, newest first.
#[derive(Debug, Clone, Default)]
pub struct JobQuery {
    /// Only in this state.
    pub state: Option<JobState>,
    /// Go on behind this cursor.
    pub cursor: Option<u64>,
    /// At most so many; 0 for 50.
    pub limit: usize,
}

/// A page of jobs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobPage {
    /// The jobs.
    pub jobs: Vec<JobView>,
    /// Give it to go on; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<u64>,
}

/// A stored file.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// Its bytes, which may be those of the cache.
    pub bytes: Bytes,
    /// By its first bytes.
    pub media_type: &'static str,
}

/// A worker of a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerView {
    /// Its name.
    pub name: String,
    /// The runtime that it is of, `native` or `python`.
    pub runtime: String,
    /// `asleep` (started when it is needed), `starting`, `ready` or `gone`.
    pub state: String,
    /// Its process, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Time since its last sign of life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_beat_ms_ago: Option<u64>,
    /// How many processes it has had.
    pub incarnation: u64,
    /// Why the last process went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<String>,
    /// Name and version of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// What it said it can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// Models resident in it.
    pub resident: Vec<ModelId>,
    /// Jobs inside.
    pub jobs: Vec<String>,
}

/// A device with its workers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceView {
    /// What the host and the driver say.
    pub device: crate::device::Device,
    /// `available`, `busy`, `offline`, or `unserved` where no runtime here can use it.
    pub state: String,
    /// Its workers, the preferred one first.
    pub workers: Vec<WorkerView>,
}

/// A lease of memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseView {
    /// Its name.
    pub id: String,
    /// `weights`, `adapters` (weights that LoRAs have changed), `working_set`, or `unreturned` (what unloads did not give
    /// back).
    pub kind: String,
    /// The model or the job.
    pub owner: String,
    /// How much.
    pub bytes: u64,
}

/// The memory of a device, as the ledger has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemoryView {
    /// The device.
    pub device: String,
    /// As the driver says.
    pub total_bytes: u64,
    /// What the driver called free at `read_at_ms`; `null` for a device that is only declared, because no driver is asked.
    #[serde(default)]
    pub free_bytes: Option<u64>,
    /// When that was read, in milliseconds since 1970.
    #[serde(default)]
    pub read_at_ms: Option<u64>,
    /// What models and jobs may take.
    pub budget_bytes: u64,
    /// Leased.
    pub leased_bytes: u64,
    /// Highest sum of leases since the start.
    pub high_water_bytes: u64,
    /// Memory of its worker processes, from their last beats.
    pub worker_used_bytes: u64,
    /// Every lease.
    pub leases: Vec<LeaseView>,
    /// Of the host: weights that are kept in its memory for accelerators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheView>,
}

/// The weights that wait in host memory, once for all workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CacheView {
    /// Where the segments lie.
    pub folder: String,
    /// The most that it may hold.
    pub budget_bytes: u64,
    /// What it holds, with what is being copied or deleted.
    pub used_bytes: u64,
    /// Components that were loaded from it since the start.
    pub hits: u64,
    /// Components that were not in it.
    pub misses: u64,
    /// Segments that made room for others.
    pub evictions: u64,
    /// Every segment.
    pub segments: Vec<SegmentView>,
}

/// The weights of one component of a model in host memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SegmentView {
    /// Its name.
    pub id: String,
    /// `filling`, `ready` or `leaving`.
    pub state: String,
    /// How much.
    pub bytes: u64,
    /// The files that it was copied from.
    pub files: Vec<String>,
    /// Workers that map it.
    pub mapped_by: Vec<String>,
}

/// One link of the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DomainHealth {
    /// Which.
    pub domain: Domain,
    /// Whether it can do its part now.
    pub healthy: bool,
    /// What was found.
    pub detail: String,
    /// How long ago it was tried or read; absent for what was never tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried_ms_ago: Option<u64>,
}

/// The chain from device to postprocessing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// `ok`, `starting`, `degraded` (a link cannot do its part, or a device has lost all its workers) or `draining`.
    pub status: String,
    /// In the order in which they start.
    pub chain: Vec<DomainHealth>,
    /// Version of the program.
    pub version: String,
    /// Time since the start.
    pub uptime_ms: u64,
    /// State to number of jobs in memory.
    pub jobs: BTreeMap<String, usize>,
}

impl Health {
    /// Whether new work is taken and done: also with a device that has lost its workers, while every link does its part.
    pub fn serves(&self) -> bool {
        let takes_work = self.status == "ok" || self.status == "degraded";
        takes_work && !self.chain.is_empty() && self.chain.iter().all(|link| link.healthy)
    }
}
