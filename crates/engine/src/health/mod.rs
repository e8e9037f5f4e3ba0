//! Whether each of the six links can do its part, judged by what was tried or read, and never by a constant.
//!
//! `probe` tries, `collect` makes `facts` of what the dispatcher shows, `verdict` judges them, and `view` is what clients see.

mod collect;
mod facts;
mod probe;
#[cfg(test)]
mod tests;
mod verdict;
mod view;

pub(crate) use collect::{memory as memory_facts, workers as worker_facts};
pub use facts::{
    HealthFacts, MemoryFacts, ModelCounts, RunFacts, RunFailure, Tried, WorkerFacts, WorkerHealth,
};
pub(crate) use probe::encodes;
pub use probe::{JournalProbe, Probe};
pub use verdict::{BEAT_WITHIN_MS, FAILURES_IN_A_ROW, READ_WITHIN_MS, Status, chain, status};
pub use view::{DomainHealth, Health};
