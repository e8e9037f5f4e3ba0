//! Jobs: what they are (`job`), how many may wait (`admission`), who goes next (`policy`, pure), and the one task that
//! decides and acts (`driver`).

mod admission;
mod driver;
mod job;
mod policy;

pub(crate) use admission::{Gate, Ticket};
pub(crate) use driver::{Action, Command, Driver, NewPost, Parts, Snapshot, now_ms, view_of_record};
pub use job::{Class, ImageView, JobProgress, JobRecord, JobResult, JobState, JobView, Promise};
