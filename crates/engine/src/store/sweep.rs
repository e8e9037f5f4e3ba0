//! Deleting jobs, and moving to the trash what only they referred to. A file is swept only if the journal explains it:
//! its last job was deleted (`loose`), or it is a torn write. What the journal knows nothing of stays.

use std::time::{Duration, UNIX_EPOCH};

use calotype_protocol::JobId;
use rusqlite::{Connection, OptionalExtension, params};

use super::folder::{FETCHED_FOR, Space};
use super::open::Store;
use super::trash::KEPT_FOR;
use super::writer::Durable;
use super::{ArtifactHash, StoreError, refs};
use crate::clock::now_ms;

/// A time that has not come yet.
const EVER: u64 = u64::MAX >> 1;

/// What a sweep took away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Artifacts that went into the trash, or on a full disk for good.
    pub removed: usize,
    /// Torn writes that were deleted.
    pub torn: usize,
    /// Bytes that the disk has again: of the trash's old files, torn writes and, on a full disk, artifacts.
    pub freed_bytes: u64,
}

/// How loose artifacts are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// Into the trash, an hour after their last job and their last fetch.
    Gently,
    /// At once and for good: the disk is full.
    AtOnce,
}

/// A loose artifact, and since when.
#[derive(Debug, Clone)]
pub(super) struct Loose {
    pub(super) hash: ArtifactHash,
    pub(super) since_ms: u64,
}

impl Store {
    /// Forgets a job that has ended. On a full disk its artifacts are deleted at once; otherwise a sweep moves them to the
    /// trash later.
    pub async fn delete(&self, job: &JobId) -> Result<(), StoreError> {
        let job = job.clone();
        self.owned
            .writer
            .submit(Durable::Yes, Space::Frees, move |connection| {
                let sequence = connection
                    .prepare_cached("SELECT sequence FROM jobs WHERE id = ?1 AND finished_at_ms IS NOT NULL")?
                    .query_row([&job.0], |row| row.get(0))
                    .optional()?;
                sequence.map_or(Ok(()), |sequence| forget(connection, sequence, now_ms()))
            })
            .await?;
        if self.owned.folder.is_out_of_room()
            && let Err(error) = self.sweep_as(Manner::AtOnce, EVER).await
        {
            // The job is gone, as asked; the next sweep tries again.
            tracing::warn!("Failed to delete the artifacts of a deleted job: {error}");
        }
        Ok(())
    }

    /// Moves loose artifacts to the trash, deletes torn writes, and empties the trash of what is older than seven days.
    /// Nothing is moved in the first hour after the start, because fetches are remembered in memory only.
    pub async fn sweep(&self) -> Result<Swept, StoreError> {
        let folder = &self.owned.folder;
        if folder.is_out_of_room() {
            return self.sweep_as(Manner::AtOnce, EVER).await;
        }
        let until_ms = match folder.opened().elapsed() < FETCHED_FOR {
            true => 0,
            false => now_ms().saturating_sub(FETCHED_FOR.as_millis() as u64),
        };
        self.sweep_as(Manner::Gently, until_ms).await
    }

    /// Takes what has been loose since `until_ms` or longer.
    pub(super) async fn sweep_as(&self, manner: Manner, until_ms: u64) -> Result<Swept, StoreError> {
        let loose = self.loose(until_ms).await?;
        let artifacts = self.artifacts();
        let (mut swept, done) = artifacts.take_away(loose, manner).await?;
        self.no_longer_loose(done).await?;
        let folder = std::sync::Arc::clone(&self.owned.folder);
        let emptied = tokio::task::spawn_blocking(move || {
            let emptied = folder.trash.empty_old(KEPT_FOR);
            folder.has_room();
            emptied
        });
        swept.freed_bytes += emptied.await.map_err(|_| StoreError::Closed)??;
        Ok(swept)
    }

    async fn loose(&self, until_ms: u64) -> Result<Vec<Loose>, StoreError> {
        self.read(move |connection| {
            let mut query = connection.prepare_cached(
                "SELECT hash, since_ms FROM loose WHERE since_ms <= ?1
                 AND NOT EXISTS (SELECT 1 FROM artifact_refs WHERE artifact_refs.hash = loose.hash) ORDER BY since_ms",
            )?;
            let rows = query.query_map([until_ms.cast_signed()], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))
            })?;
            let mut loose = Vec::new();
            for row in rows {
                let (hash, since_ms) = row?;
                if let Some(hash) = ArtifactHash::parse(&hash) {
                    let since_ms = since_ms.unsigned_abs();
                    loose.push(Loose { hash, since_ms });
                }
            }
            Ok(loose)
        })
        .await
    }

    async fn no_longer_loose(&self, done: Vec<Loose>) -> Result<(), StoreError> {
        if done.is_empty() {
            return Ok(());
        }
        self.owned
            .writer
            .submit(Durable::No, Space::Frees, move |connection| {
                let mut delete =
                    connection.prepare_cached("DELETE FROM loose WHERE hash = ?1 AND since_ms = ?2")?;
                for Loose { hash, since_ms } in &done {
                    delete.execute(params![hash.0, since_ms.cast_signed()])?;
                }
                Ok(())
            })
            .await
    }
}

/// Deletes a job's row inside a transaction, and writes down which artifacts are loose now.
pub(super) fn forget(connection: &Connection, sequence: i64, now_ms: u64) -> Result<(), StoreError> {
    refs::remove(connection, sequence, now_ms)?;
    connection
        .prepare_cached("DELETE FROM jobs WHERE sequence = ?1")?
        .execute([sequence])?;
    Ok(())
}

/// Whether a file was put again within the last hour and after it had become loose: a job that is not written down yet may
/// be about to refer to it.
pub(super) fn is_wanted_again(facts: &std::fs::Metadata, loose: &Loose) -> bool {
    // The journal counts whole milliseconds.
    let since = UNIX_EPOCH + Duration::from_millis(loose.since_ms + 1);
    facts
        .modified()
        .is_ok_and(|put| put > since && put.elapsed().is_ok_and(|age| age < FETCHED_FOR))
}
