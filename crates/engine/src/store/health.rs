//! What the store's last attempts say about the disk. Nothing here is guessed: every state comes from a write that was
//! tried, and a success of the same kind takes it back.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use super::StoreError;
use super::fault::Fault;

/// Whether the store can keep what is promised now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum StoreHealth {
    /// The last writes succeeded.
    #[default]
    Open,
    /// The disk is full; nothing new is accepted until there is room.
    Full {
        /// What failed, for people.
        message: String,
    },
    /// The disk fails, takes no writes, or the data directory is gone.
    Failed {
        /// What failed, for people.
        message: String,
    },
}

impl StoreHealth {
    /// What an error of a write says about the disk; nothing where the disk is not to blame.
    fn of(error: &StoreError) -> Option<Self> {
        let message = error.to_string();
        match error.fault() {
            Fault::Full => Some(Self::Full { message }),
            Fault::ReadOnly | Fault::Gone | Fault::Broken => Some(Self::Failed { message }),
            Fault::NotTheDisk => None,
        }
    }
}

/// Which writes an outcome speaks of: a small journal write may succeed where a picture finds no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Journal,
    Artifacts,
}

/// Gathers outcomes, and tells those who watch.
#[derive(Debug, Default)]
pub(super) struct Health {
    parts: Mutex<[StoreHealth; 2]>,
    told: watch::Sender<StoreHealth>,
}

impl Health {
    /// Takes the outcome of a write that was tried.
    pub(super) fn tried(&self, part: Part, outcome: Result<(), &StoreError>) {
        let found = match outcome {
            Ok(()) => StoreHealth::Open,
            Err(error) => match StoreHealth::of(error) {
                Some(found) => found,
                None => return,
            },
        };
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let [journal, artifacts] = &mut *parts;
        match part {
            Part::Journal => *journal = found,
            Part::Artifacts => *artifacts = found,
        }
        let whole = match (&*journal, &*artifacts) {
            (StoreHealth::Open, artifacts) => artifacts.clone(),
            (journal, _) => journal.clone(),
        };
        let before = self.told.send_if_modified(|told| {
            let is_new = *told != whole;
            told.clone_from(&whole);
            is_new
        });
        if before {
            match whole {
                StoreHealth::Open => tracing::info!("The store takes writes again"),
                StoreHealth::Full { message } | StoreHealth::Failed { message } => {
                    tracing::error!("The store takes no writes: {message}");
                }
            }
        }
    }

    pub(super) fn now(&self) -> StoreHealth {
        self.told.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<StoreHealth> {
        self.told.subscribe()
    }
}
