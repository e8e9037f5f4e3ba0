//! Chooses the worker for a step. No clock and no I/O: the same fleet and the same time give the same choice.
//!
//! Workers are compared by what cannot change soon (it fits, it is ready or about to be, its rank, how little is given up
//! for memory), and those that are equal by when the step would be done there: the work that is in the worker, and the
//! loads and evictions that the step would cost. So a model is copied to an idle worker when waiting for the busy one takes
//! longer than the load, and two models settle on two workers.

use std::time::Duration;

use calotype_protocol::ModelId;

use super::estimates::Estimates;
use super::eviction::is_spared;
use super::fleet::{Fleet, WorkerId};
use super::placement::Asked;
use super::reservation::SWITCHES_WAITED;
use super::serves::Serves;
use super::worker::{MoveKind, Readiness, Worker};
use crate::inference::ModelNeed;
use crate::memory::memory_plan::{Precision, on_device_bytes};

/// A model of fewer bytes is worth no wait for a better device: a processor has drawn its picture before an accelerator's
/// worker has started.
const SMALL_BYTES: u64 = 512 << 20;

/// A step may be given a second copy of a model: it is loaded into a further worker, although another worker has it
/// already. This says when.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Copies {
    /// Only if the steps that wait for the model would keep each worker that has it busy for so many milliseconds. The
    /// copy may then go to a worker that still runs steps with other models.
    From { ms: f64 },
    /// Always, but only in a worker that can load it at once.
    Any,
}

/// The worker that suits best, among those that can do it or have not reported yet what they can.
pub(super) fn choose(
    asked: Asked<'_>,
    fleet: &Fleet,
    estimates: &Estimates,
    now: Duration,
) -> Option<WorkerId> {
    let equals = best_devices(asked, fleet);
    if let [(only, _)] = equals[..] {
        return Some(only);
    }
    let reserved = equals.iter().find(|(_, worker)| worker.is_reserved_for(asked.id));
    if let Some((id, _)) = reserved {
        return Some(*id);
    }
    let holders = holders(asked, fleet);
    let holds = |id: &WorkerId| holders.as_ref().is_none_or(|ids| ids.binary_search(id).is_ok());
    let (holding, others): (Vec<_>, Vec<_>) = equals.into_iter().partition(|(id, _)| holds(id));
    let (starting, queueing): (Vec<_>, Vec<_>) = holding
        .iter()
        .partition(|(_, worker)| worker.pending.is_none() && worker.runs.len() < fleet.places(worker));
    let mut soonest = Soonest::default();
    for (id, worker) in starting {
        let (ms, missing) = done_after_ms(asked, fleet, (id, worker), (estimates, now), soonest.ms());
        soonest.offer(ms, missing, worker, id);
    }
    // Others wait for the models there: another worker is worth a load if less waits for what it has.
    let queue_ms = |worker: &Worker, own_ms: f64| (fleet.queue_ms(worker) / asked.share - own_ms).max(0.0);
    let waits_ms = fleet.waits_ms(asked.demand);
    let least_ms = waits_ms / asked.share - asked.own_ms;
    let starts_now = soonest.best.is_some();
    for (id, worker) in queueing {
        // Where what waits for these models alone is later, nothing else needs to be looked at.
        if least_ms > soonest.ms() {
            break;
        }
        let (ms, missing) = done_after_ms(asked, fleet, (id, worker), (estimates, now), soonest.ms());
        soonest.offer(ms + queue_ms(worker, asked.own_ms), missing, worker, id);
    }
    let (is_copied, is_switched) = match asked.copies {
        Copies::From { ms } => (waits_ms >= ms, !starts_now),
        Copies::Any => (true, false),
    };
    for (id, worker) in others {
        // A busy worker is taken only if no worker with the models has a place; what waits for its own models counts
        // against it.
        let takes_copy = || {
            is_copied && (is_switched && may_be_switched(worker) || takes_copy_now(asked, fleet, id, worker))
        };
        if !holding.is_empty() && !takes_copy() {
            continue;
        }
        let (ms, missing) = done_after_ms(asked, fleet, (id, worker), (estimates, now), soonest.ms());
        soonest.offer(ms + queue_ms(worker, 0.0), missing, worker, id);
    }
    soonest.best.map(|(.., id)| id)
}

/// The worker that would have done a step soonest, of those offered: the time in milliseconds, the models that it lacks, its
/// runs, and its id.
#[derive(Default)]
struct Soonest {
    best: Option<(f64, usize, usize, WorkerId)>,
}

impl Soonest {
    fn ms(&self) -> f64 {
        self.best.map_or(f64::INFINITY, |(ms, ..)| ms)
    }

    fn offer(&mut self, ms: f64, missing: usize, worker: &Worker, id: WorkerId) {
        let key = (missing, worker.runs.len(), id);
        let is_better = self.best.is_none_or(|(best_ms, missing, runs, id)| {
            ms.total_cmp(&best_ms).then(key.cmp(&(missing, runs, id))).is_lt()
        });
        if is_better {
            self.best = Some((ms, key.0, key.1, key.2));
        }
    }
}

/// The workers of the best devices for a demand: equal by all that cannot change soon.
fn best_devices<'a>(asked: Asked<'_>, fleet: &'a Fleet) -> Vec<(WorkerId, &'a Worker)> {
    let worth_a_wait = ModelNeed::sum(&asked.demand.models, Precision::Single) >= SMALL_BYTES;
    let mut best = None;
    let mut equals: Vec<(WorkerId, &Worker)> = Vec::new();
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
            Some(best_key) if key > *best_key => {}
            Some(best_key) if key == *best_key => equals.push((id, worker)),
            _ => {
                best = Some(key);
                equals.clear();
                equals.push((id, worker));
            }
        }
    }
    equals
}

/// The workers that have every model of a demand, are loading it or make room for it, in order; `None` for a demand without models.
fn holders(asked: Asked<'_>, fleet: &Fleet) -> Option<Vec<WorkerId>> {
    let (first, others) = asked.demand.models.split_first()?;
    let mut ids = fleet.holders(&first.model).to_vec();
    for need in others {
        let holders = fleet.holders(&need.model);
        ids.retain(|id| holders.binary_search(id).is_ok());
    }
    Some(ids)
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
        let is_own = |model: &ModelId| asked.demand.models.iter().any(|need| need.model == *model);
        let others = worker.resident.iter().filter(|(model, _)| !is_own(model));
        // Models in use go last, once their runs have ended, and only for a load.
        let (in_use, mut idle): (Vec<_>, Vec<_>) = others.partition(|(model, _)| worker.is_in_use(model));
        idle.sort_by_key(|(_, resident)| resident.last_use);
        let in_use = in_use.into_iter().filter(|_| missing > 0);
        for (model, resident) in idle.into_iter().chain(in_use) {
            if short_bytes == 0 {
                break;
            }
            let load_ms = estimates.load_ms(&worker.spec.kind, resident.bytes);
            let is_late = worker.is_in_use(model) || is_spared(asked, fleet, worker, model);
            ms += if is_late {
                load_ms * SWITCHES_WAITED
            } else {
                load_ms
            };
            short_bytes = short_bytes.saturating_sub(resident.bytes);
        }
    }
    (ms, missing)
}

/// Whether a worker that is busy with other models may be given to a demand that others hold already.
fn may_be_switched(worker: &Worker) -> bool {
    worker.readiness() == Readiness::Ready
        && worker.pending.is_none()
        && worker.reserved_for.is_none()
        && !worker.runs_alone
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
