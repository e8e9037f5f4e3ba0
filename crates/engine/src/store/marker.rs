//! The mark beside the journal: which journal these artifacts belong to, and how far it had come when it last promised
//! something. A journal that has not come so far has lost its log, or is an old copy.
//!
//! After each durable commit the number of durable commits is written here, over itself and without a sync. The log was
//! synced before, so the mark never claims more than is on disk, also after a power failure; after a power failure it may
//! claim less, and then a log that is lost in the same moment is not noticed. A killed process loses nothing of the mark.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::StoreError;

/// The name of the file in the data directory.
pub(super) const FILE: &str = "journal.mark";
const TITLE: &str = "calotype journal mark 1";

/// What a mark says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marked {
    /// The journal's own number, drawn at its making.
    pub id: u64,
    /// The durable commits that it had.
    pub commits: u64,
}

impl Marked {
    /// Always of the same length, so that it can be written over itself in one piece.
    fn to_text(self) -> String {
        let body = format!("{TITLE}\nid {:016x}\ncommits {:020}\n", self.id, self.commits);
        let check = blake3::hash(body.as_bytes()).to_hex();
        format!("{body}check {}\n", check.get(..16).unwrap_or_default())
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()? != TITLE {
            return None;
        }
        let id = u64::from_str_radix(lines.next()?.strip_prefix("id ")?, 16).ok()?;
        let commits = lines.next()?.strip_prefix("commits ")?.parse().ok()?;
        let marked = Self { id, commits };
        (marked.to_text() == text).then_some(marked)
    }
}

/// What the mark of a data directory says, where it has one.
pub(super) fn read(dir: &Path) -> Result<Option<Marked>, StoreError> {
    let path = dir.join(FILE);
    match fs::read_to_string(&path) {
        Ok(text) => match Marked::parse(&text) {
            Some(marked) => Ok(Some(marked)),
            None => Err(garbled(path)),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == ErrorKind::InvalidData => Err(garbled(path)),
        Err(error) => Err(error.into()),
    }
}

fn garbled(path: PathBuf) -> StoreError {
    StoreError::Unsound {
        problem: format!(
            "cannot be checked: the mark beside it, {}, is damaged, so a lost log would not be noticed",
            path.display()
        ),
        file: path.with_file_name(super::inspect::JOURNAL),
    }
}

/// The open mark of a journal in use.
#[derive(Debug)]
pub(super) struct Mark {
    file: File,
    id: u64,
}

impl Mark {
    /// Takes the mark of a journal over, or makes it. One that is there is written in place, which needs no room.
    pub(super) fn take(dir: &Path, marked: Marked) -> Result<Self, StoreError> {
        if read(dir)?.is_none_or(|there| there.id != marked.id) {
            return Self::make(dir, marked);
        }
        let file = File::options().write(true).open(dir.join(FILE))?;
        let mark = Self { file, id: marked.id };
        mark.reach(marked.commits)?;
        mark.sync()?;
        Ok(mark)
    }

    /// Makes the mark anew, whole and synced.
    pub(super) fn make(dir: &Path, marked: Marked) -> Result<Self, StoreError> {
        let torn = dir.join(format!("{FILE}.tmp"));
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&torn)?;
        file.write_all(marked.to_text().as_bytes())?;
        file.sync_all()?;
        fs::rename(&torn, dir.join(FILE))?;
        File::open(dir)?.sync_all()?;
        Ok(Self { file, id: marked.id })
    }

    /// The journal has synced so many commits.
    pub(super) fn reach(&self, commits: u64) -> std::io::Result<()> {
        let marked = Marked { id: self.id, commits };
        self.file.write_all_at(marked.to_text().as_bytes(), 0)
    }

    /// Puts the mark on disk.
    pub(super) fn sync(&self) -> std::io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written_and_a_damaged_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        let mark = Mark::make(dir.path(), Marked { id: 7, commits: 0 }).unwrap();
        mark.reach(u64::from(u32::MAX)).unwrap();
        let commits = u64::from(u32::MAX);
        assert_eq!(read(dir.path()).unwrap(), Some(Marked { id: 7, commits }));
        let path = dir.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap();
        for damaged in [
            String::new(),
            text.replace("id 0", "id 1"),
            text.trim_end().to_owned(),
        ] {
            fs::write(&path, damaged).unwrap();
            assert!(matches!(read(dir.path()), Err(StoreError::Unsound { .. })));
        }
    }
}
