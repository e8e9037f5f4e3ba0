//! What must happen in the chosen worker before a step can start there. Pure.

use calotype_protocol::ModelId;

use super::eviction::{evictable, held_too_large, leaky, never_fits};
use super::fleet::{Fleet, WorkerId};
use super::placement::{Asked, Placement, wait};
use super::reason::WaitReason;
use super::worker::{MoveKind, Worker};
use crate::inference::ModelNeed;
use crate::memory::memory_plan::{MemoryPlan, lora_on_device_bytes, on_device_bytes};

/// What must happen in the chosen worker, which is ready and can do it.
pub(super) fn act(
    asked: Asked<'_>,
    fleet: &Fleet,
    (id, worker): (WorkerId, &Worker),
    plan: MemoryPlan,
    working_bytes: u64,
) -> Placement {
    let demand = asked.demand;
    let name = || worker.spec.name.to_string();
    if let Some(reason) = occupied(asked, fleet, worker) {
        return wait(id, reason);
    }
    // Changed weights lie where the model does, which may have been loaded for a smaller job.
    let first = demand
        .models
        .first()
        .and_then(|need| worker.resident.get(&need.model));
    let offload = first.map_or(plan.offload, |resident| resident.residency.offload);
    let lora_bytes = match &demand.adapters {
        Some(need) if !worker.uses_adapters(&need.set) => {
            lora_on_device_bytes(need.bytes(worker.precision), offload)
        }
        Some(_) | None => 0,
    };
    let weights = |need: &ModelNeed| on_device_bytes(need.weights_bytes(worker.precision), plan.offload);
    let is_missing = |need: &&ModelNeed| !worker.resident.contains_key(&need.model);
    let missing_bytes = demand
        .models
        .iter()
        .filter(is_missing)
        .fold(0u64, |sum, need| sum.saturating_add(weights(need)));
    let need_bytes = missing_bytes
        .saturating_add(working_bytes)
        .saturating_add(lora_bytes);
    let free_bytes = fleet.ledger(worker).map_or(0, |ledger| ledger.free_bytes());
    let too_large = |need: &&ModelNeed| {
        let resident = worker.resident.get(&need.model);
        resident.is_some_and(|resident| resident.residency.holds_scores(plan))
    };
    let holds_scores = demand.models.iter().any(|need| too_large(&need));
    if need_bytes > free_bytes || holds_scores {
        let mut short_bytes = need_bytes.saturating_sub(free_bytes);
        if let (coming_bytes, Some(unloads)) = fleet.coming_back(worker.spec.device) {
            if short_bytes <= coming_bytes && !holds_scores {
                let worker = unloads.spec.name.to_string();
                return wait(id, WaitReason::WorkerMovesModels { worker });
            }
            short_bytes = short_bytes.saturating_sub(coming_bytes);
        }
        let idle = (!holds_scores)
            .then(|| evictable(asked, fleet, worker, short_bytes))
            .flatten();
        if let Some(models) = idle.or_else(|| held_too_large(demand, id, worker, plan)) {
            return Placement::Evict { worker: id, models };
        }
        if let Some(worker) = leaky(fleet, worker, short_bytes) {
            return Placement::Recycle { worker };
        }
        if let Some(refusal) = never_fits(demand, fleet, worker, need_bytes) {
            return Placement::Refuse(refusal);
        }
        let device = fleet
            .device(worker.spec.device)
            .map_or_else(String::new, |device| device.id.clone());
        let reason = WaitReason::MemoryInUse {
            device,
            need_bytes,
            free_bytes,
        };
        return wait(id, reason);
    }
    match demand.models.iter().find(is_missing) {
        Some(need) if !worker.runs.is_empty() && !worker.loads_beside_runs() => {
            let (worker, model) = (name(), need.model.clone());
            wait(id, WaitReason::LoadWaitsForRuns { worker, model })
        }
        Some(need) => Placement::Load {
            worker: id,
            model: need.model.clone(),
            residency: plan.into(),
            weights_bytes: weights(need),
        },
        None => Placement::Start {
            worker: id,
            plan,
            working_bytes,
            lora_bytes,
        },
    }
}

/// Why a worker takes nothing more now, or not this step.
pub(super) fn occupied(asked: Asked<'_>, fleet: &Fleet, worker: &Worker) -> Option<WaitReason> {
    let name = || worker.spec.name.to_string();
    let needs = |model: &ModelId| asked.demand.models.iter().any(|need| need.model == *model);
    let places = fleet.places(worker);
    match &worker.pending {
        Some(pending) if needs(&pending.model) && matches!(pending.kind, MoveKind::Load { .. }) => {
            return Some(WaitReason::ModelLoads {
                worker: name(),
                model: pending.model.clone(),
            });
        }
        Some(_) => {
            let mut models = asked.demand.models.iter();
            let is_untouched = models.all(|need| {
                worker.resident.contains_key(&need.model) && {
                    let pending = worker.pending.as_ref();
                    pending.is_none_or(|pending| pending.model != need.model)
                }
            });
            if !(is_untouched && worker.loads_beside_runs()) {
                return Some(WaitReason::WorkerMovesModels { worker: name() });
            }
        }
        None => {}
    }
    if fleet.is_reserved_for_another(worker, asked.id, asked.is_critical) {
        Some(WaitReason::Reserved { worker: name() })
    } else if worker.runs_alone {
        Some(WaitReason::WorkerRunsAlone { worker: name() })
    } else if asked.demand.exclusive && !worker.runs.is_empty() {
        Some(WaitReason::NeedsWorkerAlone { worker: name() })
    } else if worker.runs.len() >= places {
        let worker = name();
        Some(WaitReason::PlacesTaken { worker, places })
    } else {
        None
    }
}
