//! What the core is told, and what it wants done.

use std::time::Duration;

use calotype_protocol::{
    Blob, Down, Failure, Frame, Hello, JobId, LoadId, ModelId, Ready, RunResult, Up, Work,
};

use super::step::{Accepted, StepEnd};
use crate::error::Error;
use crate::event::EventKind;
use crate::memory::memory_plan::Residency;
use crate::processing::job::{JobResult, RunId, StepKey};
use crate::processing::schedule::WorkerId;
use crate::store::Write;
use crate::worker::ExitReport;

/// The time, as the driver tells it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Now {
    /// Since the engine started; never goes back.
    pub(crate) since_start: Duration,
    /// Milliseconds since 1970, for people.
    pub(crate) wall_ms: u64,
}

/// What a client may do to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// End it.
    Cancel,
    /// Hold it.
    Pause,
    /// Let it go on.
    Resume,
}

/// Names a client that waits for an answer; the driver knows whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Token(pub(crate) u64);

/// What the core is told.
#[derive(Debug)]
pub(crate) enum Input {
    /// A step is in the journal.
    Accepted(Box<Accepted>),
    /// A client wants something of a job; answered by [`Effect::Answer`].
    Control {
        job: JobId,
        action: Action,
        token: Token,
    },
    /// A process was started.
    WorkerStarting {
        worker: WorkerId,
        incarnation: u64,
        pid: u32,
    },
    /// A worker takes work.
    WorkerReady {
        worker: WorkerId,
        hello: Box<Hello>,
        ready: Box<Ready>,
    },
    /// A line from a worker.
    Line {
        worker: WorkerId,
        incarnation: u64,
        line: Up,
        blobs: Vec<Blob>,
    },
    /// A load failed. `from_memory`: weights came from shared memory, and the files are to be tried next.
    LoadFailed {
        worker: WorkerId,
        load: LoadId,
        failure: Failure,
        from_memory: bool,
    },
    /// A process was reaped.
    WorkerGone {
        worker: WorkerId,
        report: Box<ExitReport>,
    },
    /// The files of models that could not be loaded have changed.
    ModelsChanged { models: Vec<ModelId> },
    /// The work of a claimed step is ready to go down.
    Prepared {
        run: RunId,
        work: Result<(Box<Work>, Vec<Blob>), Error>,
    },
    /// The outputs of a step are stored.
    Stored {
        step: StepKey,
        outputs: Result<Box<StoredOutputs>, StoreOutputsError>,
    },
    /// A write that was asked for is on disk, or is not.
    Journaled {
        then: Then,
        outcome: Result<(), StoreFault>,
    },
    /// Whether the store works, tried on [`Effect::ProbeStore`].
    StoreProbed(Result<(), StoreFault>),
    /// Start nothing more; [`Effect::Drained`] follows once nothing runs.
    Drain,
    /// Time has passed.
    Tick,
}

/// The store is at fault; what it was asked to keep stays in memory until it works again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoreFault {
    /// What it said.
    pub(crate) error: Error,
}

/// Outputs of a step, stored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StoredOutputs {
    /// Without timings, which the core adds.
    pub(crate) result: JobResult,
}

/// Why outputs were not stored.
#[derive(Debug)]
pub(crate) enum StoreOutputsError {
    /// They are wrong, or cannot be encoded.
    Wrong(Error),
    /// The store is at fault: here they are again.
    Store(StoreFault, Box<Outputs>),
}

/// What a worker delivered for a step.
#[derive(Debug)]
pub(crate) struct Outputs {
    pub(crate) result: RunResult,
    pub(crate) blobs: Vec<Blob>,
    /// The worker's name.
    pub(crate) worker: String,
}

/// What a write was for; comes back with its outcome.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Then {
    /// A claim: the run may be prepared.
    Claimed(RunId),
    /// A step's end: it may be told.
    EndTold(StepKey),
    /// A client waits to hear that its wish is kept.
    Answer { token: Token, steps: Vec<StepKey> },
    /// Nobody waits for it; the steps whose state it keeps.
    Kept(Vec<StepKey>),
    /// The steps whose states an outage had left unwritten, and those of them whose end it writes, which may be told.
    Owed {
        steps: Vec<StepKey>,
        ended: Vec<StepKey>,
    },
}

/// What the core wants done, in this order.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Write to the journal: enqueued now, answered by [`Input::Journaled`].
    Journal { writes: Vec<Write>, then: Then },
    /// Read a claimed step's spec and inputs and build its work; answered by [`Input::Prepared`].
    Prepare { run: RunId, job: JobId },
    /// Send a line to this very process.
    Send {
        worker: WorkerId,
        incarnation: u64,
        frame: Frame<Down>,
    },
    /// Load a model into a worker: the driver finds its files and sends the line.
    Load {
        worker: WorkerId,
        incarnation: u64,
        load: LoadId,
        model: ModelId,
        residency: Residency,
        budget_bytes: u64,
    },
    /// Encode and store outputs; answered by [`Input::Stored`].
    StoreOutputs { step: StepKey, outputs: Box<Outputs> },
    /// Start a worker that is asleep.
    StartWorker { worker: WorkerId },
    /// Replace a worker's process.
    RecycleWorker { worker: WorkerId, reason: String },
    /// Workers have reported other capabilities than before.
    AbilitiesChanged,
    /// Try whether the store works; answered by [`Input::StoreProbed`].
    ProbeStore,
    /// Tell subscribers.
    Tell(EventKind),
    /// Tell subscribers what a picture looks like so far.
    Preview {
        job: JobId,
        done: u32,
        image: calotype_protocol::BlobRef,
        blobs: Vec<Blob>,
    },
    /// A client's wish was carried out, or refused.
    Answer {
        token: Token,
        outcome: Result<(), Error>,
    },
    /// A step has ended, and its end is on disk: tell everybody who waits for it.
    Ended(Box<Ended>),
    /// Nothing runs any more, and every end is on disk.
    Drained,
}

/// A step that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) step: StepKey,
    pub(crate) job: JobId,
    pub(crate) end: StepEnd,
    pub(crate) note: Option<String>,
    pub(crate) attempts: u32,
    pub(crate) started_at_ms: Option<u64>,
    /// From its acceptance to its end.
    pub(crate) took: Duration,
}
