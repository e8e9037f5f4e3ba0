//! Why the store could not do something, and whose fault it was: the disk's (full, read-only, gone, broken) or ours.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::ffi;

use crate::error::{Code, Error};
use crate::processing::job::JobState;

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another engine owns the folder.
    #[error("{} is in use by another server ({holder})", dir.display())]
    InUse {
        /// The data directory.
        dir: PathBuf,
        /// Who wrote its name into the lock file.
        holder: String,
    },
    /// The journal is missing, damaged, or not the one that belongs to the artifacts. Nothing was changed.
    #[error("the journal {} {problem}", file.display())]
    Unsound {
        /// The journal.
        file: PathBuf,
        /// What is wrong with it, as the rest of the sentence.
        problem: String,
    },
    /// The disk is full, or the user's quota is used up.
    #[error("the disk of {} is full ({detail})", dir.display())]
    Full {
        /// The data directory.
        dir: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// The disk takes no writes.
    #[error("{} cannot be written ({detail})", dir.display())]
    ReadOnly {
        /// The data directory.
        dir: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// The data directory was deleted or replaced while it was in use.
    #[error("the data directory {} was deleted or replaced while the server was using it", dir.display())]
    Gone {
        /// The data directory.
        dir: PathBuf,
    },
    /// SQLite refused or failed.
    #[error("the journal failed: {0}")]
    Database(#[from] rusqlite::Error),
    /// The folder's file system cannot hold such a journal.
    #[error("the journal cannot be kept as a write-ahead log here (SQLite chose `{mode}`)")]
    NoWal {
        /// The mode that SQLite chose instead.
        mode: String,
    },
    /// The database took none of the operations that were to be committed together.
    #[error("the journal failed to commit: {0}")]
    NotCommitted(Arc<rusqlite::Error>),
    /// The file system refused or failed.
    #[error("the disk failed: {0}")]
    Disk(#[from] io::Error),
    /// A job ends only in a final state.
    #[error("`{}` is no end for a job", .0.name())]
    NotFinal(JobState),
    /// A row that this program did not write.
    #[error("the journal holds what is not understood: {0}")]
    Strange(String),
    /// A journal of a later version.
    #[error("the journal {} has version {found}, this program knows up to {known}", file.display())]
    TooNew {
        /// The journal.
        file: PathBuf,
        /// The version of the file.
        found: usize,
        /// The newest version that this program reads.
        known: usize,
    },
    /// The writing thread has ended.
    #[error("the journal is closed")]
    Closed,
}

/// Who is to blame for a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No space, or no quota.
    Full,
    /// No right to write.
    ReadOnly,
    /// The data directory is not there any more.
    Gone,
    /// The disk or the database file fails otherwise.
    Broken,
    /// Not the disk: a wrong call, a strange row, another server.
    NotTheDisk,
}

impl StoreError {
    /// Who is to blame.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Full { .. } => Fault::Full,
            Self::ReadOnly { .. } => Fault::ReadOnly,
            Self::Gone { .. } => Fault::Gone,
            Self::Database(error) => of_sqlite(error),
            Self::NotCommitted(error) => of_sqlite(error),
            Self::Disk(error) => of_io(error),
            Self::InUse { .. }
            | Self::Unsound { .. }
            | Self::NoWal { .. }
            | Self::NotFinal(_)
            | Self::Strange(_)
            | Self::TooNew { .. }
            | Self::Closed => Fault::NotTheDisk,
        }
    }

    /// Whether the disk is full or the quota used up.
    pub fn is_full(&self) -> bool {
        self.fault() == Fault::Full
    }

    /// Whether the disk takes no writes.
    pub fn is_read_only(&self) -> bool {
        self.fault() == Fault::ReadOnly
    }

    /// Whether the data directory is not there any more.
    pub fn is_gone(&self) -> bool {
        self.fault() == Fault::Gone
    }

    /// Names the data directory in an error of its disk, so that the message says where to make room.
    pub(super) fn at(self, dir: &Path) -> Self {
        let dir = dir.to_owned();
        if matches!(
            self,
            Self::Full { .. } | Self::ReadOnly { .. } | Self::Gone { .. }
        ) {
            return self;
        }
        match self.fault() {
            Fault::Full => Self::Full {
                detail: self.to_string(),
                dir,
            },
            Fault::ReadOnly => Self::ReadOnly {
                detail: self.to_string(),
                dir,
            },
            Fault::Gone => Self::Gone { dir },
            Fault::Broken | Fault::NotTheDisk => self,
        }
    }
}

