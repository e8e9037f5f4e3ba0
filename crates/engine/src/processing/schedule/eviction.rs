//! Which idle models, and which processes, make room for a step. Pure.

use calotype_protocol::ModelId;

use super::demand::Demand;
use super::fleet::{Fleet, WorkerId};
use super::placement::Asked;
use super::reason::Refusal;
use super::worker::{Readiness, Worker};
use crate::memory::memory_plan::MemoryPlan;

/// Whether an idle model is left to those that wait for it. Else two models would throw each other out before either was
/// used: a worker is given from one to the other by a reservation, which is earned by waiting.
pub(super) fn is_spared(asked: Asked<'_>, fleet: &Fleet, worker: &Worker, model: &ModelId) -> bool {
    let is_own = asked.demand.models.iter().any(|need| need.model == *model);
    let has_right = asked.is_critical || worker.is_reserved_for(asked.id);
    !is_own && !has_right && fleet.wanted(model).steps > 0
}

/// An idle model in the order of eviction: whether parked runs need it, and whether it is the only copy of what others wait
/// for; its last use; its bytes; and where it is.
type Idle = ((bool, bool), u64, u64, WorkerId, ModelId);

/// Idle models of the device that together free `short_bytes`, the longest unused first; `None` when all of them would
/// not do. Those that parked runs need come last, and before them the only copies of what others wait for. One that was
/// loaded for a step that could not use it yet goes only for a step that has the worker reserved: else two steps could make
/// each other's model go for ever.
pub(super) fn evictable(
    asked: Asked<'_>,
    fleet: &Fleet,
    worker: &Worker,
    short_bytes: u64,
) -> Option<Vec<(WorkerId, ModelId)>> {
    let is_reserved = worker.is_reserved_for(asked.id);
    let of_device = fleet.ids().zip(&fleet.workers).filter(|(_, other)| {
        other.spec.device == worker.spec.device
            && other.readiness() == Readiness::Ready
            && other.pending.is_none()
    });
    let mut idle: Vec<Idle> = of_device
        .flat_map(|(id, other)| {
            let is_own = other.spec.name == worker.spec.name;
            let models = other.resident.iter().filter(move |(model, resident)| {
                let may_go = resident.was_used || is_reserved;
                let is_needed = is_own && asked.demand.models.iter().any(|need| need.model == **model);
                !other.is_in_use(model) && !is_needed && may_go && !is_spared(asked, fleet, worker, model)
            });
            models.map(move |(model, resident)| {
                let is_parked_on = other.parked_on(model).next().is_some();
                let wanted = fleet.wanted(model);
                let is_last_of_wanted = wanted.steps > 0 && wanted.holders <= 1;
                (
                    (is_parked_on, is_last_of_wanted),
                    resident.last_use,
                    resident.bytes,
                    id,
                    model.clone(),
                )
            })
        })
        .collect();
    idle.sort();
    let mut freed_bytes = 0u64;
    let mut models = Vec::new();
    for (_, _, bytes, id, model) in idle {
        if freed_bytes >= short_bytes {
            break;
        }
        freed_bytes = freed_bytes.saturating_add(bytes);
        models.push((id, model));
    }
    (freed_bytes >= short_bytes && !models.is_empty()).then_some(models)
}

/// The demand's own models that must be loaded anew in a smaller way, now that nobody uses them: beside them as they are
/// held, the step would wait for ever.
pub(super) fn held_too_large(
    demand: &Demand,
    id: WorkerId,
    worker: &Worker,
    plan: MemoryPlan,
) -> Option<Vec<(WorkerId, ModelId)>> {
    let own = demand.models.iter().filter(|need| {
        let resident = worker.resident.get(&need.model);
        resident.is_some_and(|resident| resident.residency.is_too_large_for(plan))
    });
    let models: Vec<_> = own.map(|need| (id, need.model.clone())).collect();
    (worker.runs.is_empty() && !models.is_empty()).then_some(models)
}

/// Why a step never fits beside its own models as they were measured: nobody else holds memory that could come back.
pub(super) fn never_fits(
    demand: &Demand,
    fleet: &Fleet,
    worker: &Worker,
    need_bytes: u64,
) -> Option<Refusal> {
    let ledger = fleet.ledger(worker)?;
    let own = demand
        .models
        .iter()
        .filter_map(|need| worker.resident.get(&need.model));
    let own_bytes = own.fold(0u64, |sum, resident| sum.saturating_add(resident.bytes));
    (worker.runs.is_empty() && own_bytes > 0 && ledger.leased_bytes() == own_bytes).then(|| {
        Refusal::TooLarge {
            need_bytes: need_bytes.saturating_add(own_bytes),
            budget_bytes: ledger.budget_bytes(),
        }
    })
}

/// An idle worker of the device whose process holds memory that its unloads did not give back, where its end gives back
/// enough.
pub(super) fn leaky(fleet: &Fleet, worker: &Worker, short_bytes: u64) -> Option<WorkerId> {
    let mut of_device = fleet.ids().zip(&fleet.workers).filter(|(_, other)| {
        other.spec.device == worker.spec.device
            && other.readiness() == Readiness::Ready
            && other.runs.is_empty()
            && other.pending.is_none()
    });
    let comes_back = |other: &Worker| {
        let resident = other.resident.values().map(|resident| resident.bytes);
        resident.fold(other.unreturned_bytes, u64::saturating_add)
    };
    of_device.find_map(|(id, other)| {
        (other.unreturned_bytes > 0 && comes_back(other) >= short_bytes).then_some(id)
    })
}
