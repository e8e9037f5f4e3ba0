//! What survives a crash: the journal (SQLite, one writing thread) and content-addressed artifacts.
//!
//! `open` opens a data directory after `inspect` has looked at it; `write` and `insert` change the journal by the one
//! `writer`, `journal` asks it by a `pool` of readers; `sweep`, `retention` and `trash` take away what is not wanted any
//! more; `reserve`, `folder` and `health` are for disks that fill up and fail; `rescue` is for journals that were damaged.

mod artifacts;
mod fault;
mod folder;
mod health;
mod insert;
mod inspect;
mod journal;
mod lock;
mod marker;
mod open;
mod pool;
mod probe;
mod refs;
pub mod rescue;
mod reserve;
mod retention;
mod rows;
mod sweep;
#[cfg(test)]
mod tests;
mod trash;
mod write;
mod writer;

pub use crate::artifact::ArtifactHash;
pub use artifacts::Artifacts;
pub use fault::{Fault, StoreError};
pub use health::StoreHealth;
pub use insert::{Inserted, NewJob};
pub use journal::JobFilter;
pub use open::{Store, WeakStore};
pub use retention::{Retention, keep_tidy};
pub use sweep::Swept;
pub use write::{Finish, Held, Receipt, Write};
