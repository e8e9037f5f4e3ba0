//! The memory of a device as clients see it: its ledger, and the weight cache of the host.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
