//! What survives a crash: the journal (SQLite, one writing thread) and content-addressed artifacts.

mod artifacts;
mod journal;
mod lock;
mod rows;
#[cfg(test)]
mod tests;
mod writer;

pub use artifacts::{ArtifactHash, Artifacts, Swept, media_type};
pub use journal::{Finish, Finished, Held, Inserted, JobFilter, NewJob, Store};

use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Code, Error};
use crate::processing::JobState;

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another engine owns the folder.
    #[error("{} is in use by another server ({holder})", dir.display())]
    InUse {
        /// The folder.
        dir: PathBuf,
        /// Who says to own it.
        holder: String,
    },
    /// The database says no.
    #[error("the journal failed: {0}")]
    Database(#[from] rusqlite::Error),
    /// The folder's file system cannot hold such a journal.
    #[error("the journal cannot be kept as a write-ahead log here (SQLite chose `{mode}`)")]
    NoWal {
        /// What SQLite chose instead.
        mode: String,
    },
    /// The database took none of the operations that were to be committed together.
    #[error("the journal failed to commit: {0}")]
    NotCommitted(Arc<rusqlite::Error>),
    /// The disk says no.
    #[error("the disk failed: {0}")]
    Disk(#[from] std::io::Error),
    /// A job ends only in a final state.
    #[error("`{}` is no end for a job", .0.name())]
    NotFinal(JobState),
    /// A row that this program did not write.
    #[error("the journal holds what is not understood: {0}")]
    Strange(String),
    /// A journal of a later version.
    #[error("the journal has version {found}, this program knows up to {known}")]
    TooNew {
        /// In the file.
        found: usize,
        /// Here.
        known: usize,
    },
    /// The writing thread is gone.
    #[error("the journal is closed")]
    Closed,
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let advice = match &error {
            StoreError::InUse { .. } => Some("stop the other server, or choose another --data-dir"),
            StoreError::NoWal { .. } => Some("choose a --data-dir on a local disk"),
            StoreError::TooNew { .. } => Some("use the newer program, or choose another --data-dir"),
            StoreError::Disk(_) | StoreError::Database(_) | StoreError::NotCommitted(_) => {
                Some("look at the disk's space and rights")
            }
            StoreError::NotFinal(_) | StoreError::Strange(_) | StoreError::Closed => None,
        };
        let failed = Error::new(Code::StoreFailed, error.to_string());
        match advice {
            Some(advice) => failed.advice(advice),
            None => failed,
        }
    }
}
