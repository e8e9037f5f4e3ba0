//! A job between its row and its type.

use calotype_protocol::JobId;
use rusqlite::Row;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;
use crate::processing::job::JobRecord;

/// What [`record`] reads, in its order.
pub(super) const COLUMNS: &str = "sequence, id, state, class, priority, key, plan, attempts, crashes, result, error, \
    created_at_ms, started_at_ms, finished_at_ms, client";

/// A value as JSON text.
pub(super) fn text(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Strange(error.to_string()))
}

/// A value from JSON text.
pub(super) fn parsed<T: DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Strange(error.to_string()))
}

/// A number that SQLite keeps as `i64`.
pub(super) fn number<T: TryFrom<i64>>(value: i64) -> Result<T, StoreError> {
    T::try_from(value)
        .map_err(|_| StoreError::Strange(format!("{value} where a smaller or positive number belongs")))
}

/// A job from [`COLUMNS`].
pub(super) fn record(row: &Row<'_>) -> Result<JobRecord, StoreError> {
    let optional = |index| -> Result<Option<u64>, StoreError> {
        row.get::<_, Option<i64>>(index)?.map(number).transpose()
    };
    Ok(JobRecord {
        sequence: number(row.get(0)?)?,
        id: JobId(row.get(1)?),
        state: parsed(&row.get::<_, String>(2)?)?,
        class: parsed(&row.get::<_, String>(3)?)?,
        priority: row.get(4)?,
        key: row.get(5)?,
        client: row.get(14)?,
        plan: parsed(&row.get::<_, String>(6)?)?,
        attempts: number(row.get(7)?)?,
        crashes: number(row.get(8)?)?,
        result: row
            .get::<_, Option<String>>(9)?
            .map(|text| parsed(&text))
            .transpose()?,
        error: row
            .get::<_, Option<String>>(10)?
            .map(|text| parsed(&text))
            .transpose()?,
        created_at_ms: number(row.get(11)?)?,
        started_at_ms: optional(12)?,
        finished_at_ms: optional(13)?,
    })
}
