//! Which artifacts a job refers to. An artifact that loses its last job is written down as loose, and only loose ones are
//! ever swept.

use rusqlite::Connection;

use super::{ArtifactHash, StoreError};

/// A job was given or has made these artifacts.
pub(super) fn add<'a>(
    connection: &Connection,
    job: i64,
    hashes: impl Iterator<Item = &'a ArtifactHash>,
) -> Result<(), StoreError> {
    for hash in hashes {
        connection
            .prepare_cached("INSERT OR IGNORE INTO artifact_refs (hash, job) VALUES (?1, ?2)")?
            .execute((&hash.0, job))?;
        connection
            .prepare_cached("DELETE FROM loose WHERE hash = ?1")?
            .execute([&hash.0])?;
    }
    Ok(())
}

/// A job is deleted: what nobody else refers to is loose from now on.
pub(super) fn remove(connection: &Connection, job: i64, now_ms: u64) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO loose (hash, since_ms)
             SELECT hash, ?2 FROM artifact_refs AS mine WHERE job = ?1
             AND NOT EXISTS (SELECT 1 FROM artifact_refs AS other WHERE other.hash = mine.hash AND other.job <> ?1)",
        )?
        .execute((job, now_ms.cast_signed()))?;
    connection
        .prepare_cached("DELETE FROM artifact_refs WHERE job = ?1")?
        .execute([job])?;
    Ok(())
}
