//! Jobs: what they are (`job`), how many may wait (`admission`), which step runs next and where (`schedule`, pure), and the
//! one task that owns everything live (`dispatch`).

mod admission;
pub(crate) mod dispatch;
pub(crate) mod job;
pub(crate) mod schedule;

pub(crate) use admission::Gate;
pub(crate) use dispatch::{
    AcceptedJob, Action, Command, Driver, DriverParts, Snapshot, StepView, WorkerSetup, view_as_told, view_of,
};
pub use job::{Class, ImageView, JobProgress, JobRecord, JobResult, JobState, JobView, Promise};
pub(crate) use schedule::Demand;
