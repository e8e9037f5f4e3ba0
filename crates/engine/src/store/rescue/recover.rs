//! Makes a new journal from what is readable of a damaged one. The old files are kept beside it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};
use serde::Serialize;

use super::check::integrity;
use crate::clock::now_ms;
use crate::store::inspect::{self, Facts, Found, JOURNAL, Untouched};
use crate::store::marker::{self, Mark, Marked};
use crate::store::{StoreError, lock, open};

/// Whether jobs may be lost that the journal is known to have had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Start with what is there.
    Accepted,
    /// Refuse, and say what would be lost.
    Refused,
}

/// A journal that a server can be started with.
#[derive(Debug, Clone, Serialize)]
pub struct Recovered {
    /// Whether anything was done; a sound journal is left as it is.
    pub changed: bool,
    /// Jobs in the new journal.
    pub jobs: u64,
    /// What is lost, a sentence each.
    pub lost: Vec<String>,
    /// Where the old files are kept.
    pub kept: Vec<PathBuf>,
}

/// Tables, in the order in which they are copied, with the column that names a row.
const TABLES: [(&str, &str); 4] = [
    ("facts", "name"),
    ("peaks", "shape"),
    ("jobs", "sequence"),
    ("loose", "hash"),
];
const NEW: &str = "journal.sqlite.new";

/// Makes the journal of a data directory fit to be served.
pub fn recover(dir: &Path, loss: Loss) -> Result<Recovered, StoreError> {
    let _lock = lock::take(dir)?;
    let file = dir.join(JOURNAL);
    let problem = match inspect::inspect(dir) {
        Ok(Found::Nothing) => return unchanged(0),
        Ok(Found::Journal(_)) => None,
        Err(StoreError::Unsound { problem, .. }) => Some(problem),
        Err(error) => return Err(error),
    };
    let old = match fs::metadata(&file).is_ok_and(|facts| facts.len() > 0) && inspect::is_sqlite(&file)? {
        true => Some(Untouched::open(dir)?),
        false => None,
    };
    if problem.is_none()
        && let Some(old) = &old
        && integrity(old).is_ok_and(|found| found.is_empty())
    {
        return unchanged(count(old)?);
    }
    let new_path = dir.join(NEW);
    remove_with_companions(&new_path)?;
    let mut lost: Vec<String> = problem
        .map(|problem| format!("the journal {problem}"))
        .into_iter()
        .collect();
    let made = make(&new_path, old.as_deref(), dir, &mut lost);
    drop(old);
    let (jobs, marked) = match made {
        Ok(made) => made,
        Err(error) => {
            remove_with_companions(&new_path)?;
            return Err(error.at(dir));
        }
    };
    if !lost.is_empty() && loss == Loss::Refused {
        remove_with_companions(&new_path)?;
        return Err(StoreError::Unsound {
            file,
            problem: format!(
                "can be made anew with {jobs} jobs, but not whole: {}; `calotype journal recover --accept-loss` does so",
                lost.join("; ")
            ),
        });
    }
    let kept = keep_old(dir)?;
    fs::rename(&new_path, &file)?;
    Mark::make(dir, marked)?.sync()?;
    File::open(dir)?.sync_all()?;
    Ok(Recovered {
        changed: true,
        jobs,
        lost,
        kept,
    })
}

fn unchanged(jobs: u64) -> Result<Recovered, StoreError> {
    Ok(Recovered {
        changed: false,
        jobs,
        lost: Vec::new(),
        kept: Vec::new(),
    })
}

/// A whole journal in one synced file, with what could be read of the old one.
fn make(
    path: &Path,
    old: Option<&Connection>,
    dir: &Path,
    lost: &mut Vec<String>,
) -> Result<(u64, Marked), StoreError> {
    let new = Connection::open(path)?;
    new.pragma_update(None, "synchronous", "FULL")?;
    open::migrate(&new)?;
    new.execute_batch("BEGIN IMMEDIATE")?;
    if let Some(old) = old {
        for (table, name) in TABLES {
            copy_table(old, &new, table, name, lost)?;
        }
    }
    // What an earlier version kept no list of is found in the jobs themselves.
    new.execute_batch(include_str!("../migrations/fill_refs.sql"))?;
    // The number of the mark goes on: these artifacts are this journal's.
    let marked = marker::read(dir).ok().flatten();
    let Facts { id, commits, .. } = inspect::facts(&new)?;
    let id = marked.map(|marked| marked.id).or(id);
    let marked = Marked {
        id: id.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 >> 1),
        commits: commits.max(marked.map_or(0, |marked| marked.commits)) + 1,
    };
    for (name, value) in [("journal_id", marked.id), ("commits", marked.commits)] {
        new.execute(
            "INSERT INTO facts VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2",
            (name, value.cast_signed()),
        )?;
    }
    new.execute_batch("COMMIT")?;
    if let Some(problem) = integrity(&new)?.first() {
        return Err(StoreError::Strange(format!(
            "the new journal is damaged: {problem}"
        )));
    }
    let jobs = count(&new)?;
    new.close().map_err(|(_, error)| error)?;
    File::open(path)?.sync_all()?;
    Ok((jobs, marked))
}

