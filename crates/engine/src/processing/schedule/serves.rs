//! Whether a worker can do what a demand asks, as far as that follows from its capabilities and budget. Pure.

use super::demand::{Demand, DemandId};
use super::fleet::{Fleet, WorkerId};
use super::worker::Worker;
use crate::inference::ModelNeed;
use crate::memory::memory_plan::{MemoryPlan, Precision, Slicing};

/// Whether a worker can do what a demand asks, as far as that follows from its capabilities and budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Serves {
    /// It has not reported its capabilities.
    Unknown,
    /// It lacks a feature.
    No,
    /// It could, and does not have the memory for it in any way.
    TooSmall {
        /// The least that it would take.
        need_bytes: u64,
    },
    /// It can.
    Yes {
        /// The fastest way that fits.
        plan: MemoryPlan,
        /// What the step takes beside the weights in that way.
        working_bytes: u64,
    },
}

/// What a demand means to each worker; valid for one [`Fleet::generation`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Derived {
    pub(crate) generation: u64,
    pub(crate) by_worker: Vec<Serves>,
}

impl Derived {
    /// Of a demand, with the working set of each kind of worker.
    pub(crate) fn of(
        demand: &Demand,
        fleet: &Fleet,
        working_bytes: impl Fn(&Worker, Slicing) -> u64,
    ) -> Self {
        let by_worker = fleet.workers.iter().map(|worker| {
            let name = &*worker.spec.name;
            if demand.refused_by.iter().any(|(refuser, _)| refuser == name) {
                return Serves::No;
            }
            let Some(can) = &worker.capabilities else {
                return Serves::Unknown;
            };
            if demand.needs.missing_feature(can).is_some() {
                return Serves::No;
            }
            let budget_bytes = fleet.ledger(worker).map_or(0, |ledger| ledger.budget_bytes());
            let weights_bytes = ModelNeed::sum(&demand.models, worker.precision);
            let lora_bytes = demand.lora_bytes(worker.precision);
            let working = |slicing| working_bytes(worker, slicing);
            match worker
                .memory_features
                .fastest_fit(weights_bytes, lora_bytes, working, budget_bytes)
            {
                Ok(plan) => Serves::Yes {
                    plan,
                    working_bytes: working(plan.slicing),
                },
                Err(need_bytes) => Serves::TooSmall { need_bytes },
            }
        });
        Self {
            generation: fleet.generation,
            by_worker: by_worker.collect(),
        }
    }

    pub(crate) fn of_worker(&self, worker: WorkerId) -> Serves {
        self.by_worker
            .get(worker.0 as usize)
            .copied()
            .unwrap_or(Serves::No)
    }
}

impl Demand {
    pub(super) fn lora_bytes(&self, precision: Precision) -> u64 {
        self.adapters.as_ref().map_or(0, |need| need.bytes(precision))
    }
}

/// What each demand means to each worker, derived when it is asked for.
#[derive(Debug, Default)]
pub(crate) struct DerivedTable {
    by_demand: Vec<Derived>,
}

impl DerivedTable {
    pub(crate) fn of(&mut self, id: DemandId, generation: u64, derive: impl FnOnce() -> Derived) -> &Derived {
        if self.by_demand.len() <= id.index() {
            self.by_demand.resize_with(id.index() + 1, Derived::default);
        }
        let place = &mut self.by_demand[id.index()];
        if place.generation != generation {
            *place = derive();
        }
        place
    }

    /// The id is given to another demand next.
    pub(crate) fn forget(&mut self, id: DemandId) {
        if let Some(place) = self.by_demand.get_mut(id.index()) {
            *place = Derived::default();
        }
    }
}
