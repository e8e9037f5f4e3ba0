//! Numbered events: what SSE clients, the page and the CLI see. Numbers grow, also over a restart.

use calotype_protocol::{JobId, Phase};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::processing::{JobProgress, JobState, JobView};

/// Something happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Grows; a client gives the last one it saw to go on from there.
    pub id: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// A job changed its state. The whole job comes with it when it ends or when events before it were missed.
    Job {
        /// Which.
        job: JobId,
        /// Its state now.
        state: JobState,
        /// Why it waits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// The whole job, at its end or after a gap.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        view: Option<Box<JobView>>,
    },
    /// A job's work went on.
    Progress {
        /// Which.
        job: JobId,
        /// How far.
        progress: JobProgress,
    },
    /// What the picture looks like so far.
    Preview {
        /// Which.
        job: JobId,
        /// Steps done.
        done: u32,
        /// Which phase.
        phase: Phase,
        /// A small PNG, base64.
        png_base64: String,
    },
    /// A worker came or went.
    Worker {
        /// Its name.
        worker: String,
        /// `starting`, `ready`, `gone`.
        state: String,
        /// Why it went.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Weights in host memory came or went.
    Segment {
        /// Its name.
        segment: String,
        /// `ready`, `failed`, `freed`.
        state: String,
        /// Why it failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
}

impl EventKind {
    /// The job concerned.
    pub fn job(&self) -> Option<&JobId> {
        match self {
            Self::Job { job, .. } | Self::Progress { job, .. } | Self::Preview { job, .. } => Some(job),
            Self::Worker { .. } | Self::Segment { .. } => None,
        }
    }

    /// Its name in an event stream.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Job { .. } => "job",
            Self::Progress { .. } => "progress",
            Self::Preview { .. } => "preview",
            Self::Worker { .. } => "worker",
            Self::Segment { .. } => "segment",
        }
    }
}
