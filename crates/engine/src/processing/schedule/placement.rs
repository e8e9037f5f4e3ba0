//! Which worker suits a demand, and what must happen there before a step of it can start. Pure. The dispatcher and
//! `validate` ask the same function, so that they cannot disagree.

use std::time::Duration;

use calotype_protocol::ModelId;

use super::choice::{Copies, choose};
use super::demand::{Demand, DemandId};
use super::estimates::Estimates;
use super::fleet::{Fleet, WorkerId};
use super::in_worker::act;
use super::reason::{Refusal, WaitReason};
use super::serves::{Derived, Serves};
use super::worker::Readiness;
use crate::memory::memory_plan::{MemoryPlan, Residency};

/// A step that wants a worker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) id: DemandId,
    pub(crate) demand: &'a Demand,
    pub(crate) derived: &'a Derived,
    /// The worker that holds its suspended work.
    pub(crate) bound_to: Option<WorkerId>,
    /// Device time that the step itself takes, in milliseconds: it does not wait for itself.
    pub(crate) own_ms: f64,
    /// The share of device time that its class has: what others wait for holds it up by as much more as theirs is larger.
    pub(crate) share: f64,
    /// Whether reservations for others hold it up.
    pub(crate) is_critical: bool,
    /// Whether it may have a copy of models that other workers hold.
    pub(crate) copies: Copies,
}

/// What must happen next for a step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Placement {
    /// It starts, or goes on.
    Start {
        worker: WorkerId,
        plan: MemoryPlan,
        working_bytes: u64,
        /// What its LoRAs take, where no other run uses the same set.
        lora_bytes: u64,
    },
    /// A model is loaded for it.
    Load {
        worker: WorkerId,
        model: ModelId,
        residency: Residency,
        weights_bytes: u64,
    },
    /// Idle models make room.
    Evict {
        /// Where the step will run; its idle models, and those of other workers of its device, are given up.
        worker: WorkerId,
        models: Vec<(WorkerId, ModelId)>,
    },
    /// An idle process that holds memory nothing accounts for is replaced.
    Recycle { worker: WorkerId },
    /// A worker is started.
    Wake { worker: WorkerId },
    /// Nothing can be done now.
    Wait {
        /// Where it would run.
        worker: Option<WorkerId>,
        reason: WaitReason,
    },
    /// Nothing can ever be done.
    Refuse(Refusal),
}

pub(super) fn wait(worker: WorkerId, reason: WaitReason) -> Placement {
    Placement::Wait {
        worker: Some(worker),
        reason,
    }
}

/// What must happen next for a step with this demand.
pub(crate) fn place(asked: Asked<'_>, fleet: &Fleet, estimates: &Estimates, now: Duration) -> Placement {
    let best = match asked.bound_to {
        Some(worker) => Some(worker),
        None => choose(asked, fleet, estimates, now),
    };
    let Some((id, worker)) = best.and_then(|id| Some((id, fleet.worker(id)?))) else {
        return nobody(asked, fleet);
    };
    match asked.derived.of_worker(id) {
        Serves::TooSmall { need_bytes } => {
            return Placement::Refuse(Refusal::TooLarge {
                need_bytes,
                budget_bytes: fleet.ledger(worker).map_or(0, |ledger| ledger.budget_bytes()),
            });
        }
        Serves::No if asked.bound_to.is_none() => return nobody(asked, fleet),
        Serves::Unknown | Serves::No | Serves::Yes { .. } => {}
    }
    match worker.readiness() {
        Readiness::Ready => {}
        Readiness::Asleep => return Placement::Wake { worker: id },
        Readiness::Starting | Readiness::Broken => {
            let (name, why) = (worker.spec.name.to_string(), worker.not_ready());
            return wait(id, WaitReason::WorkerNotReady { worker: name, why });
        }
    }
    match asked.derived.of_worker(id) {
        Serves::Yes { plan, working_bytes } => act(asked, fleet, (id, worker), plan, working_bytes),
        Serves::Unknown | Serves::No | Serves::TooSmall { .. } => {
            let worker = worker.spec.name.to_string();
            wait(id, WaitReason::CapabilitiesUnknown { worker })
        }
    }
}

/// Why no worker can do it.
fn nobody(asked: Asked<'_>, fleet: &Fleet) -> Placement {
    if fleet.workers.is_empty() {
        return Placement::Wait {
            worker: None,
            reason: WaitReason::NoWorker,
        };
    }
    let demand = asked.demand;
    let unusable = fleet
        .ids()
        .zip(&fleet.workers)
        .filter(|(id, _)| asked.derived.of_worker(*id) != Serves::No)
        .find_map(|(_, worker)| {
            let mut models = demand.models.iter();
            let model = models.find(|need| worker.unusable.contains_key(&need.model))?;
            Some(Refusal::Unusable {
                worker: worker.spec.name.to_string(),
                model: model.model.clone(),
            })
        });
    let missing = || {
        let workers = fleet.workers.iter().filter_map(|worker| {
            let name = worker.spec.name.to_string();
            let refused = demand.refused_by.iter().find(|(refuser, _)| *refuser == name);
            let missing = match refused {
                Some((_, missing)) => missing.clone(),
                None => demand.needs.missing_feature(worker.capabilities.as_ref()?)?,
            };
            Some((name, missing))
        });
        workers.collect()
    };
    Placement::Refuse(unusable.unwrap_or_else(|| Refusal::NotServed { missing: missing() }))
}
