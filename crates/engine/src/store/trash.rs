//! The folder of artifacts that no job refers to any more. They stay for days, so that a mistake can be mended by hand:
//! `mv DATA/trash/HASH DATA/artifacts/HA/HASH`. A full disk takes the oldest first.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::StoreError;

/// The name of the folder in the data directory.
pub(super) const FOLDER: &str = "trash";
/// How long a file stays.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(Debug)]
pub(super) struct Trash {
    dir: PathBuf,
}

struct Item {
    path: PathBuf,
    bytes: u64,
    since: SystemTime,
}

impl Trash {
    pub(super) fn of(data_dir: &Path) -> Self {
        Self {
            dir: data_dir.join(FOLDER),
        }
    }

    /// Moves a file here; its clock begins now. Returns its length, nothing where there was no such file.
    pub(super) fn take(&self, path: &Path) -> Result<Option<u64>, StoreError> {
        let Some(name) = path.file_name() else {
            return Ok(None);
        };
        let file = match File::options().write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let bytes = file.metadata()?.len();
        file.set_modified(SystemTime::now())?;
        fs::create_dir_all(&self.dir)?;
        fs::rename(path, self.dir.join(name))?;
        Ok(Some(bytes))
    }

    /// Deletes what has lain here for `kept_for`; returns how many bytes.
    pub(super) fn empty_old(&self, kept_for: Duration) -> Result<u64, StoreError> {
        let mut freed_bytes = 0;
        for item in self.items()? {
            if item.since.elapsed().is_ok_and(|age| age >= kept_for) {
                fs::remove_file(&item.path)?;
                freed_bytes += item.bytes;
            }
        }
        Ok(freed_bytes)
    }

    /// Deletes the oldest until `wanted_bytes` are freed or nothing is left; returns how many bytes were.
    pub(super) fn free(&self, wanted_bytes: u64) -> u64 {
        let mut items = self.items().unwrap_or_default();
        items.sort_by_key(|item| item.since);
        let mut freed_bytes = 0;
        for item in items {
            if freed_bytes >= wanted_bytes {
                break;
            }
            match fs::remove_file(&item.path) {
                Ok(()) => freed_bytes += item.bytes,
                Err(error) => tracing::warn!("Failed to empty the trash of {}: {error}", item.path.display()),
            }
        }
        freed_bytes
    }

    /// Number of files, and their bytes.
    pub(super) fn size(&self) -> Result<(u64, u64), StoreError> {
        let items = self.items()?;
        Ok((items.len() as u64, items.iter().map(|item| item.bytes).sum()))
    }

    fn items(&self) -> Result<Vec<Item>, StoreError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut items = Vec::new();
        for entry in entries {
            let entry = entry?;
            let facts = entry.metadata()?;
            if facts.is_file() {
                items.push(Item {
                    path: entry.path(),
                    bytes: facts.len(),
                    since: facts.modified()?,
                });
            }
        }
        Ok(items)
    }
}
