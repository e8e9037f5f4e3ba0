//! What is asked of the journal: jobs, peaks, event numbers.

use calotype_protocol::JobId;
use rusqlite::{Connection, OptionalExtension, Params, params};

use super::StoreError;
use super::folder::Space;
use super::open::Store;
use super::rows::{COLUMNS, record, text};
use super::writer::Durable;
use crate::processing::job::{JobRecord, JobState};

/// Which jobs to list.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// Only in this state. The journal knows `Queued`, `Running` (claimed), `Paused` and the final states; the states
    /// between live only in memory, and nothing is ever found in them here.
    pub state: Option<JobState>,
    /// Only older ones than this place.
    pub before_sequence: Option<u64>,
    /// At most so many.
    pub limit: usize,
}

impl Store {
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

    /// The job of an idempotency key, with the digest of the request that came with the key.
    pub async fn by_key(&self, key: &str) -> Result<Option<(JobRecord, String)>, StoreError> {
        let key = key.to_owned();
        self.read(move |connection| by_key(connection, &key)).await
    }

    /// The jobs at these places in the order of arrival; those that were deleted are left out.
    pub async fn by_sequences(&self, sequences: &[u64]) -> Result<Vec<JobRecord>, StoreError> {
        let sequences = sequences.to_vec();
        self.read(move |connection| {
            let mut query =
                connection.prepare_cached(&format!("SELECT {COLUMNS} FROM jobs WHERE sequence = ?1"))?;
            let mut found = Vec::with_capacity(sequences.len());
            for sequence in sequences {
                let mut rows = query.query([sequence.cast_signed()])?;
                found.extend(rows.next()?.map(record).transpose()?);
            }
            Ok(found)
        })
        .await
    }

    /// Jobs, newest first.
    pub async fn jobs(&self, filter: JobFilter) -> Result<Vec<JobRecord>, StoreError> {
        self.read(move |connection| {
            let before = filter
                .before_sequence
                .map_or(i64::MAX, |before| i64::try_from(before).unwrap_or(i64::MAX));
            let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
            match filter.state {
                Some(state) => records(
                    connection,
                    &of_state(state),
                    params![text(&state)?, before, limit],
                ),
                None => {
                    let sql = "WHERE sequence < ?1 ORDER BY sequence DESC LIMIT ?2";
                    records(connection, sql, params![before, limit])
                }
            }
        })
        .await
    }

    /// Jobs that have not ended, in the order of arrival.
    pub async fn unfinished(&self) -> Result<Vec<JobRecord>, StoreError> {
        self.read(|connection| records(connection, "WHERE finished_at_ms IS NULL ORDER BY sequence", []))
            .await
    }

    /// The highest working set of each shape.
    pub async fn peaks(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.read(|connection| {
            let mut query = connection.prepare_cached("SELECT shape, highest_bytes FROM peaks")?;
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
            .submit(Durable::Yes, Space::Keeps, move |connection| {
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
}

/// Jobs in a state, newest first. Those that have ended and the others have an index each.
pub(super) fn of_state(state: JobState) -> String {
    let has_ended = if state.is_final() {
        "IS NOT NULL"
    } else {
        "IS NULL"
    };
    format!(
        "WHERE finished_at_ms {has_ended} AND state = ?1 AND sequence < ?2 ORDER BY sequence DESC LIMIT ?3"
    )
}

pub(super) fn by_key(connection: &Connection, key: &str) -> Result<Option<(JobRecord, String)>, StoreError> {
    let sql = format!("SELECT {COLUMNS}, key_digest FROM jobs WHERE key = ?1");
    let mut query = connection.prepare_cached(&sql)?;
    let mut rows = query.query([key])?;
    match rows.next()? {
        Some(row) => Ok(Some((record(row)?, row.get("key_digest")?))),
        None => Ok(None),
    }
}

fn records(connection: &Connection, rest: &str, values: impl Params) -> Result<Vec<JobRecord>, StoreError> {
    let mut query = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM jobs {rest}"))?;
    let mut rows = query.query(values)?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        records.push(record(row)?);
    }
    Ok(records)
}
