//! Opening and closing a data directory: the lock, the look before (`inspect`), migrations, the mark, and what a dead
//! server left behind.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Weak};

use rusqlite::{Connection, params};
use tokio::sync::watch;

use super::artifacts::{self, Artifacts};
use super::folder::Folder;
use super::inspect::{self, Found, JOURNAL};
use super::lock::{self, Lock};
use super::marker::{Mark, Marked};
use super::pool::Pool;
use super::probe::Probe;
use super::rows::text;
use super::writer::{self, Writer};
use super::{StoreError, reserve};
use crate::processing::job::JobState;

/// Each once, in order; the file's `user_version` counts those that were done.
pub(super) const MIGRATIONS: &[&str] = &[
    include_str!("migrations/1.sql"),
    include_str!("migrations/2.sql"),
    concat!(
        include_str!("migrations/3.sql"),
        include_str!("migrations/fill_refs.sql")
    ),
    include_str!("migrations/4.sql"),
];

/// The journal and the artifacts of a data directory. Cheap to clone; closes with its last clone.
#[derive(Clone)]
pub struct Store {
    pub(super) owned: Arc<Owned>,
}

/// A store that does not keep the data directory open, for tasks that run beside it.
#[derive(Clone)]
pub struct WeakStore {
    owned: Weak<Owned>,
    open: watch::Receiver<()>,
}

/// In this order: the readers are closed before the writer folds the log, and the folder is given back at the very end.
pub(super) struct Owned {
    pub(super) readers: Pool,
    pub(super) writer: Writer,
    pub(super) artifacts: Artifacts,
    pub(super) folder: Arc<Folder>,
    pub(super) probe: Probe,
    open: watch::Sender<()>,
    _lock: Lock,
}

impl Store {
    /// Opens or makes the journal of a data directory. Jobs that were claimed wait again. A directory whose journal is
    /// missing, damaged, older than its mark or another's is refused, and nothing in it is changed.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(dir).map_err(|error| StoreError::from(error).at(dir))?;
        let lock = lock::take(dir).map_err(|error| error.at(dir))?;
        let found = inspect::inspect(dir).map_err(|error| error.at(dir))?;
        let (connection, marked) = match prepare(dir, found) {
            // The journal needs a little room even to be opened; then jobs can be deleted.
            Err(error) if error.is_full() && fs::remove_file(dir.join(reserve::FILE)).is_ok() => {
                prepare(dir, found)
            }
            prepared => prepared,
        }
        .map_err(|error| error.at(dir))?;
        remove_scratch(dir);
        let readers = Pool::open(&dir.join(JOURNAL))?;
        let folder = Arc::new(Folder::of_journal(dir)?);
        let artifacts = Artifacts::in_folder(dir.join(artifacts::FOLDER), Arc::clone(&folder))?;
        let mark = match Mark::take(dir, marked) {
            Ok(mark) => Some(mark),
            // Without it a lost log would not be noticed, which is no reason not to serve on a full disk.
            Err(error) if error.is_full() => {
                tracing::warn!("Failed to mark how far the journal has come: {error}");
                None
            }
            Err(error) => return Err(error.at(dir)),
        };
        let owned = Owned {
            readers,
            writer: Writer::start(connection, Arc::clone(&folder), mark)?,
            artifacts,
            folder,
            probe: Probe::default(),
            open: watch::Sender::default(),
            _lock: lock,
        };
        Ok(Self {
            owned: Arc::new(owned),
        })
    }

    /// The artifacts of the same data directory; they share its health and its trash.
    pub fn artifacts(&self) -> Artifacts {
        self.owned.artifacts.clone()
    }

    /// A handle that does not keep the store open.
    pub fn downgrade(&self) -> WeakStore {
        WeakStore {
            owned: Arc::downgrade(&self.owned),
            open: self.owned.open.subscribe(),
        }
    }

    pub(super) async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let turn = self.owned.readers.turn().await?;
        // A whole clone: the readers must outlive each question, and the last fold of the log them.
        let store = self.clone();
        tokio::task::spawn_blocking(move || {
            let answer = store.owned.readers.ask(query);
            drop(turn);
            answer
        })
        .await
        .map_err(|_| StoreError::Closed)?
    }
}

impl WeakStore {
    /// The store, while somebody else keeps it open.
    pub fn upgrade(&self) -> Option<Store> {
        self.owned.upgrade().map(|owned| Store { owned })
    }

    /// Waits until the store is closed.
    pub async fn closed(&mut self) {
        while self.open.changed().await.is_ok() {}
    }
}

/// Opens the journal to write, brings it to this version, and puts claimed jobs back into the queue.
fn prepare(dir: &Path, found: Found) -> Result<(Connection, Marked), StoreError> {
    let connection = Connection::open(dir.join(JOURNAL))?;
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        return Err(StoreError::NoWal { mode });
    }
    // Until the writer takes over nothing is folded.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    // A reader may hold up a fold for long; what the log has grown to meanwhile is cut off again. Not to the size at which it
    // is folded: it would be cut, and grow again, each time.
    let log_kept_bytes = 2 * writer::LOG_MOST_BYTES;
    connection.pragma_update(None, "journal_size_limit", log_kept_bytes.cast_signed())?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    migrate(&connection)?;
    let id = match found {
        Found::Journal(facts) => facts.id,
        Found::Nothing => None,
    };
    let id = id.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 >> 1);
    connection.execute_batch("BEGIN IMMEDIATE")?;
    connection.execute(
        "UPDATE jobs SET state = ?1, worker = NULL WHERE state = ?2 AND finished_at_ms IS NULL",
        params![text(&JobState::Queued)?, text(&JobState::Running)?],
    )?;
    connection.execute(
        "INSERT INTO facts VALUES ('journal_id', ?1) ON CONFLICT (name) DO NOTHING",
        [id.cast_signed()],
    )?;
    connection.execute(
        "INSERT INTO facts VALUES ('commits', 0) ON CONFLICT (name) DO NOTHING",
        [],
    )?;
    let commits = writer::count_commit(&connection)?;
    connection.execute_batch("COMMIT")?;
    Ok((connection, Marked { id, commits }))
}

pub(super) fn migrate(connection: &Connection) -> Result<(), StoreError> {
    let done = inspect::facts(connection)?.version;
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(done) {
        connection.execute_batch(&format!(
            "BEGIN; {migration} PRAGMA user_version = {}; COMMIT",
            index + 1
        ))?;
    }
    Ok(())
}

/// Removes what workers of dead servers left: nobody else can own it while the lock is ours.
fn remove_scratch(dir: &Path) {
    let Ok(workers) = fs::read_dir(dir.join("scratch")) else {
        return;
    };
    for process in workers
        .flatten()
        .filter_map(|worker| fs::read_dir(worker.path()).ok())
    {
        for folder in process.flatten() {
            let is_ours = folder
                .file_name()
                .to_str()
                .and_then(|name| name.strip_prefix("worker-"))
                .is_some_and(|pid| pid.parse::<u32>().is_ok());
            if is_ours && let Err(error) = fs::remove_dir_all(folder.path()) {
                tracing::warn!("Failed to remove {}: {error}", folder.path().display());
            }
        }
    }
}
