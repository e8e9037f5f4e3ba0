//! The one writing thread. Everything that waits is committed together; each operation stands in a savepoint of its
//! own, so that one that fails does not spoil the others.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::StoreError;

/// Most operations of one commit: bounds how long the first of them waits.
const MOST_TOGETHER: usize = 512;

/// Whether an operation must outlive a power failure before it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durable {
    /// It was promised to somebody.
    Yes,
    /// Lost, it is done again: a claim becomes a queued job.
    No,
}

/// What is done inside the transaction, while there is one; it returns what to do after the commit (or its failure).
type Work = Box<dyn FnOnce(Option<&Connection>) -> Answer + Send>;
type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

struct Operation {
    durable: Durable,
    work: Work,
}

/// The way to the writing thread. When it is dropped, what was queued is written, and the journal closed.
pub(super) struct Writer {
    operations: Option<Sender<Operation>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(connection: Connection) -> Result<Self, StoreError> {
        let (operations, inbox) = channel();
        let thread = thread::Builder::new()
            .name("store".into())
            .spawn(move || run(&connection, &inbox))?;
        Ok(Self {
            operations: Some(operations),
            thread: Some(thread),
        })
    }

    /// Queues an operation at once, in the order of the calls; the future waits for its commit.
    pub(super) fn submit<T, F>(
        &self,
        durable: Durable,
        operation: F,
    ) -> impl Future<Output = Result<T, StoreError>> + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let work: Work = Box::new(move |connection| {
            let done = connection.map(|connection| in_savepoint(connection, operation));
            Box::new(move |committed| {
                let done = done.unwrap_or(Err(StoreError::Closed));
                let _ = reply.send(match (done, committed) {
                    (Ok(value), Ok(())) => Ok(value),
                    (Ok(_) | Err(StoreError::Closed), Err(error)) => Err(error),
                    (Err(error), _) => Err(error),
                });
            })
        });
        // A closed channel drops the reply, which the future tells.
        if let Some(operations) = &self.operations {
            let _ = operations.send(Operation { durable, work });
        }
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

fn run(connection: &Connection, inbox: &Receiver<Operation>) {
    while let Ok(first) = inbox.recv() {
        let mut batch = vec![first];
        batch.extend(inbox.try_iter().take(MOST_TOGETHER - 1));
        write_together(connection, batch);
    }
}

fn write_together(connection: &Connection, batch: Vec<Operation>) {
    let durable = batch.iter().any(|operation| operation.durable == Durable::Yes);
    let began = begin(connection, durable);
    let mut answers = Vec::with_capacity(batch.len());
    for Operation { durable: _, work } in batch {
        // SQLite ends a transaction by itself when the disk is full or fails. Outside of one nothing is done: it would
        // be kept although its caller is told that it was not.
        let is_open = began.is_ok() && !connection.is_autocommit();
        answers.push(work(is_open.then_some(connection)));
    }
    let committed = began.and_then(|()| connection.execute_batch("COMMIT"));
    if committed.is_err() && !connection.is_autocommit() {
        let _ = connection.execute_batch("ROLLBACK");
    }
    let committed = committed.map_err(Arc::new);
    for answer in answers {
        answer(committed.clone().map_err(StoreError::NotCommitted));
    }
}

fn begin(connection: &Connection, durable: bool) -> rusqlite::Result<()> {
    let level = if durable { "FULL" } else { "NORMAL" };
    connection.execute_batch(&format!("PRAGMA synchronous={level}; BEGIN IMMEDIATE"))
}

fn in_savepoint<T>(
    connection: &Connection,
    operation: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    connection.execute_batch("SAVEPOINT operation")?;
    let done = operation(connection);
    let ended = match &done {
        Ok(_) => connection.execute_batch("RELEASE operation"),
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
