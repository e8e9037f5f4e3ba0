//! The one writing thread. Everything that waits is committed together; each operation stands in a savepoint of its
//! own, so that one that fails does not spoil the others. A batch that finds the disk full is tried again after room was
//! made (`folder`), and the log is folded into the journal when it has grown. The log's file keeps its length and is written
//! over from the start, because a sync of a file that grows costs twice as much.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use tokio::sync::oneshot;

use super::StoreError;
use super::fault::Fault;
use super::folder::{Folder, Space};
use super::health::Part;
use super::marker::Mark;

/// Most operations of one commit: bounds how long the first of them waits.
const MOST_TOGETHER: usize = 512;
/// A longer log is folded into the journal. A fold holds up whoever waits for the next commit, so it must be rare beside
/// them: this is the log of more than a hundred jobs, and a start reads it in a few hundredths of a second.
pub(super) const LOG_MOST_BYTES: u64 = 8 << 20;
/// What the log holds for each page of the journal: a header, and the page.
const FRAME_BYTES: u64 = 24 + 4096;
/// Compiled statements that are kept: more than there are.
const STATEMENTS: usize = 64;
/// How long the last fold waits for a program that reads the journal.
const LAST_FOLD_WAITS: Duration = Duration::from_secs(5);

/// Whether an operation must outlive a power failure before it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Durable {
    /// Lost, it is done again: a claim becomes a queued job.
    No,
    /// It was promised to somebody.
    Yes,
}

/// An operation between its caller and the writing thread. It may run several times, in a new transaction each.
trait Operation: Send {
    /// Runs inside the transaction, or not at all where there is none any more.
    fn run(&mut self, connection: Option<&Connection>);
    fn failure(&self) -> Option<&StoreError>;
    fn answer(self: Box<Self>, committed: Result<(), StoreError>);
}

struct Typed<T, F> {
    work: F,
    done: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
    folder: Arc<Folder>,
}

impl<T, F> Operation for Typed<T, F>
where
    T: Send,
    F: FnMut(&Connection) -> Result<T, StoreError> + Send,
{
    fn run(&mut self, connection: Option<&Connection>) {
        self.done = connection.map(|connection| in_savepoint(connection, &mut self.work));
    }

    fn failure(&self) -> Option<&StoreError> {
        self.done.as_ref()?.as_ref().err()
    }

    fn answer(self: Box<Self>, committed: Result<(), StoreError>) {
        let told = match (self.done, committed) {
            (Some(Ok(value)), Ok(())) => Ok(value),
            (Some(Err(error)), _) | (Some(Ok(_)) | None, Err(error)) => Err(error.at(self.folder.dir())),
            (None, Ok(())) => Err(StoreError::Closed),
        };
        let _ = self.reply.send(told);
    }
}

struct Queued {
    durable: Durable,
    space: Space,
    operation: Box<dyn Operation>,
}

/// The way to the writing thread. When it is dropped, what was queued is written, and the journal closed.
pub(super) struct Writer {
    operations: Option<Sender<Queued>>,
    thread: Option<JoinHandle<()>>,
    folder: Arc<Folder>,
}

