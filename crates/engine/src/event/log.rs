//! The ring behind its lock, and whom to wake. The dispatcher alone appends; readers go at their own pace and never hold
//! it up. A reader of one job is woken by that job's events alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use calotype_protocol::{JobId, Phase};
use tokio::sync::Notify;

use super::event::EventKind;
use super::ring::{Found, Limits, Ring};
use super::subscription::{JobStates, Subscription};

/// Shared by the dispatcher and the readers.
#[derive(Debug)]
pub(crate) struct EventLog {
    first_id: u64,
    state: Mutex<State>,
    /// Wakes the readers of all jobs.
    all: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    ring: Ring,
    /// Wakes the readers of one job; there while it has some.
    of_jobs: HashMap<JobId, Arc<Notify>>,
    closed: bool,
}

impl EventLog {
    /// An empty log whose first event gets `first_id`. Numbers before it are of earlier runs.
    pub(crate) fn new(first_id: u64) -> Self {
        Self::with_limits(first_id, Limits::default())
    }

    pub(crate) fn with_limits(first_id: u64, limits: Limits) -> Self {
        Self {
            first_id,
            state: Mutex::new(State {
                ring: Ring::new(first_id, limits),
                of_jobs: HashMap::new(),
                closed: false,
            }),
            all: Arc::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing between lock and unlock waits or panics half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event.
    pub(crate) fn append(&self, at_ms: u64, kind: EventKind) {
        let mut state = self.state();
        let of_job = kind.job().and_then(|job| state.of_jobs.get(job)).cloned();
        state.ring.append(at_ms, kind);
        drop(state);
        self.wake(of_job);
    }

    /// Puts the latest preview of a job, a PNG, in the place of the one before. It is gone when the job ends.
    pub(crate) fn preview(&self, at_ms: u64, job: JobId, done: u32, phase: Phase, png: impl Into<Arc<[u8]>>) {
        let png = png.into();
        let mut state = self.state();
        let of_job = state.of_jobs.get(&job).cloned();
        let is_kept = state.ring.preview(at_ms, job, done, phase, png);
        drop(state);
        if is_kept {
            self.wake(of_job);
        }
    }

    /// Ends every stream behind what it has still to read: nothing more will be appended.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let of_jobs: Vec<_> = state.of_jobs.values().cloned().collect();
        drop(state);
        for of_job in of_jobs {
            of_job.notify_waiters();
        }
        self.all.notify_waiters();
    }

    /// Events of one job, or of all, after the number `after`; from now on where there is none. A job's stream without a
    /// number begins with the job as it stands.
    pub(crate) fn subscribe(
        self: &Arc<Self>,
        job: Option<JobId>,
        after: Option<u64>,
        states: Arc<dyn JobStates>,
    ) -> Subscription {
        let mut state = self.state();
        let latest = state.ring.latest();
        let news = match &job {
            None => Arc::clone(&self.all),
            Some(job) => {
                state.ring.reader_comes(job);
                Arc::clone(state.of_jobs.entry(job.clone()).or_default())
            }
        };
        drop(state);
        let reader = Reader {
            log: Arc::clone(self),
            job,
            news,
        };
        Subscription::new(reader, self.first_id, latest, after, states)
    }

    /// Nobody waits who is not told: a reader asks for the news before it looks, and looks before it waits.
    fn wake(&self, of_job: Option<Arc<Notify>>) {
        if let Some(of_job) = of_job {
            of_job.notify_waiters();
        }
        self.all.notify_waiters();
    }

    #[cfg(test)]
    pub(super) fn ring<T>(&self, look: impl FnOnce(&Ring) -> T) -> T {
        look(&self.state().ring)
    }

    #[cfg(test)]
    pub(super) fn latest(&self) -> u64 {
        self.state().ring.latest()
    }
}

/// A reader's place at the log, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Reader {
    log: Arc<EventLog>,
    /// The job it follows; all of them without one.
    pub(super) job: Option<JobId>,
    /// Told after each append that concerns this reader.
    pub(super) news: Arc<Notify>,
}

impl Reader {
    /// What comes after a number.
    pub(super) fn after(&self, cursor: u64) -> Found {
        let state = self.log.state();
        match state.ring.after(cursor, self.job.as_ref()) {
            Found::Nothing if state.closed => Found::Ended,
            found => found,
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(job) = &self.job {
            let mut state = self.log.state();
            if state.ring.reader_leaves(job) {
                state.of_jobs.remove(job);
            }
        }
    }
}
