//! The data directory as the writer, the artifacts and the probe share it: whether it is still the one that was opened,
//! what can be given up for room, which artifacts were fetched, and what all this says about the store's health.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::StoreError;
use super::health::{Health, Part};
use super::inspect::JOURNAL;
use super::reserve::Reserve;
use super::trash::Trash;
use crate::artifact::ArtifactHash;

/// An artifact that was fetched is kept for so long, whatever became of its job: a client may still want it.
pub(super) const FETCHED_FOR: Duration = Duration::from_secs(3600);
/// What a full disk takes of the trash at once.
const PIECE_BYTES: u64 = 8 << 20;

/// What an operation does to the space on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Space {
    /// Something new is promised: refused while the reserve is given up.
    Takes,
    /// Small bookkeeping of work that was accepted.
    Keeps,
    /// The end or the deletion of a job: may use the reserve.
    Frees,
}

#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
    journal: Option<(u64, u64)>,
    reserve: Option<Reserve>,
    pub(super) trash: Trash,
    pub(super) health: Health,
    // In memory, because a write at each fetch would fail on the very disk that is full, and wear the others. So nothing is
    // swept in the first hour after a start.
    fetched: Mutex<HashMap<ArtifactHash, Instant>>,
    opened: Instant,
}

impl Folder {
    /// The folder of an open journal.
    pub(super) fn of_journal(dir: &Path) -> Result<Self, StoreError> {
        let folder = Self {
            journal: Some(identity(&dir.join(JOURNAL))?),
            reserve: Some(Reserve::make(dir)),
            ..Self::without_journal(dir)
        };
        folder
            .health
            .tried(Part::Journal, folder.standing().as_ref().copied());
        Ok(folder)
    }

    /// A folder with artifacts alone.
    pub(super) fn without_journal(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            journal: None,
            reserve: None,
            trash: Trash::of(dir),
            health: Health::default(),
            fetched: Mutex::default(),
            opened: Instant::now(),
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn opened(&self) -> Instant {
        self.opened
    }

    /// Whether the journal's name still leads to the journal that was opened: SQLite would write on into a deleted file,
    /// and nothing of it would survive the process.
    pub(super) fn is_there(&self) -> bool {
        self.journal
            .is_none_or(|opened| identity(&self.dir.join(JOURNAL)).is_ok_and(|now| now == opened))
    }

    /// Fails where something new is to be promised although the reserve is given up.
    pub(super) fn admit(&self, space: Space) -> Result<(), StoreError> {
        let is_held = self.reserve.as_ref().is_none_or(Reserve::is_held);
        match space {
            Space::Takes if !is_held => Err(self.out_of_room()),
            Space::Takes | Space::Keeps | Space::Frees => Ok(()),
        }
    }

    /// What a write that succeeded says about the disk: without the reserve it is full all the same.
    pub(super) fn standing(&self) -> Result<(), StoreError> {
        match self.is_out_of_room() {
            true => Err(self.out_of_room()),
            false => Ok(()),
        }
    }

    fn out_of_room(&self) -> StoreError {
        StoreError::Full {
            dir: self.dir.clone(),
            detail: "the 4 MiB that are kept back for the ends of jobs are in use".into(),
        }
    }

    /// After a failure for want of room: gives up the oldest trash, and then, for an operation that frees, the reserve.
    /// Says whether it is worth trying again.
    pub(super) fn make_room(&self, space: Space) -> bool {
        if self.trash.free(PIECE_BYTES) > 0 {
            return true;
        }
        space == Space::Frees && self.reserve.as_ref().is_some_and(Reserve::give_up)
    }

    /// Whether the disk was so full that the reserve had to go.
    pub(super) fn is_out_of_room(&self) -> bool {
        self.reserve.as_ref().is_some_and(Reserve::is_given_up)
    }

    /// Something was deleted: the reserve may find its room again.
    pub(super) fn has_room(&self) {
        if let Some(reserve) = &self.reserve
            && reserve.is_given_up()
        {
            reserve.try_soon();
            if reserve.is_held() {
                self.health.tried(Part::Journal, Ok(()));
            }
        }
    }

    pub(super) fn was_fetched(&self, hash: &ArtifactHash) {
        let mut fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        fetched.insert(hash.clone(), Instant::now());
    }

    /// The artifacts that were fetched within the last hour; forgets the others.
    pub(super) fn fetched(&self) -> HashMap<ArtifactHash, Instant> {
        let mut fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        fetched.retain(|_, at| at.elapsed() < FETCHED_FOR);
        fetched.clone()
    }
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    let facts = fs::metadata(path)?;
    Ok((facts.dev(), facts.ino()))
}
