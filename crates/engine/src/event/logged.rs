//! An event as the log holds it: shared by all readers, its JSON text made once for all of them.

use std::ops::Deref;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::event::{Event, EventKind};
use crate::processing::job::JobView;

/// JSON beside the strings of an event: names, numbers and words of our own.
const TEXT_BESIDE_STRINGS_BYTES: usize = 384;

/// What JSON may make of one byte of a string: `\u0007`.
const LONGEST_ESCAPE_BYTES: usize = 6;

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

    /// The most memory that it takes, its text included, whether or not a reader has asked for the text yet. Every string
    /// that it owns stands in its text as well.
    pub(super) fn bytes(&self) -> usize {
        let own = size_of::<Self>() + 2 * size_of::<usize>();
        let with_text = |strings: usize| own + strings + TEXT_BESIDE_STRINGS_BYTES + LONGEST_ESCAPE_BYTES * strings;
        match &self.event.kind {
            EventKind::Preview { job, png, .. } => {
                with_text(job.0.len()) + png.len() + png.len().div_ceil(3) * 4
            }
            // A whole job has too many strings to add up; its text is made.
            EventKind::Job { view: Some(_), .. } => own + size_of::<JobView>() + 2 * self.json().len(),
            EventKind::Job {
                job,
                reason,
                view: None,
                ..
            } => with_text(job.0.len() + length(reason)),
            EventKind::Progress { job, .. } => with_text(job.0.len()),
            EventKind::Worker { worker, reason, .. } => with_text(worker.len() + length(reason)),
            EventKind::Segment { segment, reason, .. } => with_text(segment.len() + length(reason)),
            EventKind::Gap { .. } => with_text(0),
        }
    }
}

fn length(text: &Option<String>) -> usize {
    text.as_ref().map_or(0, String::len)
}
