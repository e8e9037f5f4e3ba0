//! One engine a data directory. The operating system drops the lock with its process, however that ends.
//!
//! The lock is on the directory itself, which nobody can delete from under us without being noticed; the file `lock` in
//! it names the holder, and is locked as well because earlier versions look there.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::Path;

use super::StoreError;

/// The folder is ours while this lives.
#[derive(Debug)]
pub(super) struct Lock {
    _dir: Option<File>,
    _file: Option<File>,
}

/// Takes the folder and writes our name into it, or says who has it.
pub(super) fn take(dir: &Path) -> Result<Lock, StoreError> {
    let held = lock_folder(dir)?;
    // Not truncated: until the lock is ours, the name in it is another's.
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join("lock"))?;
    let mut file = lock(file, dir)?;
    // The name is for people: a full disk must not keep the server from starting.
    let _ = file
        .set_len(0)
        .and_then(|()| write!(file, "process {}", std::process::id()));
    Ok(Lock {
        _dir: held,
        _file: Some(file),
    })
}

/// Takes the folder without a trace in it, for those who only look.
pub(super) fn hold(dir: &Path) -> Result<Lock, StoreError> {
    let held = lock_folder(dir)?;
    // An earlier version holds only the file.
    let file = match File::open(dir.join("lock")) {
        Ok(file) => Some(lock(file, dir)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    Ok(Lock {
        _dir: held,
        _file: file,
    })
}

/// Nothing on a file system that locks no folders; there the file alone decides.
fn lock_folder(dir: &Path) -> Result<Option<File>, StoreError> {
    match lock(File::open(dir)?, dir) {
        Ok(held) => Ok(Some(held)),
        Err(StoreError::Disk(error)) => {
            tracing::debug!("{} cannot be locked itself: {error}", dir.display());
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn lock(file: File, dir: &Path) -> Result<File, StoreError> {
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let named = fs::read_to_string(dir.join("lock")).unwrap_or_default();
            let holder = if named.is_empty() {
                "process unknown".to_owned()
            } else {
                named
            };
            Err(StoreError::InUse {
                dir: dir.to_owned(),
                holder,
            })
        }
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}
