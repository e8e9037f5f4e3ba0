//! The orchestrator without doors: devices, memory, models, jobs, workers, store. [`Engine`] is its only face; it knows no
//! HTTP and no terminal.

mod artifact;
pub mod artifact_cache;
mod clock;
mod config;
pub mod device;
mod drain;
mod engine;
mod error;
mod event;
pub mod health;
pub mod inference;
mod memory;
pub mod model;
mod postprocessing;
pub mod processing;
#[cfg(any(test, feature = "simulation"))]
#[doc(hidden)]
pub mod simulation;
mod startup;
pub mod store;
pub mod worker;

pub use artifact::{ArtifactHash, media_type};
pub use config::{Config, Runtime, StartOnCpu};
pub use device::{DeviceView, WorkerView};
pub use engine::{Artifact, Engine, JobPage, JobQuery, SubmitOptions, Submitted, Validation};
pub use error::{Code, Domain, Error};
pub use event::{Event, EventKind, LoggedEvent, Opened, SegmentChange, Subscription, WorkerChange};
pub use health::{DomainHealth, Health};
pub use memory::{CacheView, LeaseView, MemoryView, SegmentView};
