//! An event as the log holds it: shared by all readers, its JSON text made once for all of them.

use std::ops::Deref;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::event::{Event, EventKind};
use crate::processing::job::JobView;

/// JSON beside the strings of an event: names, numbers and words of our own.
const TEXT_BESIDE_STRINGS_BYTES: usize = 384;

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
        let with_text = |strings: usize| own + strings + TEXT_BESIDE_STRINGS_BYTES;
        match &self.event.kind {
            EventKind::Preview { job, png, .. } => {
                with_text(string_and_text_bytes(&job.0)) + png.len() + png.len().div_ceil(3) * 4
            }
            // A whole job has too many strings to add up; its text is made.
            EventKind::Job { view: Some(_), .. } => own + size_of::<JobView>() + 2 * self.json().len(),
            EventKind::Job {
                job,
                reason,
                view: None,
                ..
            } => {
                with_text(string_and_text_bytes(&job.0) + reason.as_deref().map_or(0, string_and_text_bytes))
            }
            EventKind::Progress { job, .. } => with_text(string_and_text_bytes(&job.0)),
            EventKind::Worker { worker, reason, .. } => {
                with_text(string_and_text_bytes(worker) + reason.as_deref().map_or(0, string_and_text_bytes))
            }
            EventKind::Segment { segment, reason, .. } => {
                with_text(string_and_text_bytes(segment) + reason.as_deref().map_or(0, string_and_text_bytes))
            }
            EventKind::Gap { .. } => with_text(0),
        }
    }
}

/// A string and what JSON makes of it, in bytes.
fn string_and_text_bytes(text: &str) -> usize {
    let escaped = text.bytes().map(|byte| match byte {
        b'"' | b'\\' => 2,
        // `\u0007`
        0..0x20 => 6,
        _ => 1,
    });
    text.len() + escaped.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::super::event::WorkerChange;
    use super::*;

    #[test]
    fn an_event_is_counted_with_no_less_than_its_strings_and_their_text() {
        let reasons = [
            "",
            "\u{1}\u{2}\u{1f}",
            "\"quoted\\",
            "\n\t",
            "ünïcode 写真",
            "\u{7f}",
        ];
        for reason in reasons.map(|reason| reason.repeat(500)) {
            let kind = EventKind::Worker {
                worker: "cuda0".to_owned(),
                state: WorkerChange::Starting,
                reason: Some(reason.clone()),
            };
            let (id, at_ms) = (u64::MAX, u64::MAX);
            let event = LoggedEvent::new(Event { id, at_ms, kind });
            assert!(event.bytes() >= size_of::<LoggedEvent>() + reason.len() + event.json().len());
        }
    }
}
