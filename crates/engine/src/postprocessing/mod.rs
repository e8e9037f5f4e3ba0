//! From a worker's pixels to a file: `finish` encodes it with its metadata.

mod finish;

pub(crate) use finish::finish;
