//! The memory of a device as clients see it: its ledger, and the weight cache of the host.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The memory of a device, as the ledger has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemoryView {
    /// Id of the device, for instance `cpu0`.
    pub device: String,
    /// Size of the memory, from the driver.
    pub total_bytes: u64,
    /// What the driver called free at `read_at_ms`; `null` for a device that is only declared, because no driver is asked.
    #[serde(default)]
    pub free_bytes: Option<u64>,
    /// When `free_bytes` was read, in milliseconds since 1970.
    #[serde(default)]
    pub read_at_ms: Option<u64>,
    /// The most that all leases together may take.
    pub budget_bytes: u64,
    /// Sum of the leases.
    pub leased_bytes: u64,
    /// Highest sum of the leases since the start.
    pub high_water_bytes: u64,
    /// Memory that its worker processes use, from their last heartbeats.
    pub worker_used_bytes: u64,
    /// Every lease of this device.
    pub leases: Vec<LeaseView>,
    /// Only for the host: the cache of weights for accelerators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheView>,
}

/// A lease of memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseView {
    /// Made of what it is for: the worker and the model, or the job.
    pub id: String,
    /// `weights`, `adapters` (weights that LoRAs have changed), `working_set`, or `unreturned` (what unloads did not give
    /// back).
    pub kind: String,
    /// The model or the job that holds it.
    pub owner: String,
    /// How much.
    pub bytes: u64,
}

/// The weight cache: weights in host memory, shared by all workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CacheView {
    /// Folder of the segments.
    pub folder: String,
    /// The most that it may hold.
    pub budget_bytes: u64,
    /// Size of all segments, those that are being copied or deleted included.
    pub used_bytes: u64,
    /// Loads of a component that found it in the cache, since the start.
    pub hits: u64,
    /// Loads of a component that did not.
    pub misses: u64,
    /// Segments that were evicted to make room for others.
    pub evictions: u64,
    /// Every segment of the cache.
    pub segments: Vec<SegmentView>,
}

/// The weights of one component of a model in host memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SegmentView {
    /// The name of its file in shared memory.
    pub id: String,
    /// `filling`, `ready` or `leaving`.
    pub state: String,
    /// How much.
    pub bytes: u64,
    /// Files that it was copied from.
    pub files: Vec<String>,
    /// Workers that have it mapped.
    pub mapped_by: Vec<String>,
}
