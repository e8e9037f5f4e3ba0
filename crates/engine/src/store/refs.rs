//! The table `artifact_refs`: a row for each artifact that a job was given or has made. When the last job of an artifact is
//! deleted, the artifact gets a row in the table `loose`. A sweep takes artifacts in `loose` that no job refers to by then.

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
    }
    Ok(())
}

/// What a job refers to. Read from the job itself, where it is rarely asked, so that no job keeps a second index of it.
pub(super) fn of_job(connection: &Connection, job: i64) -> Result<Vec<ArtifactHash>, StoreError> {
    let mut query = connection.prepare_cached(
        "WITH told (text) AS (SELECT plan FROM jobs WHERE sequence = ?1 UNION SELECT result FROM jobs WHERE sequence = ?1),
         named (hash) AS (
             SELECT DISTINCT found.value FROM told, json_tree(CASE WHEN json_valid(told.text) THEN told.text END) AS found
             WHERE found.type = 'text'
         )
         SELECT artifact_refs.hash FROM named CROSS JOIN artifact_refs USING (hash) WHERE artifact_refs.job = ?1",
    )?;
    let hashes = query.query_map([job], |row| row.get(0).map(ArtifactHash))?;
    Ok(hashes.collect::<Result<_, _>>()?)
}

/// A job is deleted: what nobody else refers to is loose from now on.
pub(super) fn remove(connection: &Connection, job: i64, now_ms: u64) -> Result<(), StoreError> {
    for hash in of_job(connection, job)? {
        connection
            .prepare_cached("DELETE FROM artifact_refs WHERE hash = ?1 AND job = ?2")?
            .execute((&hash.0, job))?;
        connection
            .prepare_cached(
                "INSERT OR REPLACE INTO loose (hash, since_ms)
                 SELECT ?1, ?2 WHERE NOT EXISTS (SELECT 1 FROM artifact_refs WHERE hash = ?1)",
            )?
            .execute((&hash.0, now_ms.cast_signed()))?;
    }
    Ok(())
}
