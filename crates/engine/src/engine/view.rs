//! Options and answers of the engine's own calls; each domain has its views in its own folder.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::inference::{Plan, Warning};
use crate::processing::{Class, JobState, JobView, Promise};

/// How a job is to be treated, apart from what it draws.
#[derive(Debug, Clone)]
pub struct SubmitOptions {
    /// Who submits: the name of an API key, else an address. Clients share the devices fairly.
    pub client: String,
    /// The same key with the same request gives the same job.
    pub key: Option<String>,
    /// Urgency; a class has a share of the devices.
    pub class: Class,
    /// Larger values go first within the class.
    pub priority: i32,
    /// When the job must be on disk.
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
    /// Settings that are valid and perhaps not intended.
    pub warnings: Vec<Warning>,
    /// Whether the idempotency key was used before; `job` is then the job of that time.
    pub existing: bool,
}

/// What a request would become as a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Validation {
    /// The plan of the job; a seed that was left out is drawn anew at each submission.
    pub plan: Plan,
    /// Settings that are valid and perhaps not intended.
    pub warnings: Vec<Warning>,
    /// Device memory for the weights of its models and the copies that its LoRAs change.
    pub weights_bytes: u64,
    /// Device memory for the working set, which comes on top of the weights.
    pub working_set_bytes: u64,
    /// Whether `working_set_bytes` comes from a measured peak.
    pub measured: bool,
    /// What would be done to make it fit, in the words of a result's plan: `vae_slicing`, `vae_tiling`,
    /// `attention_slicing`, `offload_model` or `offload_sequential`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory_plan: Vec<String>,
    /// The worker that would run it; absent while no worker that can run it is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Why it would not start at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
}

/// A filter on the list of jobs, which is given newest first.
#[derive(Debug, Clone, Default)]
pub struct JobQuery {
    /// Only jobs in this state.
    pub state: Option<JobState>,
    /// `JobPage::cursor` of the page before.
    pub cursor: Option<u64>,
    /// Largest number of jobs; 0 for 50.
    pub limit: usize,
}

/// A page of jobs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobPage {
    /// Newest first.
    pub jobs: Vec<JobView>,
    /// `JobQuery::cursor` of the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<u64>,
}

/// A stored file.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// Content, shared with the artifact cache.
    pub bytes: Bytes,
    /// Detected from the first bytes.
    pub media_type: &'static str,
}
