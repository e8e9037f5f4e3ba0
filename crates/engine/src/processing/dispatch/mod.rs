//! The one writer of everything live: jobs, ledgers and what is resident.
//!
//! `core` decides and is pure; `driver` is the task around it: messages in, effects out, in the order in which they were
//! decided. `prepare` and `outputs` are what it has done elsewhere for a step, `weights` what it does for a load, `changes`
//! watches files that could not be loaded, and `snapshot` is what people are shown.

mod changes;
pub(crate) mod core;
mod driver;
mod message;
mod outputs;
mod prepare;
mod snapshot;
mod weights;

pub(crate) use core::{Action, StepView};
pub(crate) use driver::{Driver, DriverParts, WorkerSetup};
pub(crate) use message::{AcceptedJob, Command};
pub(crate) use snapshot::{Snapshot, view_as_told, view_of};
