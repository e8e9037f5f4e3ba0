//! The ledger of one device: budget, leases, what is free. Pure arithmetic; only the dispatcher changes it.
//!
//! A lease outlives the thing it is for: it is released when the memory is back, not when somebody asked for it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use calotype_protocol::{JobId, ModelId};

/// What a lease is for. There is at most one lease an owner.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A model's weights, while it is resident in a worker.
    Weights {
        /// The worker: two of them can hold one model each on their own.
        worker: String,
        /// The model.
        model: ModelId,
    },
    /// Weights that LoRAs have changed, as long as a job in the worker uses the set.
    Adapters {
        /// The worker.
        worker: String,
        /// The model with the set.
        set: Arc<str>,
    },
    /// What a job needs beside the weights.
    WorkingSet(JobId),
    /// What unloads in a worker did not give back; its process's end does.
    Unreturned {
        /// The worker.
        worker: String,
    },
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Weights { worker, model } => write!(f, "weights:{worker}:{model}"),
            Owner::Adapters { worker, set } => write!(f, "adapters:{worker}:{set}"),
            Owner::WorkingSet(job) => write!(f, "working_set:{job}"),
            Owner::Unreturned { worker } => write!(f, "unreturned:{worker}"),
        }
    }
}

/// Why a lease was not granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// Not even an empty device would do.
    #[error("{need_bytes} bytes are needed, the device's budget is {budget_bytes}")]
    Never {
        /// Asked for.
        need_bytes: u64,
        /// The most there is.
        budget_bytes: u64,
    },
    /// Others hold it now.
    #[error("{need_bytes} bytes are needed, {free_bytes} are free now")]
    NotNow {
        /// Asked for.
        need_bytes: u64,
        /// Not leased.
        free_bytes: u64,
    },
}

/// Leases on one device.
#[derive(Debug, Clone)]
pub struct Ledger {
    budget_bytes: u64,
    leases: BTreeMap<Owner, u64>,
    /// The sum of `leases`.
    leased_bytes: u64,
    high_water_bytes: u64,
}

impl Ledger {
    /// An empty ledger.
    pub fn new(budget_bytes: u64) -> Self {
        Self {
            budget_bytes,
            leases: BTreeMap::new(),
            leased_bytes: 0,
            high_water_bytes: 0,
        }
    }

    /// The most that may be leased.
    pub fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    /// The sum of the leases. More than the budget only after a measured figure corrected an estimate upwards.
    pub fn leased_bytes(&self) -> u64 {
        self.leased_bytes
    }

    /// What can still be leased.
    pub fn free_bytes(&self) -> u64 {
        self.budget_bytes.saturating_sub(self.leased_bytes())
    }

    /// The highest sum so far.
    pub fn high_water_bytes(&self) -> u64 {
        self.high_water_bytes
    }

    /// Every lease.
    pub fn leases(&self) -> impl Iterator<Item = (&Owner, u64)> {
        self.leases.iter().map(|(owner, bytes)| (owner, *bytes))
    }

    /// Grants a lease; one that the owner already has is replaced.
    pub fn reserve(&mut self, owner: Owner, need_bytes: u64) -> Result<(), NoRoom> {
        if need_bytes > self.budget_bytes {
            return Err(NoRoom::Never {
                need_bytes,
                budget_bytes: self.budget_bytes,
            });
        }
        let held_bytes = self.of(&owner);
        let free_bytes = self.free_bytes().saturating_add(held_bytes);
        if need_bytes > free_bytes {
            return Err(NoRoom::NotNow {
                need_bytes,
                free_bytes,
            });
        }
        self.set(owner, need_bytes);
        Ok(())
    }

    /// Replaces an estimate by what was measured. Truth is written down even where it breaks the budget.
    pub fn correct(&mut self, owner: &Owner, measured_bytes: u64) {
        if self.leases.contains_key(owner) {
            self.set(owner.clone(), measured_bytes);
        }
    }

    /// Writes down memory that is held whether or not it was granted.
    pub fn hold(&mut self, owner: Owner, held_bytes: u64) {
        self.set(owner, held_bytes);
    }

    /// What an owner has; 0 where it has no lease.
    pub fn of(&self, owner: &Owner) -> u64 {
        self.leases.get(owner).copied().unwrap_or(0)
    }

    /// Takes a lease back and says how much it was.
    pub fn release(&mut self, owner: &Owner) -> u64 {
        let bytes = self.leases.remove(owner).unwrap_or(0);
        self.leased_bytes -= bytes;
        bytes
    }

    fn set(&mut self, owner: Owner, bytes: u64) {
        let before_bytes = self.leases.insert(owner, bytes).unwrap_or(0);
        self.leased_bytes = (self.leased_bytes - before_bytes).saturating_add(bytes);
        self.high_water_bytes = self.high_water_bytes.max(self.leased_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn job(name: u8) -> Owner {
        Owner::WorkingSet(JobId(format!("job_{name}")))
    }

    #[test]
    fn what_can_never_fit_is_told_apart_from_what_does_not_fit_now() {
        let mut ledger = Ledger::new(100);
        assert_eq!(
            ledger.reserve(job(1), 101),
            Err(NoRoom::Never {
                need_bytes: 101,
                budget_bytes: 100
            })
        );
        ledger.reserve(job(1), 60).unwrap();
        assert_eq!(
            ledger.reserve(job(2), 41),
            Err(NoRoom::NotNow {
                need_bytes: 41,
                free_bytes: 40
            })
        );
        ledger.reserve(job(2), 40).unwrap();
    }

    #[test]
    fn a_measured_figure_replaces_the_estimate_and_may_break_the_budget() {
        let mut ledger = Ledger::new(100);
        ledger.reserve(job(1), 50).unwrap();
        ledger.correct(&job(1), 120);
        assert_eq!((ledger.leased_bytes(), ledger.free_bytes()), (120, 0));
        ledger.correct(&job(2), 7);
        assert_eq!(ledger.leased_bytes(), 120);
    }

    proptest! {
        #[test]
        fn leases_never_exceed_the_budget_and_all_come_back(
            moves in proptest::collection::vec((0u8..8, any::<bool>(), 0u64..200), 0..100),
        ) {
            let mut ledger = Ledger::new(300);
            for (name, reserve, bytes) in moves {
                if reserve {
                    let _ = ledger.reserve(job(name), bytes);
                } else {
                    ledger.release(&job(name));
                }
                prop_assert!(ledger.leased_bytes() <= ledger.budget_bytes());
                prop_assert_eq!(ledger.free_bytes(), 300 - ledger.leased_bytes());
                prop_assert!(ledger.high_water_bytes() >= ledger.leased_bytes());
            }
            for name in 0..8 {
                ledger.release(&job(name));
            }
            prop_assert_eq!(ledger.leased_bytes(), 0);
        }
    }
}
