//! Whether the engine is going down, and how long what runs may still take.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Code, Error};

/// Told with the advice to come back: the next start needs a moment beyond the end of the drain.
const RESTART: Duration = Duration::from_secs(1);

/// The drain, once it has begun. It is never taken back.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    ends: Mutex<Option<Instant>>,
}

impl Drain {
    /// Begins; a second beginning changes nothing.
    pub(crate) fn begin(&self, within: Duration) {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.get_or_insert_with(|| Instant::now() + within);
    }

    /// What is left of a drain that has begun.
    pub(crate) fn left(&self) -> Option<Duration> {
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.map(|ends| ends.saturating_duration_since(Instant::now()))
    }

    /// An error for a new job, once the drain has begun.
    pub(crate) fn refuse_new(&self) -> Result<(), Error> {
        match self.left() {
            None => Ok(()),
            Some(left) => Err(Error::new(
                Code::ShuttingDown,
                "the server is going down and takes no new jobs",
            )
            .advice("send it again after Retry-After, or to another server")
            .retry_after_ms((left + RESTART).as_millis() as u64)),
        }
    }
}
