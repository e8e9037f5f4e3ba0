//! Disk space that is kept back, so that a full disk can still take the end of a job and the deletion of one. It is given
//! up when one of them finds no room, and made anew once there is room; meanwhile nothing new is accepted.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// The name of the file in the data directory.
pub(super) const FILE: &str = "reserve";
/// Hundreds of ends and deletions, and the journal's index.
pub(super) const SIZE_BYTES: u64 = 4 << 20;
/// A full disk is not asked more often than this whether it has room again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Held,
    GivenUp { tried: Option<Instant> },
}

impl Reserve {
    /// Makes the reserve, or begins without one where there is no room for it.
    pub(super) fn make(dir: &Path) -> Self {
        let path = dir.join(FILE);
        let state = match allocate(&path) {
            Ok(()) => State::Held,
            Err(error) => {
                tracing::warn!("No room is kept back in {}: {error}", dir.display());
                State::GivenUp {
                    tried: Some(Instant::now()),
                }
            }
        };
        Self {
            path,
            state: Mutex::new(state),
        }
    }

    /// Gives the space back to the disk; says whether there was any.
    pub(super) fn give_up(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match *state {
            State::GivenUp { .. } => false,
            State::Held => {
                *state = State::GivenUp {
                    tried: Some(Instant::now()),
                };
                tracing::warn!(
                    "The disk is full: the reserve {} is given up",
                    self.path.display()
                );
                fs::remove_file(&self.path).is_ok()
            }
        }
    }

    /// Whether the space is kept back. Tries to take it again where it is not, at most once a second.
    pub(super) fn is_held(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match *state {
            State::Held => true,
            State::GivenUp { tried: Some(tried) } if tried.elapsed() < RETRY_AFTER => false,
            State::GivenUp { .. } => {
                let is_held = allocate(&self.path).is_ok();
                *state = match is_held {
                    true => State::Held,
                    false => State::GivenUp {
                        tried: Some(Instant::now()),
                    },
                };
                is_held
            }
        }
    }

    /// Whether the space was given up and has not been taken again.
    pub(super) fn is_given_up(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(*state, State::GivenUp { .. })
    }

    /// Lets the next question try at once: something has made room.
    pub(super) fn try_soon(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::GivenUp { tried } = &mut *state {
            *tried = None;
        }
    }
}

/// Blocks that are really the file's: a hole would keep nothing back.
fn allocate(path: &Path) -> std::io::Result<()> {
    if fs::metadata(path).is_ok_and(|facts| is_whole(&facts)) {
        return Ok(());
    }
    let made = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .and_then(|file| fill(file, SIZE_BYTES));
    if made.is_err() {
        let _ = fs::remove_file(path);
    }
    made
}

fn is_whole(facts: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    facts.len() == SIZE_BYTES && facts.blocks() * 512 >= SIZE_BYTES
}

fn fill(mut file: File, size_bytes: u64) -> std::io::Result<()> {
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size_bytes) {
        Ok(()) => return Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
        Err(error) => return Err(error.into()),
    }
    // A file system without preallocation: bytes that no compression makes small.
    let mut bytes = vec![0_u8; 1 << 16];
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for byte in &mut bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (state >> 56) as u8;
    }
    let mut left = size_bytes;
    while left > 0 {
        let piece = bytes.len().min(left as usize);
        let piece = bytes.get(..piece).ok_or(ErrorKind::InvalidInput)?;
        file.write_all(piece)?;
        left -= piece.len() as u64;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_reserve_holds_real_blocks_and_is_taken_again_after_it_was_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::make(dir.path());
        let facts = fs::metadata(dir.path().join(FILE)).unwrap();
        assert!(facts.blocks() * 512 >= SIZE_BYTES);
        assert!(reserve.give_up());
        assert!(!dir.path().join(FILE).exists());
        assert!(!reserve.give_up(), "there is nothing left to give up");
        assert!(!reserve.is_held(), "a full disk is not asked again at once");
        reserve.try_soon();
        assert!(reserve.is_held());
        assert_eq!(fs::metadata(dir.path().join(FILE)).unwrap().len(), SIZE_BYTES);
    }
}
