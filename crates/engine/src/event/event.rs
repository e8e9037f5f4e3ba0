//! Numbered events: what SSE clients, the page and the CLI see. Numbers grow, also over a restart.

use std::fmt;
use std::sync::Arc;

use calotype_protocol::{JobId, Phase};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::processing::job::{JobProgress, JobState, JobView};

/// Something happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Grows; a client gives the last one it saw to go on from there.
    pub id: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// What happened; its fields stand beside these two.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// A job changed its state. The whole job comes with it when it ends, at the beginning of the job's own stream, and
    /// after a gap.
    Job {
        /// The id of the job.
        job: JobId,
        /// Its state now.
        state: JobState,
        /// Why it waits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// The whole job.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        view: Option<Box<JobView>>,
    },
    /// A job's work went on. A client that reads slowly gets the latest one between two state changes of the job.
    Progress {
        /// The id of the job.
        job: JobId,
        /// How far.
        progress: JobProgress,
    },
    /// What the picture looks like so far. Only the latest one of a running job is kept.
    Preview {
        /// The id of the job.
        job: JobId,
        /// Steps done.
        done: u32,
        /// Which phase.
        phase: Phase,
        /// A small PNG, base64.
        #[serde(rename = "png_base64", with = "base64_text")]
        #[schemars(with = "String")]
        png: Arc<[u8]>,
    },
    /// A worker came or went.
    Worker {
        /// The name of the worker.
        worker: String,
        /// What happened to it.
        state: WorkerChange,
        /// Why it went.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Weights in host memory came or went.
    Segment {
        /// The id of the segment.
        segment: String,
        /// What happened to it.
        state: SegmentChange,
        /// Why it failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// This stream missed events: they are older than what the server still holds, or of before its restart. On a job's
    /// stream the job as it stands follows. Not every number between the two was used, and not every one concerned this
    /// stream. The event's own `id` is the number before the gap, so that a client that reconnects here is told again.
    Gap {
        /// The first number that may have been missed.
        missed_from: u64,
        /// The last number that may have been missed.
        missed_to: u64,
    },
}

/// What happened to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkerChange {
    /// Its process was started.
    Starting,
    /// It takes work.
    Ready,
    /// Its process has ended.
    Gone,
}

impl WorkerChange {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Gone => "gone",
        }
    }
}

impl fmt::Display for WorkerChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What happened to a segment of weights in host memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SegmentChange {
    /// Workers can map it.
    Ready,
    /// It could not be filled.
    Failed,
    /// Its memory is free again.
    Freed,
}

impl EventKind {
    /// The job concerned.
    pub fn job(&self) -> Option<&JobId> {
        match self {
            Self::Job { job, .. } | Self::Progress { job, .. } | Self::Preview { job, .. } => Some(job),
            Self::Worker { .. } | Self::Segment { .. } | Self::Gap { .. } => None,
        }
    }

    /// Whether it is the last event of its job.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Job { state, .. } if state.is_final())
    }

    /// Its name in an event stream.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Job { .. } => "job",
            Self::Progress { .. } => "progress",
            Self::Preview { .. } => "preview",
            Self::Worker { .. } => "worker",
            Self::Segment { .. } => "segment",
            Self::Gap { .. } => "gap",
        }
    }
}

/// Bytes as base64 text in JSON.
mod base64_text {
    use std::sync::Arc;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &Arc<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<[u8]>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(serde::de::Error::custom)?;
        Ok(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_reads_back_as_it_was_written_in_the_words_clients_know() {
        let kinds = [
            (
                EventKind::Preview {
                    job: "j".into(),
                    done: 2,
                    phase: Phase::Denoise,
                    png: Arc::from(&b"\x89PNG"[..]),
                },
                json!({ "event": "preview", "job": "j", "done": 2, "phase": "denoise", "png_base64": "iVBORw==" }),
            ),
            (
                EventKind::Worker {
                    worker: "w".into(),
                    state: WorkerChange::Gone,
                    reason: Some("killed".into()),
                },
                json!({ "event": "worker", "worker": "w", "state": "gone", "reason": "killed" }),
            ),
            (
                EventKind::Segment {
                    segment: "s".into(),
                    state: SegmentChange::Freed,
                    reason: None,
                },
                json!({ "event": "segment", "segment": "s", "state": "freed" }),
            ),
            (
                EventKind::Gap {
                    missed_from: 3,
                    missed_to: 8,
                },
                json!({ "event": "gap", "missed_from": 3, "missed_to": 8 }),
            ),
        ];
        for (kind, mut expected) in kinds {
            expected["id"] = json!(9);
            expected["at_ms"] = json!(1);
            assert_eq!(expected["event"], kind.name());
            let event = Event {
                id: 9,
                at_ms: 1,
                kind,
            };
            let written = serde_json::to_value(&event).unwrap();
            assert_eq!(written, expected);
            assert_eq!(serde_json::from_value::<Event>(written).unwrap(), event);
        }
    }

    #[test]
    fn a_worker_change_is_shown_in_the_word_of_the_wire() {
        for change in [WorkerChange::Starting, WorkerChange::Ready, WorkerChange::Gone] {
            assert_eq!(serde_json::to_value(change).unwrap(), change.to_string());
        }
    }
}
