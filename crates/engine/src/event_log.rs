//! The latest events in a ring, and the subscriptions that read from it. The dispatcher alone appends; readers go at
//! their own pace and never hold it up: what a slow one missed is replaced by the job as it stands.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use calotype_protocol::JobId;
use tokio::sync::watch;

use crate::error::Error;
use crate::event::{Event, EventKind};
use crate::health::RunFacts;
use crate::processing::JobState;

/// Events kept for those who come back.
const KEPT: usize = 8192;

/// Shared by the dispatcher and its readers.
#[derive(Debug)]
pub(crate) struct EventLog {
    ring: Mutex<VecDeque<Arc<Event>>>,
    latest: watch::Sender<u64>,
    /// From the ends of jobs that were told.
    runs: Mutex<RunFacts>,
}

/// What a reader finds behind its cursor.
pub(crate) enum Found {
    /// The next event.
    Event(Arc<Event>),
    /// The cursor is older than the ring; go on from this number.
    Gap(u64),
    /// Nothing yet; the cursor may move up to this number, which held nothing for this reader.
    Nothing(u64),
}

impl EventLog {
    /// An empty log whose first event gets `first_id`.
    pub(crate) fn new(first_id: u64) -> Self {
        Self {
            ring: Mutex::new(VecDeque::new()),
            latest: watch::Sender::new(first_id.saturating_sub(1)),
            runs: Mutex::default(),
        }
    }

    fn ring(&self) -> MutexGuard<'_, VecDeque<Arc<Event>>> {
        // Nothing between lock and unlock can leave the ring half changed.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of the latest event.
    pub(crate) fn latest(&self) -> u64 {
        *self.latest.borrow()
    }

    /// To wait for news.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    /// The last ends of runs, for the verdict on inference.
    pub(crate) fn runs(&self) -> RunFacts {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count_end(&self, at_ms: u64, state: JobState, error: Option<&Error>) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        match (state, error) {
            (JobState::Succeeded, _) => runs.succeeded(at_ms),
            (JobState::Failed, Some(error)) => runs.failed(at_ms, error),
            _ => {}
        }
    }

    /// Adds an event.
    pub(crate) fn append(&self, at_ms: u64, kind: EventKind) {
        if let EventKind::Job {
            state,
            view: Some(view),
            ..
        } = &kind
        {
            self.count_end(at_ms, *state, view.error.as_ref());
        }
        let mut ring = self.ring();
        let id = self.latest() + 1;
        if ring.len() == KEPT {
            ring.pop_front();
        }
        ring.push_back(Arc::new(Event { id, at_ms, kind }));
        drop(ring);
        self.latest.send_replace(id);
    }

    /// The next event after `cursor` for `job` (or for all). A progress or preview that a later one of the same job
    /// has overtaken is passed over.
    pub(crate) fn after(&self, cursor: u64, job: Option<&JobId>) -> Found {
        let ring = self.ring();
        let Some(first) = ring.front().map(|event| event.id) else {
            return if cursor < self.latest() {
                Found::Gap(self.latest())
            } else {
                Found::Nothing(cursor)
            };
        };
        if cursor + 1 < first {
            return Found::Gap(first - 1);
        }
        let skip = usize::try_from(cursor + 1 - first).unwrap_or(usize::MAX);
        let mut behind = ring
            .iter()
            .skip(skip)
            .filter(|event| job.is_none_or(|job| event.kind.job() == Some(job)));
        let Some(mut found) = behind.next() else {
            return Found::Nothing(ring.back().map_or(cursor, |event| event.id).max(cursor));
        };
        if let EventKind::Progress { job: of, .. } = &found.kind {
            for later in behind.take_while(|later| matches!(later.kind, EventKind::Progress { .. })) {
                if later.kind.job() == Some(of) {
                    found = later;
                } else {
                    break;
                }
            }
        }
        Found::Event(Arc::clone(found))
    }
}

#[cfg(test)]
mod tests {
    use calotype_protocol::Phase;

    use super::*;
    use crate::processing::{JobProgress, JobState};

    fn state(job: &str, state: JobState) -> EventKind {
        EventKind::Job {
            job: job.into(),
            state,
            reason: None,
            view: None,
        }
    }

    fn progress(job: &str, done: u32) -> EventKind {
        EventKind::Progress {
            job: job.into(),
            progress: JobProgress {
                phase: Phase::Denoise,
                done,
                total: 9,
                step_ms: 1.0,
            },
        }
    }

    fn ids(log: &EventLog, job: Option<&JobId>) -> Vec<u64> {
        let (mut cursor, mut ids) = (9, Vec::new());
        while let Found::Event(event) = log.after(cursor, job) {
            cursor = event.id;
            ids.push(cursor);
        }
        ids
    }

    #[test]
    fn a_reader_that_comes_back_goes_on_where_it_was() {
        let log = EventLog::new(10);
        for job in ["a", "b", "a"] {
            log.append(0, state(job, JobState::Queued));
        }
        assert_eq!(ids(&log, None), [10, 11, 12]);
        assert_eq!(ids(&log, Some(&"a".into())), [10, 12]);
        assert!(matches!(log.after(12, None), Found::Nothing(12)));
    }

    #[test]
    fn a_slow_reader_gets_the_latest_progress_and_every_state() {
        let log = EventLog::new(10);
        log.append(0, state("a", JobState::Running));
        for done in 1..=5 {
            log.append(0, progress("a", done));
        }
        log.append(0, state("a", JobState::Succeeded));
        assert_eq!(ids(&log, Some(&"a".into())), [10, 15, 16]);
    }

    #[test]
    fn a_reader_older_than_the_ring_is_told_of_the_gap() {
        let log = EventLog::new(10);
        for _ in 0..KEPT + 5 {
            log.append(0, state("a", JobState::Queued));
        }
        assert!(matches!(log.after(9, None), Found::Gap(14)));
        assert!(matches!(EventLog::new(500).after(20, None), Found::Gap(499)));
    }
}
