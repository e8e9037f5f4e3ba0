//! Which worker suits a demand, and what must happen there before a step of it can start. Pure. The dispatcher and
//! `validate` ask the same function, so that they cannot disagree.
//!
//! Workers are compared by what cannot change soon (it fits, it is ready or about to be, its rank, how little is given up
//! for memory), and those that are equal by when the step would be done there: the work that is in the worker, and the
//! loads and evictions that the step would cost. So a model is copied to an idle worker when waiting for the busy one takes
//! longer than the load, and two models settle on two workers.

use std::time::Duration;

use calotype_protocol::ModelId;

use super::decide::SWITCHES_WAITED;
use super::demand::{Demand, DemandId};
use super::estimates::Estimates;
use super::fleet::{Fleet, MoveKind, Readiness, Worker, WorkerId};
use super::reason::{Refusal, WaitReason};
use crate::inference::ModelNeed;
use crate::memory::memory_plan::{
    MemoryPlan, Precision, Residency, Slicing, lora_on_device_bytes, on_device_bytes,
};

/// A model of fewer bytes is worth no wait for a better device: a processor has drawn its picture before an accelerator's
/// worker has started.
const SMALL_BYTES: u64 = 512 << 20;

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
    /// Whether reservations for others hold it up.
    pub(crate) is_critical: bool,
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
    Evict { models: Vec<(WorkerId, ModelId)> },
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

