//! The files that a component of a model is in, as they were found. Pure.

use std::path::PathBuf;

/// A file as it was found: with the same stamp it has the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Stamp {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    /// Nanoseconds since 1970; none where the file system does not tell.
    pub(crate) modified_ns: Option<u128>,
}

/// The files of a component, its shards in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    pub(crate) files: Vec<Stamp>,
}

impl Source {
    /// No segment of it is larger.
    pub(crate) fn bytes(&self) -> u64 {
        self.files
            .iter()
            .fold(0, |sum, file| sum.saturating_add(file.bytes))
    }

    pub(super) fn is_of_the_same_files(&self, other: &Self) -> bool {
        let (own, others) = (self.files.iter(), other.files.iter());
        own.map(|file| &file.path).eq(others.map(|file| &file.path))
    }
}
