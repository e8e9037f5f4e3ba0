//! The one file with `unsafe`: a file mapped read-only.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

/// Maps `path` into memory, read-only.
///
/// Contract: model files are replaced by rename and never written in place or truncated while a worker runs. A file that is
/// truncated all the same ends this process with SIGBUS, which the orchestrator takes for a crash of the worker; its
/// bytes are only ever read as plain numbers, so a change of content cannot break memory safety beyond that.
#[expect(unsafe_code, reason = "mapping a file; the contract is above")]
pub(crate) fn map(path: &Path) -> std::io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: see the contract above.
    unsafe { Mmap::map(&file) }
}
