//! Jobs: their states and legal moves (`state`), their record in the journal and their view for clients (`record`).

mod record;
pub(crate) mod state;
pub(crate) mod timeline;

pub use record::{Class, ImageView, JobProgress, JobRecord, JobResult, JobState, JobView, Promise};

/// A step while it is live: its job's place in the order of arrival. A job has one step, a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StepKey(pub(crate) u64);

/// One attempt at a step. Every line from a worker is about one run; lines about another are stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RunId {
    /// Which step.
    pub(crate) step: StepKey,
    /// Which attempt, from 1.
    pub(crate) attempt: u32,
}
