//! An event as the log holds it: shared by all readers, its JSON text made once for all of them.

use std::ops::Deref;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::event::{Event, EventKind};
use crate::processing::job::JobView;

/// JSON around a preview's picture: names, numbers and the job's id.
const PREVIEW_JSON_BYTES: usize = 256;

/// An event of the log, shared by its readers.
#[derive(Debug)]
pub struct LoggedEvent {
    event: Event,
    json: OnceLock<Box<str>>,
    /// Whether a later progress of the same job came with nothing but progress between.
    overtaken: AtomicBool,
}

impl Deref for LoggedEvent {
    type Target = Event;

    fn deref(&self) -> &Event {
        &self.event
    }
}

impl LoggedEvent {
    pub(super) fn new(event: Event) -> Self {
        Self {
            event,
            json: OnceLock::new(),
            overtaken: AtomicBool::new(false),
        }
    }

    /// The event as JSON. The first reader makes the text, the others share it.
    pub fn json(&self) -> &str {
        self.json
            .get_or_init(|| serde_json::to_string(&self.event).unwrap_or_default().into())
    }

    pub(super) fn overtake(&self) {
        // Written and read under the log's lock, which orders it.
        self.overtaken.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_overtaken(&self) -> bool {
        self.overtaken.load(Ordering::Relaxed)
    }

    /// About how much memory it takes, its text included. Every string that it owns stands in its text as well, so they
    /// are at most as long together; a preview's text is known from its picture and is not made for this.
    pub(super) fn bytes(&self) -> usize {
        let own = size_of::<Self>() + 2 * size_of::<usize>();
        match &self.event.kind {
            EventKind::Preview { job, png, .. } => {
                own + 2 * job.0.len() + png.len() + png.len().div_ceil(3) * 4 + PREVIEW_JSON_BYTES
            }
            EventKind::Job { view: Some(_), .. } => own + size_of::<JobView>() + 2 * self.json().len(),
            EventKind::Job { view: None, .. }
            | EventKind::Progress { .. }
            | EventKind::Worker { .. }
            | EventKind::Segment { .. }
            | EventKind::Gap { .. } => own + 2 * self.json().len(),
        }
    }
}