fn of_sqlite(error: &rusqlite::Error) -> Fault {
    let Some(failure) = error.sqlite_error() else {
        return Fault::NotTheDisk;
    };
    match (failure.extended_code, failure.extended_code & 0xff) {
        (ffi::SQLITE_READONLY_DBMOVED, _) => Fault::Gone,
        // The index of the log could not grow: SQLite's documentation names a full disk as the reason.
        (ffi::SQLITE_IOERR_SHMSIZE, _) | (_, ffi::SQLITE_FULL) => Fault::Full,
        (_, ffi::SQLITE_READONLY | ffi::SQLITE_PERM) => Fault::ReadOnly,
        (_, ffi::SQLITE_IOERR | ffi::SQLITE_CANTOPEN | ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB) => {
            Fault::Broken
        }
        _ => Fault::NotTheDisk,
    }
}

fn of_io(error: &io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Fault::Full,
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Fault::ReadOnly,
        _ => Fault::Broken,
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let code = match error.fault() {
            Fault::Full => Code::StoreFull,
            Fault::ReadOnly | Fault::Gone | Fault::Broken => Code::StoreFailed,
            Fault::NotTheDisk if is_ours(&error) => Code::Internal,
            Fault::NotTheDisk => Code::StoreFailed,
        };
        let message = error.to_string();
        match advice(&error) {
            Some(advice) => Self::new(code, message).advice(advice),
            None => Self::new(code, message),
        }
    }
}

/// Whether a failure that is not the disk's is a mistake of this program: trying again does not help.
fn is_ours(error: &StoreError) -> bool {
    let refused = |error: &rusqlite::Error| {
        !matches!(
            error.sqlite_error_code(),
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked)
        )
    };
    match error {
        StoreError::NotFinal(_) | StoreError::Strange(_) => true,
        StoreError::Database(error) => refused(error),
        StoreError::NotCommitted(error) => refused(error),
        StoreError::InUse { .. }
        | StoreError::Unsound { .. }
        | StoreError::Full { .. }
        | StoreError::ReadOnly { .. }
        | StoreError::Gone { .. }
        | StoreError::NoWal { .. }
        | StoreError::Disk(_)
        | StoreError::TooNew { .. }
        | StoreError::Closed => false,
    }
}

fn advice(error: &StoreError) -> Option<String> {
    let text = match error {
        StoreError::InUse { .. } => "stop the other server, or choose another --data-dir".to_owned(),
        StoreError::Unsound { file, .. } => {
            let dir = file.parent().unwrap_or(file).display();
            format!(
                "nothing was changed; `calotype journal check --data-dir {dir}` shows what is there, put the right file back \
                 or start from what can be read with `calotype journal recover --data-dir {dir}`"
            )
        }
        StoreError::NoWal { .. } => "choose a --data-dir on a local disk".to_owned(),
        StoreError::TooNew { .. } => "use the newer program, or choose another --data-dir".to_owned(),
        StoreError::Full { dir, .. } => format!(
            "free space on the disk of {}: delete finished jobs (DELETE /api/jobs/ID), or files that are not Calotype's; \
             the server goes on by itself",
            dir.display()
        ),
        StoreError::ReadOnly { dir, .. } => format!(
            "make {} writable for this user, or choose another --data-dir",
            dir.display()
        ),
        StoreError::Gone { dir } => {
            format!(
                "put {} back as it was, or restart the server to begin a new one",
                dir.display()
            )
        }
        StoreError::Disk(_) | StoreError::Database(_) | StoreError::NotCommitted(_) => {
            "look at the disk's space and rights".to_owned()
        }
        StoreError::NotFinal(_) | StoreError::Strange(_) | StoreError::Closed => return None,
    };
    Some(text)
}
