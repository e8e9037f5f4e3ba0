//! A reader of events with a place of its own. It knows the log, and asks for a job as it stands only at its beginning
//! and after a gap.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use calotype_protocol::JobId;

use super::event::{Event, EventKind};
use super::log::Reader;
use super::logged::LoggedEvent;
use super::ring::Found;
use crate::clock::now_ms;
use crate::error::Error;
use crate::processing::job::JobView;

/// An answer that is waited for.
pub(crate) type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Knows every job as it stands. Once it says that a job has ended, the job's last event is in the log.
pub(crate) trait JobStates: Send + Sync {
    /// The job as it stands, or that there is none.
    fn job<'a>(&'a self, id: &'a JobId) -> Answer<'a, Result<JobView, Error>>;
}

/// Whether a stream has anything to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// Events come, now or later.
    Following,
    /// The job's last event is at or before the number that the reader began with: nothing will ever come.
    Ended,
}

/// Events of one job or of all, from a number on.
pub struct Subscription {
    reader: Reader,
    states: Arc<dyn JobStates>,
    /// The last number that was told, or that the job as it stands makes up for.
    cursor: u64,
    /// Made for this reader alone, and next.
    queue: VecDeque<Arc<LoggedEvent>>,
    /// Whether the job as it stands comes next.
    show: bool,
    is_open: bool,
    is_over: bool,
}

impl Subscription {
    pub(super) fn new(
        reader: Reader,
        first_id: u64,
        latest: u64,
        after: Option<u64>,
        states: Arc<dyn JobStates>,
    ) -> Self {
        let mut subscription = Self {
            cursor: after.unwrap_or(latest),
            show: reader.job.is_some() && after.is_none(),
            reader,
            states,
            queue: VecDeque::new(),
            is_open: false,
            is_over: false,
        };
        if subscription.cursor > latest {
            // A number that was never given out is of another journal: all of this run was missed.
            subscription.cursor = first_id.saturating_sub(1);
            subscription.skip_to(latest);
        }
        subscription
    }

    /// Asks, once, whether there is such a job, and whether anything is left to tell of it. `next` does it where the
    /// caller did not.
    pub async fn open(&mut self) -> Result<Opened, Error> {
        if !self.is_open {
            if let Found::Gap(to) = self.reader.after(self.cursor) {
                self.skip_to(to);
            }
            if let Some(job) = &self.reader.job {
                let view = self.states.job(job).await?;
                if self.show {
                    self.stands(view);
                } else if view.state.is_final() {
                    // After the question: the job's last event came before the answer.
                    self.is_over = match self.reader.after(self.cursor) {
                        // One that was encoded after the end: no event of the job follows it.
                        Found::Event(event) => matches!(event.kind, EventKind::Preview { .. }),
                        Found::Gap(_) => false,
                        Found::Nothing | Found::Ended => true,
                    };
                }
            }
            self.is_open = true;
        }
        Ok(if self.is_over && self.queue.is_empty() {
            Opened::Ended
        } else {
            Opened::Following
        })
    }

    /// The next event. A stream of one job ends behind its final event; any ends with the engine. Nothing is lost where
    /// the caller stops waiting and calls again.
    pub async fn next(&mut self) -> Option<Arc<LoggedEvent>> {
        if self.open().await.is_err() {
            return None;
        }
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            if self.is_over {
                return None;
            }
            if self.show
                && let Some(job) = &self.reader.job
            {
                let view = self.states.job(job).await;
                match view {
                    Ok(view) => self.stands(view),
                    Err(_) => self.is_over = true,
                }
                continue;
            }
            // Before the look: what is appended behind it wakes.
            let news = self.reader.news.notified();
            match self.reader.after(self.cursor) {
                Found::Event(event) => {
                    self.cursor = event.id;
                    self.is_over = self.reader.job.is_some() && event.kind.is_final();
                    return Some(event);
                }
                Found::Gap(to) => {
                    drop(news);
                    self.skip_to(to);
                }
                Found::Nothing => news.await,
                Found::Ended => self.is_over = true,
            }
        }
    }

    /// Tells that everything up to a number was missed.
    fn skip_to(&mut self, to: u64) {
        if self.cursor < to {
            let kind = EventKind::Gap {
                missed_from: self.cursor + 1,
                missed_to: to,
            };
            self.tell(self.cursor, kind);
        }
        self.cursor = to;
        self.show = self.reader.job.is_some();
    }

    /// Tells the job as it stands. What came meanwhile follows.
    fn stands(&mut self, view: JobView) {
        self.show = false;
        self.is_over = view.state.is_final();
        let kind = EventKind::Job {
            job: view.id.clone(),
            state: view.state,
            reason: view.reason.clone(),
            view: Some(Box::new(view)),
        };
        self.tell(self.cursor, kind);
    }

    fn tell(&mut self, id: u64, kind: EventKind) {
        let at_ms = now_ms();
        self.queue
            .push_back(Arc::new(LoggedEvent::new(Event { id, at_ms, kind })));
    }
}
