//! One engine a folder. The operating system drops the lock with its process, however that ends.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::Path;

use super::StoreError;

/// The folder is ours while this lives.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Takes the folder, or says who has it.
pub(super) fn take(dir: &Path) -> Result<Lock, StoreError> {
    let path = dir.join("lock");
    // Not truncated: until the lock is ours, the name in it is another's.
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0)?;
            write!(file, "process {}", std::process::id())?;
            Ok(Lock { _file: file })
        }
        Err(TryLockError::WouldBlock) => {
            let named = fs::read_to_string(&path).unwrap_or_default();
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
