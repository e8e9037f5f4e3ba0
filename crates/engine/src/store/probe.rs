//! Whether the store takes writes, by trying: one small write to the journal, and one file among the artifacts.

use std::time::{Duration, Instant};

use tokio::sync::{Mutex, watch};

use super::folder::Space;
use super::health::StoreHealth;
use super::open::Store;
use super::writer::Durable;

/// A result is as good as new for so long.
const FRESH_FOR: Duration = Duration::from_millis(500);
/// As large as a small picture.
pub(super) const FILE_BYTES: usize = 64 << 10;

/// The last probe.
#[derive(Debug, Default)]
pub(super) struct Probe {
    last: Mutex<Option<(Instant, StoreHealth)>>,
}

impl Store {
    /// What the last writes say about the disk.
    pub fn health(&self) -> StoreHealth {
        self.owned.folder.health.now()
    }

    /// Hears of each change of [`health`](Self::health).
    pub fn watch_health(&self) -> watch::Receiver<StoreHealth> {
        self.owned.folder.health.watch()
    }

    /// Really tries to write, at most twice a second; who asks in between gets the last result.
    pub async fn probe(&self) -> StoreHealth {
        let mut last = self.owned.probe.last.lock().await;
        if let Some((at, found)) = &*last
            && at.elapsed() < FRESH_FOR
        {
            return found.clone();
        }
        let journal = self.owned.writer.submit(Durable::Yes, Space::Takes, |connection| {
            connection
                .prepare_cached(
                    "INSERT INTO facts VALUES ('probes', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1",
                )?
                .execute([])?;
            Ok(())
        });
        let artifacts = self.artifacts();
        let tried = tokio::task::spawn_blocking(move || artifacts.try_to_write(FILE_BYTES));
        // Both tell the health themselves.
        let _ = tokio::join!(journal, tried);
        let found = self.health();
        *last = Some((Instant::now(), found.clone()));
        found
    }
}
