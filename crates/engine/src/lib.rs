//! The orchestrator without doors: devices, memory, models, jobs, workers, store. [`Engine`] is its only face; it knows no
//! HTTP and no terminal.

mod config;
mod error;
mod event;
pub mod inference;
pub mod processing;
pub mod store;

pub use config::Config;
pub use error::{Code, Domain, Error};
pub use event::{Event, EventKind};
