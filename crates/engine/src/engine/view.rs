//! What goes in at the engine's face, and what comes out beside the views of its rooms.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
