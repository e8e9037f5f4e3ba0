//! The changes of the journal, in the order in which the dispatcher decides them.

use std::pin::Pin;
use std::task::{Context, Poll};

use calotype_protocol::JobId;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::oneshot;

use super::folder::Space;
use super::open::Store;
use super::rows::text;
use super::writer::Durable;
use super::{StoreError, refs};
use crate::error::Error;
use crate::processing::job::{JobResult, JobState};

/// One change of the journal, as the dispatcher decided it. None of them changes a job that has ended.
#[derive(Debug, Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "a few at a time, on their way to the writer"
)]
pub enum Write {
    /// A worker has the job.
    Claim {
        /// The job.
        job: JobId,
        /// Counts from 1.
        attempt: u32,
        /// The worker's name.
        worker: String,
        /// Milliseconds since 1970.
        at_ms: u64,
    },
    /// The job waits again, or is held out of the queue: one write, so that no crash can tell the two apart.
    Requeue {
        /// The job.
        job: JobId,
        /// How many workers died with it.
        crashes: u32,
        /// Whether it may be claimed.
        held: Held,
    },
    /// The job is held, or let go.
    Hold {
        /// The job.
        job: JobId,
        /// Whether it may be claimed.
        held: Held,
    },
    /// The job has ended; the first end stays.
    Finish {
        /// The job.
        job: JobId,
        /// How it ended.
        finish: Finish,
    },
    /// A working set was measured; the journal keeps the highest of each shape.
    Peak {
        /// What was worked on, as `memory/peaks` names it.
        shape: String,
        /// The working set.
        bytes: u64,
    },
}

/// How a job ended.
#[derive(Debug, Clone)]
pub struct Finish {
    /// A final state.
    pub state: JobState,
    /// Pictures and figures.
    pub result: Option<JobResult>,
    /// Why there are none.
    pub error: Option<Error>,
    /// Milliseconds since 1970.
    pub finished_at_ms: u64,
}

/// Whether a job that waits is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// It may be claimed.
    No,
    /// Not before it is let go.
    Yes,
}

impl Held {
    fn state(self) -> JobState {
        match self {
            Self::No => JobState::Queued,
            Self::Yes => JobState::Paused,
        }
    }
}

/// Tells when the changes of one call are written. Dropping it undoes nothing.
#[derive(Debug)]
#[must_use = "a write that fails says so only here"]
pub struct Receipt(Result<oneshot::Receiver<Result<(), StoreError>>, Option<StoreError>>);

impl Future for Receipt {
    type Output = Result<(), StoreError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Ok(answer) => Pin::new(answer)
                .poll(context)
                .map(|answer| answer.unwrap_or(Err(StoreError::Closed))),
            Err(refused) => Poll::Ready(Err(refused.take().unwrap_or(StoreError::Closed))),
        }
    }
}

impl Store {
    /// Queues changes at once, behind those of earlier calls; they are written together or not at all. The receipt waits
    /// for the disk where one of them must outlive a power failure: an end or a hold.
    pub fn write(&self, writes: Vec<Write>) -> Receipt {
        for write in &writes {
            if let Write::Finish { finish, .. } = write
                && !finish.state.is_final()
            {
                return Receipt(Err(Some(StoreError::NotFinal(finish.state))));
            }
        }
        let durable = writes.iter().map(durable).max().unwrap_or(Durable::No);
        let frees = writes.iter().any(|write| matches!(write, Write::Finish { .. }));
        let space = if frees { Space::Frees } else { Space::Keeps };
        let answer = self.owned.writer.enqueue(durable, space, move |connection| {
            writes.iter().try_for_each(|write| apply(connection, write))
        });
        Receipt(Ok(answer))
    }
}

fn durable(write: &Write) -> Durable {
    match write {
        Write::Finish { .. } | Write::Hold { .. } | Write::Requeue { held: Held::Yes, .. } => Durable::Yes,
        Write::Claim { .. } | Write::Peak { .. } | Write::Requeue { held: Held::No, .. } => Durable::No,
    }
}

fn apply(connection: &Connection, write: &Write) -> Result<(), StoreError> {
    match write {
        Write::Claim {
            job,
            attempt,
            worker,
            at_ms,
        } => {
            connection
                .prepare_cached(
                    "UPDATE jobs SET state = ?2, attempts = ?3, worker = ?4, started_at_ms = ?5
                     WHERE id = ?1 AND finished_at_ms IS NULL",
                )?
                .execute(params![
                    job.0,
                    text(&JobState::Running)?,
                    attempt,
                    worker,
                    at_ms.cast_signed()
                ])?;
        }
        Write::Requeue { job, crashes, held } => {
            connection
                .prepare_cached(
                    "UPDATE jobs SET state = ?2, crashes = ?3, worker = NULL
                     WHERE id = ?1 AND finished_at_ms IS NULL",
                )?
                .execute(params![job.0, text(&held.state())?, crashes])?;
        }
        Write::Hold { job, held } => {
            connection
                .prepare_cached("UPDATE jobs SET state = ?2 WHERE id = ?1 AND finished_at_ms IS NULL")?
                .execute(params![job.0, text(&held.state())?])?;
        }
        Write::Finish { job, finish } => end(connection, job, finish)?,
        Write::Peak { shape, bytes } => {
            connection
                .prepare_cached(
                    "INSERT INTO peaks VALUES (?1, ?2, ?2, 1) ON CONFLICT (shape) DO UPDATE SET
                     highest_bytes = max(highest_bytes, ?2), last_bytes = ?2, times = times + 1",
                )?
                .execute(params![shape, bytes.cast_signed()])?;
        }
    }
    Ok(())
}

fn end(connection: &Connection, job: &JobId, finish: &Finish) -> Result<(), StoreError> {
    let sequence: Option<i64> = connection
        .prepare_cached(
            "UPDATE jobs SET state = ?2, result = ?3, error = ?4, finished_at_ms = ?5
             WHERE id = ?1 AND finished_at_ms IS NULL RETURNING sequence",
        )?
        .query_row(
            params![
                job.0,
                text(&finish.state)?,
                finish.result.as_ref().map(text).transpose()?,
                finish.error.as_ref().map(text).transpose()?,
                finish.finished_at_ms.cast_signed(),
            ],
            |row| row.get(0),
        )
        .optional()?;
    if let (Some(sequence), Some(result)) = (sequence, &finish.result) {
        refs::add(
            connection,
            sequence,
            result.images.iter().map(|image| &image.artifact),
        )?;
    }
    Ok(())
}
