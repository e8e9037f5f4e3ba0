//! What the driver is told by the facade, and by its own tasks.

use std::sync::Arc;
use std::time::Duration;

use calotype_protocol::{Blob, JobId, Load, LoadId, ModelId, SegmentId, Work};
use tokio::sync::oneshot;

use super::core::{Action, Ended, StepView, StoreFault, StoreOutputsError, StoredOutputs, Then};
use super::snapshot::Snapshot;
use crate::error::Error;
use crate::memory::weight_cache::Source;
use crate::processing::admission::Ticket;
use crate::processing::job::{JobRecord, JobState, JobView, RunId, StepKey};
use crate::processing::schedule::Demand;

/// From the facade.
pub(crate) enum Command {
    /// Jobs are in the journal.
    Accepted(Vec<AcceptedJob>),
    /// What a client wants of a job, answered once it is kept; `None` for a job that is not live.
    Control {
        job: JobId,
        action: Action,
        reply: oneshot::Sender<Option<Result<(), Error>>>,
    },
    /// Jobs as they stand; `None` for each that is not live.
    Views {
        jobs: Vec<JobId>,
        reply: oneshot::Sender<Vec<Option<StepView>>>,
    },
    /// Live jobs in a state, newest first.
    InState {
        state: JobState,
        before: Option<u64>,
        limit: usize,
        reply: oneshot::Sender<Vec<u64>>,
    },
    /// Answered at the job's end; the reply is dropped for a job that is not live.
    Wait {
        job: JobId,
        reply: oneshot::Sender<JobView>,
    },
    /// Where a demand would run now.
    Forecast {
        demand: Box<Demand>,
        reply: oneshot::Sender<super::core::Forecast>,
    },
    /// Devices, memory, health.
    Snapshot { reply: oneshot::Sender<Snapshot> },
    /// Start nothing more; what runs may end within `drain`. A second one shortens the first.
    Stop {
        drain: Duration,
        reply: oneshot::Sender<()>,
    },
}

/// A job that is in the journal.
pub(crate) struct AcceptedJob {
    pub(crate) record: Arc<JobRecord>,
    pub(crate) demand: Result<Demand, Error>,
    pub(crate) ticket: Ticket,
}

/// Ends of the driver's own tasks.
pub(super) enum Internal {
    /// Work is ready to go down, with the record that it was built from.
    Prepared {
        run: RunId,
        record: Option<Arc<JobRecord>>,
        work: Result<(Box<Work>, Vec<Blob>), Error>,
    },
    Stored {
        step: StepKey,
        outputs: Result<Box<StoredOutputs>, StoreOutputsError>,
    },
    Journaled {
        then: Then,
        outcome: Result<(), StoreFault>,
    },
    StoreProbed(Result<(), StoreFault>),
    /// A preview is encoded as PNG.
    Preview {
        job: JobId,
        done: u32,
        png: Vec<u8>,
    },
    /// The record of a job that ended without having been claimed.
    EndedRecord {
        ended: Box<Ended>,
        record: Option<Arc<JobRecord>>,
    },
    /// The files of a load were looked at: those of each role that has weights.
    FilesFound {
        load: Box<Load>,
        sources: Vec<(String, Source)>,
    },
    /// A load has waited long enough for its weights to be in memory.
    WaitedForCopies {
        load: LoadId,
    },
    /// Weights are in memory, so many bytes of them; or why not.
    SegmentFilled {
        segment: SegmentId,
        outcome: Result<u64, String>,
    },
    /// A segment's file is deleted.
    SegmentFreed {
        segment: SegmentId,
    },
    /// The files of a model that could not be loaded have changed.
    FilesChanged {
        model: ModelId,
    },
}
