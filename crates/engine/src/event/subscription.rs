//! A reader of events with a place of its own.

use std::sync::Arc;

use calotype_protocol::JobId;
use tokio::sync::watch;

use super::event::{Event, EventKind};
use super::log::{EventLog, Found};
use crate::engine::Engine;
use crate::processing::now_ms;

/// Events of one job or of all, from a number on.
pub struct Subscription {
    engine: Engine,
    log: Arc<EventLog>,
    latest: watch::Receiver<u64>,
    job: Option<JobId>,
    cursor: u64,
    /// Whether the job as it stands comes before the next event.
    show_first: bool,
    over: bool,
}

impl Subscription {
    pub(crate) fn new(engine: Engine, log: Arc<EventLog>, job: Option<JobId>, after: Option<u64>) -> Self {
        let latest = log.watch();
        // A number from the future is not one of ours.
        let cursor = after.map_or(log.latest(), |after| after.min(log.latest()));
        Self {
            engine,
            latest,
            show_first: job.is_some() && after.is_none(),
            log,
            job,
            cursor,
            over: false,
        }
    }

    /// The next event. A stream of one job ends behind its final event; any ends with the engine.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if self.over {
                return None;
            }
            if std::mem::take(&mut self.show_first) {
                return self.as_it_stands().await;
            }
            self.latest.borrow_and_update();
            match self.log.after(self.cursor, self.job.as_ref()) {
                Found::Event(event) => {
                    self.cursor = event.id;
                    self.over = self.job.is_some()
                        && matches!(&event.kind, EventKind::Job { state, .. } if state.is_final());
                    return Some((*event).clone());
                }
                Found::Gap(from) => {
                    self.cursor = from;
                    self.show_first = self.job.is_some();
                }
                Found::Nothing(upto) => {
                    self.cursor = upto;
                    if self.ended_before().await {
                        return None;
                    }
                    if self.latest.changed().await.is_err() {
                        return None;
                    }
                }
            }
        }
    }

    /// Whether the one job had ended before the cursor, so that nothing will ever come.
    async fn ended_before(&mut self) -> bool {
        let Some(job) = &self.job else { return false };
        if self.log.latest() > self.cursor {
            return false;
        }
        let ended = match self.engine.job(job).await {
            Ok(view) => view.state.is_final(),
            Err(_) => true,
        };
        // Its last event may have come while we asked.
        ended && self.log.latest() == self.cursor
    }

    async fn as_it_stands(&mut self) -> Option<Event> {
        let job = self.job.clone()?;
        let id = self.cursor;
        match self.engine.job(&job).await {
            Ok(view) => {
                self.over = view.state.is_final();
                let (state, reason) = (view.state, view.reason.clone());
                let kind = EventKind::Job {
                    job,
                    state,
                    reason,
                    view: Some(Box::new(view)),
                };
                Some(Event {
                    id,
                    at_ms: now_ms(),
                    kind,
                })
            }
            Err(_) => {
                self.over = true;
                None
            }
        }
    }
}
