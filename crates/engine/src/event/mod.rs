//! Numbered events: what they are (`event`), as they are shared (`logged`), the latest ones within a bound of bytes
//! (`ring`, `previews`), the log that wakes its readers (`log`), and a reader with a place of its own (`subscription`).

#[expect(
    clippy::module_inception,
    reason = "the room is named after the thing it holds"
)]
mod event;
mod log;
mod logged;
mod previews;
mod ring;
mod subscription;
#[cfg(test)]
mod tests;

pub use event::{Event, EventKind, SegmentChange, WorkerChange};
pub(crate) use log::EventLog;
pub use logged::LoggedEvent;
pub(crate) use subscription::{Answer, JobStates};
pub use subscription::{Opened, Subscription};
