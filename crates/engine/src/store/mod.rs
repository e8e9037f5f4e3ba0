//! What survives a crash: the journal (SQLite, one writing thread) and content-addressed artifacts.

mod artifacts;

pub use artifacts::ArtifactHash;
