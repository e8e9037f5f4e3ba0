//! Looks at a data directory before its journal is opened, and changes nothing: is the journal there, is it the one that
//! made the artifacts, and has it come as far as its mark says? What cannot be known is said in ARCHITECTURE.md.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::StoreError;
use super::fault::Fault;
use super::marker::{self, Marked};
use super::open::MIGRATIONS;

/// The names of the journal and of its write-ahead log.
pub(super) const JOURNAL: &str = "journal.sqlite";
pub(super) const LOG: &str = "journal.sqlite-wal";
const INDEX: &str = "journal.sqlite-shm";
/// How each SQLite file begins.
const HEADER: &[u8; 16] = b"SQLite format 3\0";

/// What stands in a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing that a journal would have made.
    Nothing,
    /// A journal that may be used.
    Journal(Facts),
}

/// What a journal says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    /// Migrations that it has had.
    pub version: usize,
    /// Its own number; journals before version 3 have none.
    pub id: Option<u64>,
    /// Durable commits.
    pub commits: u64,
}

/// Looks, and refuses what must not be served. For the holder of the lock.
pub(super) fn inspect(dir: &Path) -> Result<Found, StoreError> {
    let marked = marker::read(dir)?;
    let file = dir.join(JOURNAL);
    let unsound = |problem: String| StoreError::Unsound {
        file: file.clone(),
        problem,
    };
    if let Some(missing) = missing(&file)? {
        return match trace(dir, marked)? {
            Some(trace) => Err(unsound(format!("{missing}, although {trace}"))),
            None => Ok(Found::Nothing),
        };
    }
    if !is_sqlite(&file)? {
        return Err(unsound(
            "is no SQLite database: its beginning was overwritten".into(),
        ));
    }
    let facts = Untouched::open(dir)
        .and_then(|journal| facts(&journal))
        .map_err(|error| match error.fault() {
            Fault::Broken => unsound(format!("cannot be read: {error}")),
            Fault::Full | Fault::ReadOnly | Fault::Gone | Fault::NotTheDisk => error,
        })?;
    if facts.version > MIGRATIONS.len() {
        return Err(StoreError::TooNew {
            file,
            found: facts.version,
            known: MIGRATIONS.len(),
        });
    }
    if facts.version == 0 {
        return match trace(dir, marked)? {
            Some(trace) => Err(unsound(format!(
                "holds no tables, although {trace}: its log {LOG} was lost"
            ))),
            None => Ok(Found::Nothing),
        };
    }
    if let Some(marked) = marked {
        agree(facts, marked).map_err(unsound)?;
    }
    Ok(Found::Journal(facts))
}

/// Whether a journal is the marked one and has come as far.
pub(super) fn agree(facts: Facts, marked: Marked) -> Result<(), String> {
    if facts.id != Some(marked.id) {
        return Err(format!(
            "is not the one that made these artifacts ({} belongs to another journal)",
            marker::FILE
        ));
    }
    match marked.commits.checked_sub(facts.commits) {
        None | Some(0) => Ok(()),
        Some(lost) => Err(format!(
            "lacks its last {lost} commits: its log {LOG} was lost, cut or overwritten, or it is an older copy"
        )),
    }
}

/// Whether the file is not there, or as good as not there, in words.
fn missing(file: &Path) -> Result<Option<&'static str>, StoreError> {
    match fs::metadata(file) {
        Ok(facts) if facts.len() == 0 => Ok(Some("is empty")),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Some("is missing")),
        Err(error) => Err(error.into()),
    }
}

/// What shows that there was a journal here, in words.
fn trace(dir: &Path, marked: Option<Marked>) -> Result<Option<String>, StoreError> {
    if marked.is_some() {
        return Ok(Some(format!("{} says that there was one", marker::FILE)));
    }
    if fs::metadata(dir.join(LOG)).is_ok_and(|facts| facts.len() > 0) {
        return Ok(Some(format!("{LOG} is there")));
    }
    let artifacts = dir.join(super::artifacts::FOLDER);
    let Some(first) = first_artifact(&artifacts)? else {
        return Ok(None);
    };
    Ok(Some(format!(
        "there are artifacts, for instance {}",
        first.display()
    )))
}

fn first_artifact(artifacts: &Path) -> Result<Option<PathBuf>, StoreError> {
    let folders = match fs::read_dir(artifacts) {
        Ok(folders) => folders,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    for folder in folders {
        let folder = folder?;
        if !folder.file_type()?.is_dir() {
            continue;
        }
        for file in fs::read_dir(folder.path())? {
            let file = file?;
            let name = file.file_name();
            if name.to_str().and_then(super::ArtifactHash::parse).is_some() {
                return Ok(Some(file.path()));
            }
        }
    }
    Ok(None)
}

pub(super) fn is_sqlite(file: &Path) -> Result<bool, StoreError> {
    let mut beginning = Vec::new();
    File::open(file)?
        .take(HEADER.len() as u64)
        .read_to_end(&mut beginning)?;
    Ok(beginning == HEADER)
}

/// What the journal says of itself.
pub(super) fn facts(connection: &Connection) -> Result<Facts, StoreError> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let version = version.unsigned_abs() as usize;
    let number = |name: &str| -> Result<Option<u64>, StoreError> {
        if version == 0 {
            return Ok(None);
        }
        Ok(connection
            .query_row("SELECT value FROM facts WHERE name = ?1", [name], |row| {
                row.get::<_, i64>(0)
            })
            .optional()?
            .map(i64::unsigned_abs))
    };
    Ok(Facts {
        version,
        id: number("journal_id")?,
        commits: number("commits")?.unwrap_or(0),
    })
}

/// A journal that is read with its log while nobody else has it, and left to the byte as it was: the index of the log is
/// kept in memory, and closing does not fold the log. Only for a file that begins as SQLite's do: of any other SQLite
/// deletes the log.
pub(super) struct Untouched {
    connection: Connection,
    made_log: Option<PathBuf>,
}

impl Untouched {
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        let log = dir.join(LOG);
        let made_log = (!log.exists()).then_some(log);
        let connection = Connection::open_with_flags(
            dir.join(JOURNAL),
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let untouched = Self { connection, made_log };
        untouched.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(()))?;
        untouched.pragma_update(None, "query_only", true)?;
        Ok(untouched)
    }
}

impl std::ops::Deref for Untouched {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl Drop for Untouched {
    fn drop(&mut self) {
        // SQLite makes an empty log at the first question; where there was none, none stays.
        if let Some(log) = &self.made_log
            && fs::metadata(log).is_ok_and(|facts| facts.len() == 0)
        {
            let _ = fs::remove_file(log);
        }
    }
}

/// Removes what SQLite keeps beside a journal; for one that is about to be replaced.
pub(super) fn companions(dir: &Path) -> [PathBuf; 2] {
    [dir.join(LOG), dir.join(INDEX)]
}
