//! Jobs, peaks and event numbers in `journal.sqlite`.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use calotype_protocol::JobId;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::lock::{self, Lock};
use super::rows::{COLUMNS, number, parsed, record, text};
use super::writer::{Durable, Writer};
use super::{ArtifactHash, StoreError};
use crate::error::Error;
use crate::inference::Plan;
use crate::processing::{Class, JobRecord, JobResult, JobState, Promise};

/// Each once, in order; the file's `user_version` counts those that were done.
const MIGRATIONS: &[&str] = &[include_str!("migrations/1.sql"), include_str!("migrations/2.sql")];

/// Values of several types for one statement.
macro_rules! params_of {
    ($($value:expr),* $(,)?) => { vec![$(Box::new($value) as Box<dyn rusqlite::ToSql>),*] };
}

/// A job to write down.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Its name.
    pub id: JobId,
    /// Its class.
    pub class: Class,
    /// Its priority.
    pub priority: i32,
    /// The client's key.
    pub key: Option<String>,
    /// Digest of the request that came with the key.
    pub key_digest: String,
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
    /// On disk, at this place in the order of arrival.
    New {
        /// Its place.
        sequence: u64,
    },
    /// The key was known, with the same request.
    Existing(Box<JobRecord>),
    /// The key was known, with another request.
    KeyReused,
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

/// What became of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// Written.
    Now,
    /// The job had ended before; nothing was changed.
    Already,
}

/// Whether a job that waits again is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// It may be claimed.
    No,
    /// Not before it is let go.
    Yes,
}

/// Which jobs to list.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// Only in this state.
    pub state: Option<JobState>,
    /// Only older ones than this place.
    pub before_sequence: Option<u64>,
    /// At most so many.
    pub limit: usize,
}

/// The journal. Cheap to clone; closes with its last clone.
#[derive(Clone)]
pub struct Store {
    owned: Arc<Owned>,
    reader: Arc<Mutex<Connection>>,
    path: Arc<Path>,
}

/// In this order: the folder is given back only after the last write.
struct Owned {
    writer: Writer,
    _lock: Lock,
}

