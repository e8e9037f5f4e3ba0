//! Writing jobs down, once for each idempotency key.

use calotype_protocol::JobId;
use rusqlite::{Connection, params};

use super::folder::Space;
use super::journal::by_key;
use super::open::Store;
use super::rows::text;
use super::writer::Durable;
use super::{StoreError, refs};
use crate::inference::Plan;
use crate::processing::job::{Class, JobRecord, JobState, Promise};

/// A job to write down.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// The id of the job.
    pub id: JobId,
    /// Its class.
    pub class: Class,
    /// Its priority.
    pub priority: i32,
    /// The client's key.
    pub key: Option<String>,
    /// Digest of the request that came with the key; empty where there is no key.
    pub key_digest: String,
    /// Who submits it; empty where the server does not tell its clients apart.
    pub client: String,
    /// What to do.
    pub plan: Plan,
    /// Whether it must be on disk before anybody is told.
    pub promise: Promise,
    /// Milliseconds since 1970.
    pub created_at_ms: u64,
}

/// What became of it.
#[derive(Debug)]
pub enum Inserted {
    /// Written, at this place in the order of arrival.
    New {
        /// Its place.
        sequence: u64,
    },
    /// The key was known, with the same request.
    Existing(Box<JobRecord>),
    /// The key was known, with another request.
    KeyReused,
}

impl Store {
    /// Writes a job down, once for each key.
    pub async fn insert(&self, job: NewJob) -> Result<Inserted, StoreError> {
        self.owned
            .writer
            .submit(durable(&job), Space::Takes, move |connection| {
                insert(connection, &job)
            })
            .await
    }

    /// Writes jobs down in one transaction, all or none; the answers are in the order of the jobs. A known key is an
    /// answer and no failure.
    pub async fn insert_many(&self, jobs: Vec<NewJob>) -> Result<Vec<Inserted>, StoreError> {
        let durable = jobs.iter().map(durable).max().unwrap_or(Durable::No);
        self.owned
            .writer
            .submit(durable, Space::Takes, move |connection| {
                jobs.iter().map(|job| insert(connection, job)).collect()
            })
            .await
    }
}

fn durable(job: &NewJob) -> Durable {
    match job.promise {
        Promise::Kept => Durable::Yes,
        Promise::AtItsEnd => Durable::No,
    }
}

fn insert(connection: &Connection, job: &NewJob) -> Result<Inserted, StoreError> {
    if let Some(key) = &job.key
        && let Some((known, digest)) = by_key(connection, key)?
    {
        return Ok(if digest == job.key_digest {
            Inserted::Existing(Box::new(known))
        } else {
            Inserted::KeyReused
        });
    }
    let mut insert = connection.prepare_cached(
        "INSERT INTO jobs (id, state, class, priority, key, key_digest, client, plan, created_at_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?;
    let sequence = insert.insert(params![
        job.id.0,
        text(&JobState::Queued)?,
        text(&job.class)?,
        job.priority,
        job.key,
        job.key_digest,
        job.client,
        text(&job.plan)?,
        job.created_at_ms.cast_signed(),
    ])?;
    refs::add(connection, sequence, job.plan.inputs())?;
    Ok(Inserted::New {
        sequence: sequence.unsigned_abs(),
    })
}
