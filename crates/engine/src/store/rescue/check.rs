//! Looks at a journal without changing anything, also while a server uses it.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use serde::Serialize;

use crate::store::inspect::{self, Facts, JOURNAL, LOG, Untouched};
use crate::store::lock::{self, Lock};
use crate::store::trash::Trash;
use crate::store::{ArtifactHash, Fault, StoreError, artifacts, marker, pool};

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The journal's file.
    pub journal: PathBuf,
    /// Whether a server may be started with it.
    pub sound: bool,
    /// What is wrong, a sentence each.
    pub problems: Vec<String>,
    /// The server that uses it now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_use_by: Option<String>,
    /// Length of the journal's file.
    pub journal_bytes: u64,
    /// Length of its write-ahead log; it is folded into the journal when a server stops.
    pub log_bytes: u64,
    /// Migrations that it has had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<usize>,
    /// State to number of jobs.
    pub jobs: BTreeMap<String, u64>,
    /// Artifacts that jobs refer to.
    pub artifacts: u64,
    /// Those among them whose files are missing.
    pub artifacts_missing: Vec<String>,
    /// Files in the trash.
    pub trash_files: u64,
    /// Their bytes.
    pub trash_bytes: u64,
}

/// The journal to read: alone, or beside the server that uses it.
pub(super) enum Reading {
    Alone(
        Untouched,
        #[expect(dead_code, reason = "held until the reading is done")] Lock,
    ),
    Beside(Connection),
}

impl Deref for Reading {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        match self {
            Self::Alone(journal, _) => journal,
            Self::Beside(journal) => journal,
        }
    }
}

impl Reading {
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        match lock::hold(dir) {
            Ok(lock) => Ok(Self::Alone(Untouched::open(dir)?, lock)),
            Err(StoreError::InUse { .. }) => Ok(Self::Beside(pool::open_to_read(&dir.join(JOURNAL))?)),
            Err(error) => Err(error),
        }
    }
}

/// Looks at the journal of a data directory.
pub fn check(dir: &Path) -> Result<Report, StoreError> {
    let length = |name| fs::metadata(dir.join(name)).map_or(0, |facts| facts.len());
    let (trash_files, trash_bytes) = Trash::of(dir).size()?;
    let mut report = Report {
        journal: dir.join(JOURNAL),
        sound: false,
        problems: Vec::new(),
        in_use_by: None,
        journal_bytes: length(JOURNAL),
        log_bytes: length(LOG),
        version: None,
        jobs: BTreeMap::new(),
        artifacts: 0,
        artifacts_missing: Vec::new(),
        trash_files,
        trash_bytes,
    };
    match lock::hold(dir) {
        Ok(_lock) => {
            if let Err(error) = inspect::inspect(dir) {
                report.problems.push(error.to_string());
            }
        }
        Err(StoreError::InUse { holder, .. }) => report.in_use_by = Some(holder),
        Err(error) => return Err(error),
    }
    if report.journal_bytes > 0 && inspect::is_sqlite(&report.journal)? {
        let read = Reading::open(dir).and_then(|journal| read(&journal, dir, &mut report));
        if let Err(error) = read {
            let problem = error.to_string();
            if !report.problems.iter().any(|known| known.contains(&problem)) {
                report.problems.push(problem);
            }
        }
    } else if report.problems.is_empty() {
        report.problems.push("there is no journal here".into());
    }
    report.sound = report.problems.is_empty();
    Ok(report)
}

fn read(journal: &Connection, dir: &Path, report: &mut Report) -> Result<(), StoreError> {
    let facts: Facts = inspect::facts(journal)?;
    report.version = Some(facts.version);
    // Beside a server the mark runs ahead of what this connection may see.
    if report.in_use_by.is_some() && marker::read(dir)?.is_some_and(|marked| facts.id != Some(marked.id)) {
        report
            .problems
            .push(format!("{} belongs to another journal", marker::FILE));
    }
    for problem in integrity(journal)? {
        report.problems.push(format!("the file is damaged: {problem}"));
    }
    if facts.version == 0 {
        return Ok(());
    }
    let mut query = journal.prepare("SELECT state, count(*) FROM jobs GROUP BY state")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let state: String = row.get(0)?;
        let count = row.get::<_, i64>(1)?.unsigned_abs();
        report.jobs.insert(state.trim_matches('"').to_owned(), count);
    }
    if facts.version < 3 {
        return Ok(());
    }
    let mut query = journal.prepare("SELECT DISTINCT hash FROM artifact_refs ORDER BY hash")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let Some(hash) = ArtifactHash::parse(&row.get::<_, String>(0)?) else {
            continue;
        };
        report.artifacts += 1;
        if !artifacts::path_in(&dir.join(artifacts::FOLDER), &hash).is_file() {
            report.artifacts_missing.push(hash.0);
        }
    }
    Ok(())
}

/// What SQLite finds wrong; nothing where all is well.
pub(super) fn integrity(journal: &Connection) -> Result<Vec<String>, StoreError> {
    let lines = || -> rusqlite::Result<Vec<String>> {
        let mut query = journal.prepare("PRAGMA integrity_check(20)")?;
        query.query_map([], |row| row.get(0))?.collect()
    };
    match lines().map_err(StoreError::from) {
        Ok(lines) => Ok(lines.into_iter().filter(|line| line != "ok").collect()),
        Err(error) if error.fault() == Fault::Broken => Ok(vec![error.to_string()]),
        Err(error) => Err(error),
    }
}
