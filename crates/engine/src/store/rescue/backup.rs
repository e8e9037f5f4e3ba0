//! Copies a journal into one file, also while a server writes on.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use serde::Serialize;

use super::check::{Reading, integrity};
use crate::store::inspect::{self, JOURNAL};
use crate::store::{StoreError, pool};

/// A finished copy.
#[derive(Debug, Clone, Serialize)]
pub struct BackedUp {
    /// The copy.
    pub target: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Jobs in it.
    pub jobs: u64,
}

/// Copies the journal of a data directory to a file that does not exist yet, as it is at one moment, and reads the copy
/// again. The artifacts are plain files: copy their folder after this, and the copy has every file that its jobs need.
pub fn backup(dir: &Path, target: &Path) -> Result<BackedUp, StoreError> {
    let file = dir.join(JOURNAL);
    let unsound = |problem: String| StoreError::Unsound {
        file: file.clone(),
        problem,
    };
    if !file.is_file() || !inspect::is_sqlite(&file)? {
        return Err(unsound("is missing or no SQLite database".into()));
    }
    if target.exists() {
        return Err(StoreError::Disk(std::io::Error::new(
            std::io::ErrorKind::AlreadyExists,
            format!("{} exists already; name a new file", target.display()),
        )));
    }
    let journal = Reading::open(dir)?;
    let copied = copy(&journal, target);
    if copied.is_err() {
        let _ = fs::remove_file(target);
    }
    let (facts, jobs) = copied?;
    if facts.version == 0 {
        let _ = fs::remove_file(target);
        return Err(unsound("holds no tables".into()));
    }
    Ok(BackedUp {
        bytes: fs::metadata(target)?.len(),
        target: target.to_owned(),
        jobs,
    })
}

fn copy(journal: &Connection, target: &Path) -> Result<(inspect::Facts, u64), StoreError> {
    // SQLite counts this as a write, although it writes only to the new file.
    journal.pragma_update(None, "query_only", false)?;
    journal.execute("VACUUM INTO ?1", [target.to_string_lossy()])?;
    File::open(target)?.sync_all()?;
    if let Some(folder) = target.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        File::open(folder)?.sync_all()?;
    }
    let copy = pool::open_to_read(target)?;
    if let Some(problem) = integrity(&copy)?.first() {
        return Err(StoreError::Strange(format!("the copy is damaged: {problem}")));
    }
    let facts = inspect::facts(&copy)?;
    let jobs: i64 = match facts.version {
        0 => 0,
        _ => copy.query_row("SELECT count(*) FROM jobs", [], |row| row.get(0))?,
    };
    Ok((facts, jobs.unsigned_abs()))
}
