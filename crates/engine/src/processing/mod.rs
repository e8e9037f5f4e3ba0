//! Jobs: what they are (`job`), who goes next (`policy`, pure), and the one task that decides and acts (`driver`).

mod job;

pub use job::{Class, ImageView, JobProgress, JobRecord, JobResult, JobState, JobView};
