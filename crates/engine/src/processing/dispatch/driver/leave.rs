//! The end of the driver: what is on its way to the journal is waited for, then the workers are stopped.

use super::{Driver, LEAVE_GRACE, STORE_GRACE};
use crate::processing::dispatch::core::Now;
use crate::processing::dispatch::message::Internal;
use crate::worker::{WorkerEvent, WorkerHandle};
use futures_util::future::join_all;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio::time::timeout;

impl Driver {
    /// Whether nothing is left to wait for.
    pub(super) fn may_leave(&self, now: Now) -> bool {
        self.stopping
            .as_ref()
            .is_some_and(|stopping| self.is_drained || self.started + now.since_start >= stopping.until)
    }

    /// Stops the workers, all at the same time, and waits for the ends that are on their way to the journal. What still
    /// ran is queued again by the journal's recovery at the next start.
    pub(super) async fn leave(
        &mut self,
        events: &mut mpsc::Receiver<WorkerEvent>,
        internals: &mut mpsc::UnboundedReceiver<Internal>,
    ) {
        let until = Instant::now() + STORE_GRACE;
        while self.core.has_unwritten_ends() && self.core.store_outage().is_none() && Instant::now() < until {
            let Ok(Some(internal)) = timeout(until - Instant::now(), internals.recv()).await else {
                break;
            };
            let now = self.now();
            self.on_internal(internal, now);
            self.settle(now);
        }
        // Nobody reads worker events from here on; a worker's last words must not block it.
        events.close();
        let handles: Vec<WorkerHandle> = self
            .workers
            .iter_mut()
            .filter_map(|worker| worker.handle.take())
            .collect();
        join_all(handles.iter().map(|handle| handle.stop(LEAVE_GRACE))).await;
        self.weights.end().await;
        for reply in self
            .stopping
            .take()
            .into_iter()
            .flat_map(|stopping| stopping.replies)
        {
            let _ = reply.send(());
        }
    }
}
