//! How many finished jobs are kept. Unfinished ones, and those that ended or were fetched within the last hour, always are.

use std::collections::HashMap;
use std::time::Duration;

use rusqlite::Connection;

use super::folder::{FETCHED_FOR, Space};
use super::open::{Store, WeakStore};
use super::sweep::forget;
use super::writer::Durable;
use super::{ArtifactHash, Artifacts, StoreError, refs};
use crate::clock::now_ms as clock_ms;

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

impl Store {
    /// Deletes finished jobs, the oldest first, until the limits hold; returns how many. Their artifacts become loose.
    pub async fn prune(&self, retention: &Retention, now_ms: u64) -> Result<u64, StoreError> {
        if *retention == Retention::ALL {
            return Ok(0);
        }
        let (retention, artifacts) = (*retention, self.artifacts());
        let fetched = self.owned.folder.fetched();
        let doomed = self
            .read(move |connection| {
                let keep = |hash: &ArtifactHash| fetched.contains_key(hash);
                doomed(connection, &artifacts, retention, keep, now_ms)
            })
            .await?;
        for piece in doomed.chunks(AT_ONCE) {
            let piece = piece.to_vec();
            self.owned
                .writer
                .submit(Durable::Yes, Space::Frees, move |connection| {
                    piece
                        .iter()
                        .try_for_each(|sequence| forget(connection, *sequence, clock_ms()))
                })
                .await?;
        }
        Ok(doomed.len() as u64)
    }
}

/// The finished jobs that have to go, the oldest first.
fn doomed(
    connection: &Connection,
    artifacts: &Artifacts,
    retention: Retention,
    keep: impl Fn(&ArtifactHash) -> bool,
    now_ms: u64,
) -> Result<Vec<i64>, StoreError> {
    let ago = |age: Duration| now_ms.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    let finished: i64 = connection
        .prepare_cached("SELECT count(*) FROM jobs WHERE finished_at_ms IS NOT NULL")?
        .query_row([], |row| row.get(0))?;
    let Retention {
        max_age,
        max_jobs,
        max_bytes,
    } = retention;
    let surplus = max_jobs.map_or(0, |most| finished.unsigned_abs().saturating_sub(most));
    if surplus == 0 && max_age.is_none() && max_bytes.is_none() {
        return Ok(Vec::new());
    }
    let oldest_ms = max_age.map_or(0, ago);
    let mut weight = max_bytes.map(|_| Weight::of(connection, artifacts)).transpose()?;
    let mut query = connection.prepare_cached(
        "SELECT sequence, finished_at_ms FROM jobs WHERE finished_at_ms IS NOT NULL AND finished_at_ms <= ?1
         ORDER BY finished_at_ms, sequence",
    )?;
    let mut rows = query.query([ago(FETCHED_FOR).cast_signed()])?;
    let mut doomed = Vec::new();
    while let Some(row) = rows.next()? {
        let (sequence, finished_at_ms): (i64, i64) = (row.get(0)?, row.get(1)?);
        let is_surplus = (doomed.len() as u64) < surplus;
        let is_old = finished_at_ms.unsigned_abs() < oldest_ms;
        let is_heavy = weight
            .as_ref()
            .zip(max_bytes)
            .is_some_and(|(weight, most_bytes)| weight.total_bytes > most_bytes);
        if !(is_surplus || is_old || is_heavy) {
            break; // the others are younger
        }
        let hashes = refs::of_job(connection, sequence)?;
        if hashes.iter().any(&keep) {
            continue;
        }
        if let Some(weight) = &mut weight {
            weight.without(&hashes);
        }
        doomed.push(sequence);
    }
    Ok(doomed)
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
pub async fn keep_tidy(mut store: WeakStore, retention: Retention) {
    let mut turns = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            _ = turns.tick() => {}
            () = store.closed() => return,
        }
        let Some(store) = store.upgrade() else {
            return;
        };
        match store.prune(&retention, clock_ms()).await {
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
