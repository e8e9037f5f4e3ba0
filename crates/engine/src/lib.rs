//! The orchestrator without doors: devices, memory, models, jobs, workers, store. [`Engine`] is its only face; it knows no
//! HTTP and no terminal.

pub mod artifact_cache;
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
mod view;
pub mod worker;

pub use config::{Config, Runtime, StartOnCpu};
pub use engine::Engine;
pub use error::{Code, Domain, Error};
pub use event::{Event, EventKind, LoggedEvent, Opened, SegmentChange, Subscription, WorkerChange};
pub use view::{
    Artifact, CacheView, DeviceView, DomainHealth, Health, JobPage, JobQuery, LeaseView, MemoryView,
    SegmentView, SubmitOptions, Submitted, Validation, WorkerView,
};
