//! A job as clients see it (`JobView`) and as the journal keeps it (`JobRecord`).

use std::collections::BTreeMap;

use calotype_protocol::{JobId, ModelId, Phase};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact::ArtifactHash;
use crate::error::Error;
use crate::inference::Plan;

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// On disk, waiting.
    Queued,
    /// Claimed; its model is being made resident.
    Loading,
    /// In the worker.
    Running,
    /// Asked to pause, and not yet out of the tick loop.
    Pausing,
    /// Out of the tick loop, or held back in the queue.
    Paused,
    /// Its pictures are being encoded and stored, or its end is being written to the journal.
    Finishing,
    /// Has its pictures.
    Succeeded,
    /// Has an error.
    Failed,
    /// Ended as asked.
    Cancelled,
}

impl JobState {
    /// Whether nothing can change any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Loading => "loading",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Finishing => "finishing",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Who goes first; within a class the priority, then the order of arrival.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Before everything.
    Critical,
    /// Somebody waits for it.
    #[default]
    Interactive,
    /// Many at a time.
    Batch,
    /// When nothing else is to do.
    Background,
}

impl Class {
    /// Every class, the most urgent first.
    pub const ALL: [Self; Self::COUNT] = [Self::Critical, Self::Interactive, Self::Batch, Self::Background];
    /// How many there are.
    pub const COUNT: usize = 4;

    /// Its share of device time, as a part of what `interactive` has.
    pub(crate) fn share(self) -> f64 {
        self.quarter_weight() as f64 / Self::Interactive.quarter_weight() as f64
    }

    /// Its share of device time beside the other classes, in quarters: 4 : 1 : 0.5. `critical` goes before all others.
    pub(crate) fn quarter_weight(self) -> u64 {
        match self {
            Self::Critical | Self::Interactive => 16,
            Self::Batch => 4,
            Self::Background => 2,
        }
    }
}

/// What a client is promised when its job is accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Promise {
    /// That it is done, whatever happens: the job is synced to disk before it is accepted.
    #[default]
    Kept,
    /// Nothing before its end, which the client waits for: the job is written down, and synced with its end. A crash of
    /// the process loses nothing; a power failure takes the waiting client with it.
    AtItsEnd,
}

/// One picture of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageView {
    /// Its content address; `GET /api/artifacts/{hash}` has the bytes.
    pub artifact: ArtifactHash,
    /// For instance `image/png`.
    pub media_type: String,
    /// Length of the file.
    pub size_bytes: u64,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// The seed that gives it again.
    pub seed: u64,
}

/// Work done in the present phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobProgress {
    /// Which phase.
    pub phase: Phase,
    /// Pieces done.
    pub done: u32,
    /// Pieces in all.
    pub total: u32,
    /// Time of the last piece.
    pub step_ms: f64,
}

/// What a succeeded job has.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobResult {
    /// Its pictures, in the order of their seeds.
    pub images: Vec<ImageView>,
    /// Phase to milliseconds; together they are the time from acceptance to the end. `queued`, `load` (waiting while its
    /// model was loaded), `dispatch` (journaling the claim, reading inputs), `bind`, `encode`, `denoise` and `decode` in the
    /// worker, `shared` (turns of other jobs in the same worker), `paused`, `finish` (encoding and storing), and
    /// `earlier_attempts`.
    pub timings_ms: BTreeMap<String, f64>,
    /// Highest memory of the worker during the job.
    pub peak_bytes: u64,
    /// Samples in the UNet's batch at each step.
    pub batch_sizes: Vec<u32>,
    /// What computed it.
    pub engine: String,
    /// What was done for memory or speed, for instance `graphs` or `vae_tiling`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plan: Vec<String>,
    /// The worker that did.
    pub worker: String,
}

/// A job as clients see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobView {
    /// The id of the job.
    pub id: JobId,
    /// Where it stands.
    pub state: JobState,
    /// Why it waits, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same for programs, for instance `places_taken`, `memory_in_use` or `model_loads`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason_code: Option<String>,
    /// Place in the queue, from 1, while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<usize>,
    /// Its class.
    pub class: Class,
    /// Larger goes first within the class.
    pub priority: i32,
    /// Who submitted it: the name of an API key, or an address; absent where the server did not tell its clients apart.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub client: String,
    /// How often it was started.
    pub attempts: u32,
    /// Its model.
    pub model: ModelId,
    /// Everything that was decided about it; submit it again for the same pictures.
    pub plan: Plan,
    /// Present phase, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<JobProgress>,
    /// Pictures and figures, once it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<JobResult>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
    /// Milliseconds since 1970 at which it was accepted.
    pub created_at_ms: u64,
    /// … at which it was last started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at_ms: Option<u64>,
    /// … at which it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at_ms: Option<u64>,
}

/// A job as the journal keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRecord {
    /// The id of the job.
    pub id: JobId,
    /// Order of arrival; grows.
    pub sequence: u64,
    /// `Queued`, `Running` (claimed), `Paused`, or final; the states between live only in memory.
    pub state: JobState,
    /// Its class.
    pub class: Class,
    /// Its priority.
    pub priority: i32,
    /// The client's key.
    pub key: Option<String>,
    /// Who submitted the job; empty where the server does not tell its clients apart.
    pub client: String,
    /// What to do.
    pub plan: Plan,
    /// How often it was claimed.
    pub attempts: u32,
    /// How many workers died with it.
    pub crashes: u32,
    /// Once it succeeded.
    pub result: Option<JobResult>,
    /// Once it failed.
    pub error: Option<Error>,
    /// Milliseconds since 1970.
    pub created_at_ms: u64,
    /// Milliseconds since 1970.
    pub started_at_ms: Option<u64>,
    /// Milliseconds since 1970.
    pub finished_at_ms: Option<u64>,
}