fn count(journal: &Connection) -> Result<u64, StoreError> {
    let jobs: i64 = journal.query_row("SELECT count(*) FROM jobs", [], |row| row.get(0))?;
    Ok(jobs.unsigned_abs())
}

/// Copies the rows of a table that can be read: from the first on to the first damaged page, and from the last back.
fn copy_table(
    old: &Connection,
    new: &Connection,
    table: &str,
    name: &str,
    lost: &mut Vec<String>,
) -> Result<(), StoreError> {
    let of_old = match columns(old, table) {
        Ok(columns) if columns.is_empty() => return Ok(()), // an earlier version has no such table
        Ok(columns) => columns,
        Err(error) => {
            lost.push(format!("the table `{table}` cannot be read: {error}"));
            return Ok(());
        }
    };
    let both: Vec<String> = columns(new, table)?
        .into_iter()
        .filter(|column| of_old.contains(column))
        .collect();
    let places: Vec<String> = (1..=both.len()).map(|place| format!("?{place}")).collect();
    let insert = format!(
        "INSERT OR IGNORE INTO {table} ({}) VALUES ({})",
        both.join(", "),
        places.join(", ")
    );
    let mut insert = new.prepare(&insert)?;
    for order in ["ASC", "DESC"] {
        let select = format!("SELECT {} FROM {table} ORDER BY {name} {order}", both.join(", "));
        let Some(error) = copy_rows(old, &select, both.len(), &mut insert)? else {
            return Ok(()); // read to the end
        };
        if order == "ASC" {
            lost.push(format!("rows of the table `{table}` cannot be read: {error}"));
        }
    }
    Ok(())
}

/// Returns why the reading stopped before the end, if it did.
fn copy_rows(
    old: &Connection,
    select: &str,
    columns: usize,
    insert: &mut rusqlite::Statement<'_>,
) -> Result<Option<rusqlite::Error>, StoreError> {
    let mut query = match old.prepare(select) {
        Ok(query) => query,
        Err(error) => return Ok(Some(error)),
    };
    let mut rows = query.query([])?;
    loop {
        let row = match rows.next() {
            Ok(Some(row)) => row,
            Ok(None) => return Ok(None),
            Err(error) => return Ok(Some(error)),
        };
        let values: Result<Vec<Value>, _> = (0..columns).map(|column| row.get(column)).collect();
        match values {
            Ok(values) => insert.execute(params_from_iter(values)).map(drop).or_else(skip)?,
            Err(error) => return Ok(Some(error)),
        }
    }
}

/// A row with a value that the table does not take is damaged as well.
fn skip(error: rusqlite::Error) -> rusqlite::Result<()> {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::ConstraintViolation | rusqlite::ErrorCode::TypeMismatch) => Ok(()),
        Some(_) | None => Err(error),
    }
}

fn columns(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut query = connection.prepare("SELECT name FROM pragma_table_info(?1)")?;
    let names = query.query_map([table], |row| row.get(0))?;
    names.collect()
}

/// Renames the old files: `journal.sqlite.broken-TIME` with its log.
fn keep_old(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let suffix = format!("broken-{}", now_ms());
    let mut kept = Vec::new();
    let [log, index] = inspect::companions(dir);
    for (old, ending) in [(dir.join(JOURNAL), ""), (log, "-wal")] {
        let name = dir.join(format!("{JOURNAL}.{suffix}{ending}"));
        match fs::rename(&old, &name) {
            Ok(()) => kept.push(name),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    // Only an index into the log; SQLite makes it anew.
    remove(&index)?;
    Ok(kept)
}

fn remove_with_companions(path: &Path) -> Result<(), StoreError> {
    for ending in ["", "-journal", "-wal", "-shm"] {
        remove(Path::new(&format!("{}{ending}", path.display())))?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}
