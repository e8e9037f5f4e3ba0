//! How many finished jobs are kept. Unfinished ones, and those that ended or were fetched within the last hour, always are.

use std::collections::HashMap;
use std::time::Duration;

use rusqlite::Connection;

use super::folder::{FETCHED_FOR, Space};
use super::open::{Store, WeakStore};
use super::sweep::forget;
use super::writer::Durable;
use super::{ArtifactHash, Artifacts, StoreError};
use crate::processing::now_ms;

/// Jobs that are deleted in one transaction: the writer is not held up for long.
const AT_ONCE: usize = 500;
/// How often old jobs and loose artifacts are looked for.
const EVERY: Duration = Duration::from_secs(600);

/// Limits on finished jobs; the oldest are deleted until all limits hold. Their artifacts go to the trash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Longest time since a job's end.
    pub max_age: Option<Duration>,
    /// Most finished jobs.
    pub max_jobs: Option<u64>,
    /// Most bytes of all artifacts that jobs refer to.
    pub max_bytes: Option<u64>,
}

impl Default for Retention {
    /// The newest 100 000 jobs, however old and large: about a month of one picture every 25 seconds, and a journal of a few
    /// hundred megabytes.
    fn default() -> Self {
        Self {
            max_age: None,
            max_jobs: Some(100_000),
            max_bytes: None,
        }
    }
}

impl Retention {
    /// Keeps every job for ever.
    pub const ALL: Self = Self {
        max_age: None,
        max_jobs: None,
        max_bytes: None,
    };
}

/// A finished job that may be deleted.
struct Candidate {
    sequence: i64,
    finished_at_ms: u64,
    hashes: Vec<ArtifactHash>,
}

impl Store {
    /// Deletes finished jobs, the oldest first, until the limits hold; returns how many. Their artifacts become loose.
    pub async fn prune(&self, retention: &Retention, now_ms: u64) -> Result<u64, StoreError> {
        if *retention == Retention::ALL {
            return Ok(0);
        }
        let settled_ms = now_ms.saturating_sub(FETCHED_FOR.as_millis() as u64);
        let (finished, candidates) = self.read(move |connection| look(connection, settled_ms)).await?;
        let fetched = self.owned.folder.fetched();
        let candidates: Vec<Candidate> = candidates
            .into_iter()
            .filter(|job| !job.hashes.iter().any(|hash| fetched.contains_key(hash)))
            .collect();
        let surplus = retention.max_jobs.map_or(0, |most| finished.saturating_sub(most));
        let oldest_ms = retention.max_age.map_or(0, |age| {
            now_ms.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
        });
        let mut weight = match retention.max_bytes {
            Some(most_bytes) => Some((self.weigh().await?, most_bytes)),
            None => None,
        };
        let mut doomed = Vec::new();
        for job in candidates {
            let is_surplus = (doomed.len() as u64) < surplus;
            let is_old = job.finished_at_ms < oldest_ms;
            let is_heavy = weight
                .as_ref()
                .is_some_and(|(weight, most_bytes)| weight.total_bytes > *most_bytes);
            if !(is_surplus || is_old || is_heavy) {
                break; // the others are younger
            }
            if let Some((weight, _)) = &mut weight {
                weight.without(&job.hashes);
            }
            doomed.push(job.sequence);
        }
        let pruned = doomed.len() as u64;
        for piece in doomed.chunks(AT_ONCE) {
            let piece = piece.to_vec();
            self.owned
                .writer
                .submit(Durable::Yes, Space::Frees, move |connection| {
                    piece
                        .iter()
                        .try_for_each(|sequence| forget(connection, *sequence, now_ms))
                })
                .await?;
        }
        Ok(pruned)
    }

    async fn weigh(&self) -> Result<Weight, StoreError> {
        let artifacts = self.artifacts();
        self.read(move |connection| Weight::of(connection, &artifacts))
            .await
    }
}

/// Finished jobs in all, and those that may be deleted, the oldest first.
fn look(connection: &Connection, settled_ms: u64) -> Result<(u64, Vec<Candidate>), StoreError> {
    let finished: i64 = connection
        .prepare_cached("SELECT count(*) FROM jobs WHERE finished_at_ms IS NOT NULL")?
        .query_row([], |row| row.get(0))?;
    let mut query = connection.prepare_cached(
        "SELECT jobs.sequence, jobs.finished_at_ms, artifact_refs.hash
         FROM jobs LEFT JOIN artifact_refs ON artifact_refs.job = jobs.sequence
         WHERE finished_at_ms IS NOT NULL AND finished_at_ms <= ?1 ORDER BY finished_at_ms, sequence",
    )?;
    let mut rows = query.query([settled_ms.cast_signed()])?;
    let mut candidates: Vec<Candidate> = Vec::new();
    while let Some(row) = rows.next()? {
        let sequence = row.get(0)?;
        let hash = row.get::<_, Option<String>>(2)?.map(ArtifactHash);
        match candidates.last_mut() {
            Some(last) if last.sequence == sequence => last.hashes.extend(hash),
            Some(_) | None => candidates.push(Candidate {
                sequence,
                finished_at_ms: row.get::<_, i64>(1)?.unsigned_abs(),
                hashes: hash.into_iter().collect(),
            }),
        }
    }
    Ok((finished.unsigned_abs(), candidates))
}

/// The artifacts that jobs refer to: how many jobs each has, and its size.
struct Weight {
    total_bytes: u64,
    files: HashMap<ArtifactHash, (u64, u64)>,
}

impl Weight {
    fn of(connection: &Connection, artifacts: &Artifacts) -> Result<Self, StoreError> {
        let mut query =
            connection.prepare_cached("SELECT hash, count(*) FROM artifact_refs GROUP BY hash")?;
        let mut rows = query.query([])?;
        let (mut total_bytes, mut files) = (0, HashMap::new());
        while let Some(row) = rows.next()? {
            let hash = ArtifactHash(row.get(0)?);
            let bytes = std::fs::metadata(artifacts.path(&hash)).map_or(0, |facts| facts.len());
            total_bytes += bytes;
            files.insert(hash, (row.get::<_, i64>(1)?.unsigned_abs(), bytes));
        }
        Ok(Self { total_bytes, files })
    }

    /// A job with these artifacts is deleted.
    fn without(&mut self, hashes: &[ArtifactHash]) {
        for hash in hashes {
            if let Some((jobs, bytes)) = self.files.get_mut(hash) {
                *jobs = jobs.saturating_sub(1);
                if *jobs == 0 {
                    self.total_bytes = self.total_bytes.saturating_sub(*bytes);
                }
            }
        }
    }
}

/// Deletes old jobs and sweeps, at the start and every ten minutes, until nobody has the store open any more.
pub async fn keep_tidy(store: WeakStore, retention: Retention) {
    let mut turns = tokio::time::interval(EVERY);
    loop {
        turns.tick().await;
        let Some(store) = store.upgrade() else {
            return;
        };
        match store.prune(&retention, now_ms()).await {
            Ok(0) => {}
            Ok(pruned) => tracing::info!("Deleted {pruned} finished jobs beyond what is to be kept"),
            Err(error) => tracing::warn!("Failed to delete old jobs: {error}"),
        }
        match store.sweep().await {
            Ok(swept) => tracing::debug!("Swept the artifacts: {swept:?}"),
            Err(error) => tracing::warn!("Failed to sweep the artifacts, loose ones stay: {error}"),
        }
    }
}
