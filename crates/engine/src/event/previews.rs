//! The latest preview of each job, bounded in bytes: the one that was not renewed for longest leaves first. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::logged::LoggedEvent;

#[derive(Debug)]
pub(super) struct Previews {
    most_bytes: usize,
    bytes: usize,
    /// By number, so the first one is the one not renewed for longest.
    by_id: BTreeMap<u64, Arc<LoggedEvent>>,
}

impl Previews {
    pub(super) fn new(most_bytes: usize) -> Self {
        Self {
            most_bytes,
            bytes: 0,
            by_id: BTreeMap::new(),
        }
    }

    /// Keeps a preview, unless it is larger than all there is room for. Says whether it was kept, and which others made
    /// room for it.
    pub(super) fn insert(&mut self, event: Arc<LoggedEvent>) -> (bool, Vec<Arc<LoggedEvent>>) {
        let bytes = event.bytes();
        if bytes > self.most_bytes {
            return (false, Vec::new());
        }
        let mut pushed_out = Vec::new();
        while self.bytes + bytes > self.most_bytes
            && let Some((_, oldest)) = self.by_id.pop_first()
        {
            self.bytes -= oldest.bytes();
            pushed_out.push(oldest);
        }
        self.bytes += bytes;
        self.by_id.insert(event.id, event);
        (true, pushed_out)
    }

    pub(super) fn remove(&mut self, id: Option<u64>) {
        if let Some(event) = id.and_then(|id| self.by_id.remove(&id)) {
            self.bytes -= event.bytes();
        }
    }

    pub(super) fn get(&self, id: u64) -> Option<Arc<LoggedEvent>> {
        self.by_id.get(&id).cloned()
    }

    /// The first one after a number.
    pub(super) fn after(&self, cursor: u64) -> Option<Arc<LoggedEvent>> {
        let mut behind = self.by_id.range(cursor.saturating_add(1)..);
        behind.next().map(|(_, event)| Arc::clone(event))
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
