//! Numbered events: what they are (`event`), the latest ones in a ring (`log`), and a reader with a place of its own
//! (`subscription`).

#[expect(
    clippy::module_inception,
    reason = "the room is named after the thing it holds"
)]
mod event;
mod log;
mod subscription;

pub use event::{Event, EventKind};
pub(crate) use log::EventLog;
pub use subscription::Subscription;