impl Writer {
    pub(super) fn start(
        mut connection: Connection,
        folder: Arc<Folder>,
        mark: Option<Mark>,
    ) -> Result<Self, StoreError> {
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        let (operations, inbox) = channel();
        let log_frames = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&log_frames);
        // In place of SQLite's own folding: the writer folds the log itself, together with the mark.
        connection.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, frames: i32| {
            told.store(u64::from(frames.unsigned_abs()), Ordering::Relaxed);
            Ok(())
        }))?;
        let hand = Hand {
            connection,
            folder: Arc::clone(&folder),
            mark,
            log_frames,
            waits_for_disk: Cell::new(true),
        };
        let thread = thread::Builder::new()
            .name("store".into())
            .spawn(move || hand.run(&inbox))?;
        Ok(Self {
            operations: Some(operations),
            thread: Some(thread),
            folder,
        })
    }

    /// Queues an operation at once, in the order of the calls; the receiver hears of its commit.
    pub(super) fn enqueue<T, F>(
        &self,
        durable: Durable,
        space: Space,
        work: F,
    ) -> oneshot::Receiver<Result<T, StoreError>>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let operation = Box::new(Typed {
            work,
            done: None,
            reply,
            folder: Arc::clone(&self.folder),
        });
        // A closed channel drops the reply, which the receiver tells.
        if let Some(operations) = &self.operations {
            let _ = operations.send(Queued {
                durable,
                space,
                operation,
            });
        }
        answer
    }

    /// [`enqueue`](Self::enqueue), and a future that waits for the commit.
    pub(super) fn submit<T, F>(
        &self,
        durable: Durable,
        space: Space,
        work: F,
    ) -> impl Future<Output = Result<T, StoreError>> + use<T, F>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let answer = self.enqueue(durable, space, work);
        async move { answer.await.unwrap_or(Err(StoreError::Closed)) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.operations = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The writing thread's own.
struct Hand {
    connection: Connection,
    folder: Arc<Folder>,
    mark: Option<Mark>,
    /// Of the log, as SQLite told at the last commit.
    log_frames: Arc<AtomicU64>,
    /// Whether commits wait for the disk now, as `open` left it.
    waits_for_disk: Cell<bool>,
}

impl Hand {
    fn run(self, inbox: &Receiver<Queued>) {
        while let Ok(first) = inbox.recv() {
            let mut batch = vec![first];
            batch.extend(inbox.try_iter().take(MOST_TOGETHER - 1));
            self.write_together(batch);
            if self.log_frames.load(Ordering::Relaxed) * FRAME_BYTES > LOG_MOST_BYTES {
                self.fold(Fold::InPlace, Duration::ZERO);
            }
        }
        self.close();
    }

    fn write_together(&self, batch: Vec<Queued>) {
        let mut admitted = Vec::with_capacity(batch.len());
        for queued in batch {
            match self.folder.admit(queued.space) {
                Ok(()) => admitted.push(queued),
                Err(error) => {
                    self.folder.health.tried(Part::Journal, Err(&error));
                    queued.operation.answer(Err(error));
                }
            }
        }
        if admitted.is_empty() {
            return;
        }
        let mut attempt = self.attempt(&mut admitted);
        while self.found_no_room(&attempt, &admitted) && self.make_room(&admitted) {
            attempt = self.attempt(&mut admitted);
        }
        self.tell_health(&attempt, &admitted);
        for queued in admitted {
            queued
                .operation
                .answer(attempt.clone().map_err(|trouble| self.error(trouble)));
        }
    }

    /// One transaction with all of them.
    fn attempt(&self, batch: &mut [Queued]) -> Result<(), Trouble> {
        if !self.folder.is_there() {
            return Err(Trouble::Gone);
        }
        let connection = &self.connection;
        let is_durable = batch.iter().any(|queued| queued.durable == Durable::Yes);
        let began = self.begin(is_durable);
        for queued in batch.iter_mut() {
            // SQLite ends a transaction by itself when the disk is full or fails. Outside of one nothing is done: it
            // would be kept although its caller is told that it was not.
            let is_open = began.is_ok() && !connection.is_autocommit();
            queued.operation.run(is_open.then_some(connection));
        }
        let counted = began.and_then(|()| match &self.mark {
            Some(_) if is_durable && !connection.is_autocommit() => count_commit(connection).map(Some),
            Some(_) | None => Ok(None),
        });
        let committed = counted.and_then(|count| execute(connection, "COMMIT").map(|()| count));
        if committed.is_err() && !connection.is_autocommit() {
            let _ = connection.execute_batch("ROLLBACK");
        }
        let count = committed.map_err(|error| Trouble::Database(Arc::new(error)))?;
        if is_durable && !self.folder.is_there() {
            return Err(Trouble::Gone);
        }
        if let (Some(mark), Some(count)) = (&self.mark, count)
            && let Err(error) = mark.reach(count)
        {
            tracing::warn!("Failed to mark how far the journal has come: {error}");
        }
        Ok(())
    }

    fn begin(&self, is_durable: bool) -> rusqlite::Result<()> {
        if self.waits_for_disk.get() != is_durable {
            let level = if is_durable { "FULL" } else { "NORMAL" };
            self.connection.pragma_update(None, "synchronous", level)?;
            self.waits_for_disk.set(is_durable);
        }
        execute(&self.connection, "BEGIN IMMEDIATE")
    }

    fn found_no_room(&self, attempt: &Result<(), Trouble>, batch: &[Queued]) -> bool {
        let committed = attempt.clone().map_err(|trouble| self.error(trouble));
        let mut failures = batch.iter().filter_map(|queued| queued.operation.failure());
        committed.is_err_and(|error| error.is_full()) || failures.any(StoreError::is_full)
    }

    fn make_room(&self, batch: &[Queued]) -> bool {
        let frees = batch.iter().any(|queued| queued.space == Space::Frees);
        self.folder
            .make_room(if frees { Space::Frees } else { Space::Keeps })
    }

    fn tell_health(&self, attempt: &Result<(), Trouble>, batch: &[Queued]) {
        let failure = batch
            .iter()
            .filter_map(|queued| queued.operation.failure())
            .find(|error| error.fault() != Fault::NotTheDisk);
        let health = &self.folder.health;
        match (attempt, failure) {
            (_, Some(error)) => health.tried(Part::Journal, Err(error)),
            (Err(trouble), None) => health.tried(Part::Journal, Err(&self.error(trouble.clone()))),
            (Ok(()), None) => health.tried(Part::Journal, self.folder.standing().as_ref().copied()),
        }
    }

    fn error(&self, trouble: Trouble) -> StoreError {
        let dir = self.folder.dir();
        match trouble {
            Trouble::Gone => StoreError::Gone { dir: dir.to_owned() },
            Trouble::Database(error) => StoreError::NotCommitted(error).at(dir),
        }
    }

    /// Folds the log into the journal; what a reader holds up is done next time.
    fn fold(&self, how: Fold, patience: Duration) {
        let folded = self
            .connection
            .busy_timeout(patience)
            .and_then(|()| fold(&self.connection, how));
        match folded {
            Ok(is_whole) => {
                if is_whole {
                    self.log_frames.store(0, Ordering::Relaxed);
                }
                if let Some(Err(error)) = self.mark.as_ref().map(Mark::sync) {
                    tracing::warn!("Failed to sync the journal's mark: {error}");
                }
            }
            Err(error) => tracing::debug!("Failed to fold the journal's log: {error}"),
        }
        let _ = self.connection.busy_timeout(LAST_FOLD_WAITS);
    }

    /// Leaves the journal whole in its one file.
    fn close(self) {
        if self.folder.is_there() {
            self.fold(Fold::AndEmpty, LAST_FOLD_WAITS);
        } else {
            // SQLite would delete the log by its name, which is another journal's by now.
            let _ = self
                .connection
                .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        }
    }
}

/// Why nothing of a batch was committed.
#[derive(Debug, Clone)]
enum Trouble {
    Gone,
    Database(Arc<rusqlite::Error>),
}

/// Runs a statement that is run again and again: it is compiled once.
fn execute(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(drop)
}

/// Counts a durable commit inside it; `marker` says what for.
pub(super) fn count_commit(connection: &Connection) -> rusqlite::Result<u64> {
    let count: i64 = connection
        .prepare_cached("UPDATE facts SET value = value + 1 WHERE name = 'commits' RETURNING value")?
        .query_row([], |row| row.get(0))?;
    Ok(count.unsigned_abs())
}

/// What becomes of the log's file when all of it is in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fold {
    /// The next commit writes over it.
    InPlace,
    /// It is emptied.
    AndEmpty,
}

/// Moves the log into the journal. Says whether all of it: a reader may hold up the rest.
pub(super) fn fold(connection: &Connection, how: Fold) -> rusqlite::Result<bool> {
    let sql = match how {
        Fold::InPlace => "PRAGMA wal_checkpoint(RESTART)",
        Fold::AndEmpty => "PRAGMA wal_checkpoint(TRUNCATE)",
    };
    let is_busy: bool = connection.query_row(sql, [], |row| row.get(0))?;
    if is_busy {
        tracing::debug!("A reader holds up the folding of the journal's log");
    }
    Ok(!is_busy)
}

fn in_savepoint<T>(
    connection: &Connection,
    work: &mut impl FnMut(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    execute(connection, "SAVEPOINT operation")?;
    let done = work(connection);
    let ended = match &done {
        Ok(_) => execute(connection, "RELEASE operation"),
        Err(_) => connection.execute_batch("ROLLBACK TO operation; RELEASE operation"),
    };
    if ended.is_err() && !connection.is_autocommit() {
        // Half an operation must not be committed with its neighbours: better none of them.
        let _ = connection.execute_batch("ROLLBACK");
    }
    let value = done?;
    ended?;
    Ok(value)
}
