//! The reading connections. SQLite lets them read while the writer writes; each reads one question at a time.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OpenFlags};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::StoreError;

/// Enough that a long list does not hold up a question about one job.
const CONNECTIONS: usize = 3;

#[derive(Debug)]
pub(super) struct Pool {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

impl Pool {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let idle = (0..CONNECTIONS).map(|_| open_to_read(path));
        Ok(Self {
            path: path.to_owned(),
            idle: Mutex::new(idle.collect::<Result<_, _>>()?),
            permits: Arc::new(Semaphore::new(CONNECTIONS)),
        })
    }

    /// Waits for a turn; at most as many have one as there are connections.
    pub(super) async fn turn(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|_| StoreError::Closed)
    }

    /// Asks by an idle connection, for a thread that may wait for the disk and has a turn.
    pub(super) fn ask<T>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            // One was lost by a query that panicked.
            None => open_to_read(&self.path)?,
        };
        let answer = query(&connection);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(connection);
        answer
    }
}

/// A connection that cannot change anything.
pub(super) fn open_to_read(path: &Path) -> Result<Connection, StoreError> {
    Ok(Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?)
}
