//! The one writing thread. Everything that waits is committed together; each operation stands in a savepoint of its
//! own, so that one that fails does not spoil the others.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

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

/// What is done inside the transaction; it returns what to do after the commit (or its failure).
type Work = Box<dyn FnOnce(&Connection) -> Answer + Send>;
type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

struct Operation {
    durable: Durable,
    work: Work,
}

/// The way to the writing thread.
#[derive(Clone)]
pub(super) struct Writer {
    operations: Sender<Operation>,
}

impl Writer {
    pub(super) fn start(connection: Connection) -> Result<Self, StoreError> {
        let (operations, inbox) = channel();
        thread::Builder::new()
            .name("store".into())
            .spawn(move || run(connection, &inbox))?;
        Ok(Self { operations })
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
            let done = in_savepoint(connection, operation);
            Box::new(move |committed| {
                let _ = reply.send(committed.and(done));
            })
        });
        // A closed channel drops the reply, which the future tells.
        let _ = self.operations.send(Operation { durable, work });
        async move { answer.await.unwrap_or(Err(StoreError::Closed)) }
    }
}

fn in_savepoint<T>(
    connection: &Connection,
    operation: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    connection.execute_batch("SAVEPOINT operation")?;
    match operation(connection) {
        Ok(value) => {
            connection.execute_batch("RELEASE operation")?;
            Ok(value)
        }
        Err(error) => {
            connection.execute_batch("ROLLBACK TO operation; RELEASE operation")?;
            Err(error)
        }
    }
}

fn run(connection: Connection, inbox: &Receiver<Operation>) {
    while let Ok(first) = inbox.recv() {
        let mut batch = vec![first];
        batch.extend(inbox.try_iter().take(MOST_TOGETHER - 1));
        let durable = batch.iter().any(|operation| operation.durable == Durable::Yes);
        let began = begin(&connection, durable);
        let mut answers = Vec::with_capacity(batch.len());
        for operation in batch {
            answers.push((operation.work)(&connection));
        }
        let committed = began.and_then(|()| Ok(connection.execute_batch("COMMIT")?));
        if committed.is_err() && !connection.is_autocommit() {
            let _ = connection.execute_batch("ROLLBACK");
        }
        let failure = committed.err().map(|error| error.to_string());
        for answer in answers {
            answer(match &failure {
                None => Ok(()),
                Some(text) => Err(StoreError::Strange(format!("the commit failed: {text}"))),
            });
        }
    }
}

fn begin(connection: &Connection, durable: bool) -> Result<(), StoreError> {
    let level = if durable { "FULL" } else { "NORMAL" };
    connection.execute_batch(&format!("PRAGMA synchronous={level}; BEGIN IMMEDIATE"))?;
    Ok(())
}