fn wait(worker: WorkerId, reason: WaitReason) -> Placement {
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

/// The worker that suits best, among those that can do it or have not reported yet what they can.
fn choose(asked: Asked<'_>, fleet: &Fleet, estimates: &Estimates, now: Duration) -> Option<WorkerId> {
    let worth_a_wait = ModelNeed::sum(&asked.demand.models, Precision::Single) >= SMALL_BYTES;
    let mut best: Option<(_, WorkerId)> = None;
    let mut equals: Vec<WorkerId> = Vec::new();
    for (id, worker) in fleet.ids().zip(&fleet.workers) {
        let serves = asked.derived.of_worker(id);
        let is_unusable = || {
            let mut models = asked.demand.models.iter();
            !worker.unusable.is_empty() && models.any(|need| worker.unusable.contains_key(&need.model))
        };
        if serves == Serves::No || is_unusable() {
            continue;
        }
        let readiness = worker.readiness();
        let cost = match serves {
            Serves::Yes { plan, .. } => plan.cost(),
            Serves::Unknown | Serves::No | Serves::TooSmall { .. } => 0,
        };
        let key = (
            // One that is too small is chosen only to report why, if no other can do it.
            matches!(serves, Serves::TooSmall { .. }),
            // Of those that are there or about to be, the better device; others are a last resort.
            if worth_a_wait {
                readiness.max(Readiness::Starting)
            } else {
                readiness
            },
            worker.spec.rank,
            // Of two cards the one that has memory for all of it.
            cost,
            readiness,
        );
        match &best {
            Some((best_key, _)) if key > *best_key => {}
            Some((best_key, _)) if key == *best_key => equals.push(id),
            _ => {
                best = Some((key, id));
                equals.clear();
                equals.push(id);
            }
        }
    }
    if let [only] = equals[..] {
        return Some(only);
    }
    let mut soonest: Option<(f64, usize, usize, WorkerId)> = None;
    let has_models = |worker: &Worker| {
        let mut models = asked.demand.models.iter();
        models.all(|need| {
            let pending = worker.pending.as_ref();
            worker.resident.contains_key(&need.model)
                || pending.is_some_and(|pending| pending.model == need.model)
        })
    };
    let has_holder = equals.iter().filter_map(|id| fleet.worker(*id)).any(&has_models);
    for id in equals {
        let Some(worker) = fleet.worker(id) else { continue };
        if worker.is_reserved_for(asked.id) {
            return Some(id);
        }
        // A copy on a busy worker adds no capacity, and costs the load.
        if has_holder && !has_models(worker) && !takes_copy_now(asked, fleet, id, worker) {
            continue;
        }
        let best_ms = soonest.map_or(f64::INFINITY, |(ms, ..)| ms);
        let (mut ms, missing) = done_after_ms(asked, fleet, (id, worker), (estimates, now), best_ms);
        let starts_now =
            has_models(worker) && worker.pending.is_none() && worker.runs.len() < fleet.places(worker);
        if !starts_now {
            // Others wait for the models there: another worker is worth a load if less waits for what it has.
            let own_ms = if has_models(worker) { asked.own_ms } else { 0.0 };
            ms += (fleet.queue_ms(worker) - own_ms).max(0.0);
        }
        let key = (ms, missing, worker.runs.len(), id);
        let is_better = soonest.is_none_or(|best| {
            key.0
                .total_cmp(&best.0)
                .then((key.1, key.2, key.3).cmp(&(best.1, best.2, best.3)))
                .is_lt()
        });
        if is_better {
            soonest = Some(key);
        }
    }
    soonest.map(|(_, _, _, id)| id)
}

/// When a worker would have done a step beside what is in it, apart from the step's own time; and how many models it lacks.
/// Where it is later than `best_ms` it is not worth to count what would be thrown out.
fn done_after_ms(
    asked: Asked<'_>,
    fleet: &Fleet,
    (id, worker): (WorkerId, &Worker),
    (estimates, now): (&Estimates, Duration),
    best_ms: f64,
) -> (f64, usize) {
    let mut ms = worker.backlog_ms(now);
    let Serves::Yes { plan, working_bytes } = asked.derived.of_worker(id) else {
        return (ms, asked.demand.models.len());
    };
    let (mut missing, mut missing_bytes) = (0, 0u64);
    for need in asked.demand.models.iter() {
        if worker.resident.contains_key(&need.model) {
            continue;
        }
        missing += 1;
        let bytes = on_device_bytes(need.weights_bytes(worker.precision), plan.offload);
        match &worker.pending {
            Some(pending) if pending.model == need.model => {}
            Some(_) | None => {
                missing_bytes = missing_bytes.saturating_add(bytes);
                ms += estimates.load_ms(&worker.spec.kind, bytes);
            }
        }
    }
    if let Some(pending) = &worker.pending
        && let MoveKind::Load { expected_ms, .. } = pending.kind
    {
        let passed_ms = now.saturating_sub(pending.began).as_secs_f64() * 1e3;
        ms += (expected_ms - passed_ms).max(expected_ms * 0.1);
    }
    let is_held_up = fleet.is_reserved_for_another(worker, asked.id, asked.is_critical);
    if is_held_up || (asked.demand.exclusive && !worker.runs.is_empty()) {
        // Nothing else may start there either until it has been empty.
        ms += worker.backlog_ms(now);
    }
    if ms > best_ms {
        return (ms, missing);
    }
    // What is thrown out for it must be loaded again for others; what others wait for now is thrown out late.
    let free_bytes = fleet.ledger(worker).map_or(0, |ledger| ledger.free_bytes());
    let mut short_bytes = missing_bytes
        .saturating_add(working_bytes)
        .saturating_sub(free_bytes);
    if short_bytes > 0 {
        let mut idle: Vec<_> = worker
            .resident
            .iter()
            .filter(|(model, _)| !worker.is_in_use(model))
            .filter(|(model, _)| !asked.demand.models.iter().any(|need| need.model == **model))
            .collect();
        idle.sort_by_key(|(_, resident)| resident.last_use);
        for (model, resident) in idle {
            if short_bytes == 0 {
                break;
            }
            let load_ms = estimates.load_ms(&worker.spec.kind, resident.bytes);
            ms += if is_spared(asked, fleet, worker, model) {
                load_ms * SWITCHES_WAITED
            } else {
                load_ms
            };
            short_bytes = short_bytes.saturating_sub(resident.bytes);
        }
    }
    (ms, missing)
}

/// Whether a worker can load the models of a demand at once, without anything that others use or wait for.
fn takes_copy_now(asked: Asked<'_>, fleet: &Fleet, id: WorkerId, worker: &Worker) -> bool {
    let is_free = worker.readiness() == Readiness::Ready
        && worker.pending.is_none()
        && worker.reserved_for.is_none()
        && (worker.runs.is_empty()
            || (worker.loads_beside_runs() && worker.runs.len() < fleet.places(worker)));
    if !is_free {
        return false;
    }
    let Serves::Yes { plan, working_bytes } = asked.derived.of_worker(id) else {
        return false;
    };
    let missing = asked
        .demand
        .models
        .iter()
        .filter(|need| !worker.resident.contains_key(&need.model));
    let need_bytes = missing.fold(working_bytes, |sum, need| {
        sum.saturating_add(on_device_bytes(
            need.weights_bytes(worker.precision),
            plan.offload,
        ))
    });
    let idle = worker.resident.iter().filter(|(model, _)| {
        let is_own = asked.demand.models.iter().any(|need| need.model == **model);
        !is_own && !worker.is_in_use(model) && !is_spared(asked, fleet, worker, model)
    });
    let free_bytes = fleet.ledger(worker).map_or(0, |ledger| ledger.free_bytes());
    idle.fold(free_bytes, |sum, (_, resident)| {
        sum.saturating_add(resident.bytes)
    }) >= need_bytes
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

/// What must happen in the chosen worker, which is ready and can do it.
fn act(
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
        let short_bytes = need_bytes.saturating_sub(free_bytes);
        let idle = (!holds_scores)
            .then(|| evictable(asked, fleet, worker, short_bytes))
            .flatten();
        if let Some(models) = idle.or_else(|| held_too_large(demand, id, worker, plan)) {
            return Placement::Evict { models };
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
fn occupied(asked: Asked<'_>, fleet: &Fleet, worker: &Worker) -> Option<WaitReason> {
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

/// Whether an idle model is left to those that wait for it. Else two models would throw each other out before either was
/// used: a worker is given from one to the other by a reservation, which is earned by waiting.
fn is_spared(asked: Asked<'_>, fleet: &Fleet, worker: &Worker, model: &ModelId) -> bool {
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
fn evictable(
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
fn held_too_large(
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
fn never_fits(demand: &Demand, fleet: &Fleet, worker: &Worker, need_bytes: u64) -> Option<Refusal> {
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
fn leaky(fleet: &Fleet, worker: &Worker, short_bytes: u64) -> Option<WorkerId> {
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