impl Store {
    /// Opens or makes the journal of a folder. Jobs that were claimed wait again.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(dir)?;
        let lock = lock::take(dir)?;
        let path = dir.join("journal.sqlite");
        let connection = Connection::open(&path)?;
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        if mode != "wal" {
            return Err(StoreError::NoWal { mode });
        }
        migrate(&connection)?;
        recover(&connection)?;
        let reader = open_to_read(&path)?;
        let owned = Owned {
            writer: Writer::start(connection)?,
            _lock: lock,
        };
        Ok(Self {
            owned: Arc::new(owned),
            reader: Arc::new(Mutex::new(reader)),
            path: path.into(),
        })
    }

    /// Writes a job down, once for each key.
    pub async fn insert(&self, job: NewJob) -> Result<Inserted, StoreError> {
        let durable = match job.promise {
            Promise::Kept => Durable::Yes,
            Promise::AtItsEnd => Durable::No,
        };
        self.owned
            .writer
            .submit(durable, move |connection| {
                if let Some(key) = &job.key {
                    let sql = format!("SELECT {COLUMNS}, key_digest FROM jobs WHERE key = ?1");
                    let mut query = connection.prepare_cached(&sql)?;
                    let mut rows = query.query([key])?;
                    if let Some(row) = rows.next()? {
                        let digest: String = row.get("key_digest")?;
                        return Ok(if digest == job.key_digest {
                            Inserted::Existing(Box::new(record(row)?))
                        } else {
                            Inserted::KeyReused
                        });
                    }
                }
                let mut insert = connection.prepare_cached(
                    "INSERT INTO jobs (id, state, class, priority, key, key_digest, plan, created_at_ms)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                )?;
                let sequence = insert.insert(params![
                    job.id.0,
                    text(&JobState::Queued)?,
                    text(&job.class)?,
                    job.priority,
                    job.key,
                    job.key_digest,
                    text(&job.plan)?,
                    job.created_at_ms as i64,
                ])?;
                Ok(Inserted::New {
                    sequence: sequence as u64,
                })
            })
            .await
    }

    /// A worker has the job.
    pub async fn claim(&self, job: &JobId, attempt: u32, worker: &str, at_ms: u64) -> Result<(), StoreError> {
        let (job, worker) = (job.clone(), worker.to_owned());
        self.change(
            Durable::No,
            "UPDATE jobs SET state = ?2, attempts = ?3, worker = ?4, started_at_ms = ?5
             WHERE id = ?1 AND finished_at_ms IS NULL",
            move || {
                Ok(params_of![
                    job.0,
                    text(&JobState::Running)?,
                    attempt,
                    worker,
                    at_ms as i64
                ])
            },
        )
        .await
    }

    /// The job waits again, or is held out of the queue: one write, so that no crash can tell the two apart.
    pub async fn requeue(&self, job: &JobId, crashes: u32, held: Held) -> Result<(), StoreError> {
        let job = job.clone();
        let (state, durable) = match held {
            Held::No => (JobState::Queued, Durable::No),
            Held::Yes => (JobState::Paused, Durable::Yes),
        };
        self.change(
            durable,
            "UPDATE jobs SET state = ?2, crashes = ?3, worker = NULL WHERE id = ?1 AND finished_at_ms IS NULL",
            move || Ok(params_of![job.0, text(&state)?, crashes]),
        )
        .await
    }

    /// The job is held.
    pub async fn pause(&self, job: &JobId) -> Result<(), StoreError> {
        self.hold(job, JobState::Paused).await
    }

    /// The job is let go.
    pub async fn unpause(&self, job: &JobId) -> Result<(), StoreError> {
        self.hold(job, JobState::Queued).await
    }

    async fn hold(&self, job: &JobId, state: JobState) -> Result<(), StoreError> {
        let job = job.clone();
        self.change(
            Durable::Yes,
            "UPDATE jobs SET state = ?2 WHERE id = ?1 AND finished_at_ms IS NULL",
            move || Ok(params_of![job.0, text(&state)?]),
        )
        .await
    }

    /// The job has ended; the first end stays.
    pub async fn finish(&self, job: &JobId, finish: Finish) -> Result<Finished, StoreError> {
        if !finish.state.is_final() {
            return Err(StoreError::NotFinal(finish.state));
        }
        let job = job.clone();
        self.owned
            .writer
            .submit(Durable::Yes, move |connection| {
                let mut update = connection.prepare_cached(
                    "UPDATE jobs SET state = ?2, result = ?3, error = ?4, finished_at_ms = ?5
                     WHERE id = ?1 AND finished_at_ms IS NULL",
                )?;
                let changed = update.execute(params![
                    job.0,
                    text(&finish.state)?,
                    finish.result.as_ref().map(text).transpose()?,
                    finish.error.as_ref().map(text).transpose()?,
                    finish.finished_at_ms as i64,
                ])?;
                Ok(if changed == 0 {
                    Finished::Already
                } else {
                    Finished::Now
                })
            })
            .await
    }

    /// Forgets a job that has ended.
    pub async fn delete(&self, job: &JobId) -> Result<(), StoreError> {
        let job = job.clone();
        self.change(
            Durable::Yes,
            "DELETE FROM jobs WHERE id = ?1 AND finished_at_ms IS NOT NULL",
            move || Ok(params_of![job.0]),
        )
        .await
    }

    /// One job.
    pub async fn job(&self, job: &JobId) -> Result<Option<JobRecord>, StoreError> {
        let job = job.clone();
        self.read(move |connection| {
            let mut query =
                connection.prepare_cached(&format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1"))?;
            let mut rows = query.query([job.0])?;
            rows.next()?.map(record).transpose()
        })
        .await
    }

    /// Jobs, newest first.
    pub async fn jobs(&self, filter: JobFilter) -> Result<Vec<JobRecord>, StoreError> {
        self.read(move |connection| {
            let state = filter.state.as_ref().map(text).transpose()?;
            let before = filter
                .before_sequence
                .map_or(i64::MAX, |before| i64::try_from(before).unwrap_or(i64::MAX));
            let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
            let mut query = connection.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM jobs WHERE sequence < ?1 AND (?2 IS NULL OR state = ?2)
                 ORDER BY sequence DESC LIMIT ?3"
            ))?;
            let mut rows = query.query(params![before, state, limit])?;
            let mut records = Vec::new();
            while let Some(row) = rows.next()? {
                records.push(record(row)?);
            }
            Ok(records)
        })
        .await
    }

    /// Jobs that have not ended, in the order of arrival.
    pub async fn unfinished(&self) -> Result<Vec<JobRecord>, StoreError> {
        self.read(move |connection| {
            let sql = format!("SELECT {COLUMNS} FROM jobs WHERE finished_at_ms IS NULL ORDER BY sequence");
            let mut query = connection.prepare(&sql)?;
            let mut rows = query.query([])?;
            let mut records = Vec::new();
            while let Some(row) = rows.next()? {
                records.push(record(row)?);
            }
            Ok(records)
        })
        .await
    }

    /// How many jobs are in each state; a state without jobs is left out.
    pub async fn counts(&self) -> Result<HashMap<JobState, u64>, StoreError> {
        self.read(|connection| {
            let mut query = connection.prepare_cached("SELECT state, count(*) FROM jobs GROUP BY state")?;
            let mut rows = query.query([])?;
            let mut counts = HashMap::new();
            while let Some(row) = rows.next()? {
                counts.insert(parsed(&row.get::<_, String>(0)?)?, number(row.get(1)?)?);
            }
            Ok(counts)
        })
        .await
    }

    /// Every artifact that a job refers to. Reads every job, by a connection of its own: no client waits behind it.
    pub async fn referenced_artifacts(&self) -> Result<HashSet<ArtifactHash>, StoreError> {
        let path = Arc::clone(&self.path);
        tokio::task::spawn_blocking(move || {
            let connection = open_to_read(&path)?;
            let mut query = connection.prepare(&format!("SELECT {COLUMNS} FROM jobs"))?;
            let mut rows = query.query([])?;
            let mut kept = HashSet::new();
            while let Some(row) = rows.next()? {
                let record = record(row)?;
                kept.extend(record.plan.inputs().cloned());
                kept.extend(
                    record
                        .result
                        .into_iter()
                        .flat_map(|result| result.images)
                        .map(|image| image.artifact),
                );
            }
            Ok(kept)
        })
        .await
        .map_err(|_| StoreError::Closed)?
    }

    /// Keeps the highest working set of a shape.
    pub async fn record_peak(&self, shape: &str, bytes: u64) -> Result<(), StoreError> {
        let shape = shape.to_owned();
        self.change(
            Durable::No,
            "INSERT INTO peaks VALUES (?1, ?2, ?2, 1) ON CONFLICT (shape) DO UPDATE SET
             highest_bytes = max(highest_bytes, ?2), last_bytes = ?2, times = times + 1",
            move || Ok(params_of![shape, bytes as i64]),
        )
        .await
    }

    /// The highest working set of each shape.
    pub async fn peaks(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.read(|connection| {
            let mut query = connection.prepare("SELECT shape, highest_bytes FROM peaks")?;
            let rows = query.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?)))?;
            let mut peaks = Vec::new();
            for row in rows {
                let (shape, bytes) = row?;
                peaks.push((shape, u64::try_from(bytes).unwrap_or(0)));
            }
            Ok(peaks)
        })
        .await
    }

    /// The first of `count` event numbers that nobody had before.
    pub async fn reserve_event_ids(&self, count: u64) -> Result<u64, StoreError> {
        self.owned
            .writer
            .submit(Durable::Yes, move |connection| {
                let next: i64 = connection
                    .query_row("SELECT value FROM facts WHERE name = 'next_event'", [], |row| {
                        row.get(0)
                    })
                    .optional()?
                    .unwrap_or(1);
                connection.execute(
                    "INSERT INTO facts VALUES ('next_event', ?1) ON CONFLICT (name) DO UPDATE SET value = ?1",
                    [next.saturating_add_unsigned(count)],
                )?;
                Ok(next.unsigned_abs())
            })
            .await
    }

    async fn change(
        &self,
        durable: Durable,
        sql: &'static str,
        values: impl FnOnce() -> Result<Vec<Box<dyn rusqlite::ToSql>>, StoreError> + Send + 'static,
    ) -> Result<(), StoreError> {
        self.owned
            .writer
            .submit(durable, move |connection| {
                connection
                    .prepare_cached(sql)?
                    .execute(rusqlite::params_from_iter(values()?))?;
                Ok(())
            })
            .await
    }

    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let reader = Arc::clone(&self.reader);
        tokio::task::spawn_blocking(move || query(&reader.lock().unwrap_or_else(PoisonError::into_inner)))
            .await
            .map_err(|_| StoreError::Closed)?
    }
}

fn open_to_read(path: &Path) -> Result<Connection, StoreError> {
    Ok(Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY,
    )?)
}

/// What was claimed by an engine that is no more waits again.
fn recover(connection: &Connection) -> Result<(), StoreError> {
    connection.execute(
        "UPDATE jobs SET state = ?1, worker = NULL WHERE state = ?2",
        params![text(&JobState::Queued)?, text(&JobState::Running)?],
    )?;
    Ok(())
}

fn migrate(connection: &Connection) -> Result<(), StoreError> {
    let done: usize = connection
        .pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))?
        .unsigned_abs() as usize;
    if done > MIGRATIONS.len() {
        return Err(StoreError::TooNew {
            found: done,
            known: MIGRATIONS.len(),
        });
    }
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(done) {
        connection.execute_batch(&format!(
            "BEGIN; {migration} PRAGMA user_version = {}; COMMIT",
            index + 1
        ))?;
    }
    Ok(())
}
