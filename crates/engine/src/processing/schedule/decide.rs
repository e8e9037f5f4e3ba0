//! One pass over the lanes: whose turn it is, and what must happen for it. Pure. The dispatcher carries each decision out
//! before it asks for the next, so a pass sees the state that its own decisions made.
//!
//! An ask (a demand, and where its suspended work lies) that cannot go on is blocked for the rest of the pass, with one
//! reason for all its steps. One that has waited for others to give something up for longer than its bound has the worker
//! reserved: nothing else starts there until it has run.

use std::time::Duration;

use calotype_protocol::ModelId;
use rustc_hash::FxHashMap;

use super::demand::{DemandId, Demands};
use super::estimates::Estimates;
use super::fleet::{Fleet, WorkerId};
use super::lanes::{Ask, Head, Lanes};
use super::placement::{Asked, Placement, place};
use super::reason::{Refusal, WaitReason};
use super::reservation::{keep_for, reserve, reserve_after, unreserve};
use super::serves::Derived;
use super::worker::Worker;
use crate::inference::ModelNeed;
use crate::memory::memory_plan::{MemoryPlan, Residency, Slicing};
use crate::processing::job::Class;
use crate::processing::job::StepKey;

/// What the dispatcher shall do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Decision {
    /// Start the step, or let it go on.
    Start {
        head: Head,
        worker: WorkerId,
        plan: MemoryPlan,
        working_bytes: u64,
        lora_bytes: u64,
    },
    /// Make a model resident for the step.
    Load {
        head: Head,
        worker: WorkerId,
        model: ModelId,
        residency: Residency,
        weights_bytes: u64,
    },
    /// Drop idle models.
    Evict { models: Vec<(WorkerId, ModelId)> },
    /// Replace an idle process to get its memory back.
    Recycle { worker: WorkerId },
    /// Start a worker that is asleep.
    Wake { head: Head, worker: WorkerId },
    /// Pause a run of lower class.
    Preempt { worker: WorkerId, victim: StepKey },
    /// End the step: it can never run here.
    Refuse { head: Head, why: Refusal },
}

/// What is known of the asks that wait, kept from pass to pass.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    /// Why each blocked ask waits.
    reasons: FxHashMap<Ask, WaitReason>,
    /// Since when each has waited for others to give something up, and where.
    since: FxHashMap<Ask, (WorkerId, Duration)>,
}

impl Waits {
    /// Why the steps of an ask wait, as of the last pass.
    pub(crate) fn reason(&self, ask: Ask) -> Option<&WaitReason> {
        self.reasons.get(&ask)
    }

    /// How many asks it knows anything about.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.reasons.len() + self.since.len()
    }

    /// A demand that nobody has any more.
    pub(crate) fn forget(&mut self, demand: DemandId) {
        self.reasons.retain(|(id, _), _| *id != demand);
        self.since.retain(|(id, _), _| *id != demand);
    }
}

/// Whom a critical step may have paused in a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    /// One is being paused already.
    IsPausing,
    /// This one.
    Run(StepKey),
}

/// What a pass looks at.
pub(crate) struct World<'a> {
    pub(crate) lanes: &'a Lanes,
    pub(crate) demands: &'a Demands,
    pub(crate) derived: &'a mut DerivedTable,
    pub(crate) fleet: &'a mut Fleet,
    pub(crate) estimates: &'a Estimates,
    pub(crate) waits: &'a mut Waits,
    /// What a step takes beside its weights.
    pub(crate) working_bytes: &'a dyn Fn(&super::demand::Demand, &Worker, Slicing) -> u64,
    /// Device time that a step is estimated to take, in milliseconds.
    pub(crate) step_ms: &'a dyn Fn(StepKey, &super::demand::Demand) -> f64,
    /// A run that may be paused for a critical step, of all those in a worker.
    pub(crate) victim: &'a dyn Fn(&Worker) -> Option<Victim>,
    pub(crate) now: Duration,
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

/// The pass under way: asks that it has found blocked, and when it must be made again at the latest.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    blocked: FxHashMap<Ask, WaitReason>,
    /// Workers in which something is being freed or paused for somebody in this pass.
    preempted: Vec<WorkerId>,
    /// Whether asks were passed over because no worker takes anything: their reasons stand.
    passed_over: bool,
    /// Whether it is counted which models are waited for.
    has_counted: bool,
    pub(crate) wake_at: Option<Duration>,
}

impl Pass {
    /// The next decision; `None` when nothing more can be done now.
    pub(crate) fn next(&mut self, world: &mut World<'_>) -> Option<Decision> {
        world.fleet.index_models();
        if !std::mem::replace(&mut self.has_counted, true) {
            count_wanted(world);
        }
        loop {
            let head = self.head(world)?;
            let ask = (head.lane.demand, head.lane.bound_to);
            let Some(demand) = world.demands.get(head.lane.demand).cloned() else {
                // No lane outlives its demand.
                self.blocked.insert(ask, WaitReason::NoWorker);
                continue;
            };
            let (fleet, working_bytes) = (&*world.fleet, world.working_bytes);
            let derived = world.derived.of(ask.0, fleet.generation, || {
                Derived::of(&demand, fleet, |worker, slicing| {
                    working_bytes(&demand, worker, slicing)
                })
            });
            let asked = Asked {
                id: ask.0,
                demand: &demand,
                derived,
                bound_to: ask.1,
                own_ms: (world.step_ms)(head.step, &demand),
                is_critical: head.lane.class == Class::Critical,
            };
            match place(asked, fleet, world.estimates, world.now) {
                Placement::Start {
                    worker,
                    plan,
                    working_bytes,
                    lora_bytes,
                } => {
                    world.waits.since.remove(&ask);
                    if unreserve(world.fleet, ask.0) {
                        // Those that it held up may start in this pass.
                        self.blocked
                            .retain(|_, reason| !matches!(reason, WaitReason::Reserved { .. }));
                    }
                    world.fleet.wants_less(&demand.models);
                    return Some(Decision::Start {
                        head,
                        worker,
                        plan,
                        working_bytes,
                        lora_bytes,
                    });
                }
                Placement::Load {
                    worker,
                    model,
                    residency,
                    weights_bytes,
                } => {
                    let reserved = world.fleet.worker(worker).and_then(|worker| worker.reserved_for);
                    if head.lane.class == Class::Critical && reserved.is_some_and(|of| of.demand != ask.0) {
                        // Else the one that has reserved the worker would evict what is loaded here, for ever.
                        keep_for(world.fleet, worker, ask.0);
                    }
                    return Some(Decision::Load {
                        head,
                        worker,
                        model,
                        residency,
                        weights_bytes,
                    });
                }
                Placement::Evict { models } => {
                    let worker = models.first().map(|(worker, _)| *worker);
                    if let Some(worker) = worker.filter(|_| head.lane.class == Class::Critical) {
                        keep_for(world.fleet, worker, ask.0);
                    }
                    let name = worker.and_then(|id| world.fleet.worker(id));
                    let worker = name.map_or_else(String::new, |worker| worker.spec.name.to_string());
                    self.blocked.insert(ask, WaitReason::WorkerMovesModels { worker });
                    return Some(Decision::Evict { models });
                }
                Placement::Recycle { worker } => {
                    let name = world
                        .fleet
                        .worker(worker)
                        .map(|worker| worker.spec.name.to_string());
                    let why = "its process is being replaced to free its memory".to_owned();
                    let worker_name = name.unwrap_or_default();
                    self.blocked.insert(
                        ask,
                        WaitReason::WorkerNotReady {
                            worker: worker_name,
                            why,
                        },
                    );
                    return Some(Decision::Recycle { worker });
                }
                Placement::Wake { worker } => return Some(Decision::Wake { head, worker }),
                Placement::Refuse(why) => return Some(Decision::Refuse { head, why }),
                Placement::Wait { worker, reason } => {
                    let preempts = worker.and_then(|worker| self.preempt(world, &head, worker, &reason));
                    let reason = match (&preempts, worker.and_then(|id| world.fleet.worker(id))) {
                        (Some(_), Some(worker)) => WaitReason::Preempts {
                            worker: worker.spec.name.to_string(),
                        },
                        _ => reason,
                    };
                    self.block(world, &head, &demand.models, worker, reason);
                    if let Some((worker, _)) = preempts {
                        keep_for(world.fleet, worker, ask.0);
                    }
                    if let Some((worker, Victim::Run(victim))) = preempts {
                        return Some(Decision::Preempt { worker, victim });
                    }
                }
            }
        }
    }

    /// The step whose turn it is among those that are worth a look. While no worker can load, an ask that waited for a place
    /// where its models are still waits for one, unless a worker that has them has a place.
    fn head(&mut self, world: &mut World<'_>) -> Option<Head> {
        let Some(open) = world.fleet.only_runs_in() else {
            return world.lanes.next(|ask| self.blocked.contains_key(&ask));
        };
        if !self.passed_over {
            self.passed_over = true;
            let still_waits = |ask: &Ask| world.lanes.waiting_with(ask.0) > 0;
            world.waits.since.retain(|ask, _| still_waits(ask));
        }
        let fleet = &*world.fleet;
        world.lanes.next_in_class(|class, ask| {
            if self.blocked.contains_key(&ask) {
                return true;
            }
            let waits_for_place = matches!(world.waits.reason(ask), Some(WaitReason::PlacesTaken { .. }));
            if class == Class::Critical || !waits_for_place || open.is_empty() {
                return class != Class::Critical && waits_for_place;
            }
            let models = world.demands.get(ask.0).map(|demand| &demand.models);
            let mut models = models.into_iter().flat_map(|models| models.iter());
            models.all(|need| {
                let mut open = open.iter().filter_map(|id| fleet.worker(*id));
                fleet.wanted(&need.model).holders > 0
                    && !open.any(|worker| worker.resident.contains_key(&need.model))
            })
        })
    }

    /// The reasons of this pass become those that clients see.
    pub(crate) fn finish(self, waits: &mut Waits) -> Option<Duration> {
        if self.passed_over {
            waits.reasons.extend(self.blocked);
        } else {
            waits.reasons = self.blocked;
        }
        let Waits { reasons, since } = waits;
        since.retain(|ask, _| reasons.contains_key(ask));
        self.wake_at
    }

    fn block(
        &mut self,
        world: &mut World<'_>,
        head: &Head,
        models: &[ModelNeed],
        worker: Option<WorkerId>,
        reason: WaitReason,
    ) {
        let ask = (head.lane.demand, head.lane.bound_to);
        let is_critical = head.lane.class == Class::Critical;
        if reason.can_starve()
            && let Some(worker) = worker
        {
            let (_, since) = *world
                .waits
                .since
                .entry(ask)
                .and_modify(|(at, _)| *at = worker)
                .or_insert((worker, world.now));
            let due = since + reserve_after(world.fleet, world.estimates, worker, models);
            if due <= world.now {
                if reserve(world.fleet, worker, ask.0, is_critical) {
                    // It may go on at once, and for others another worker may be the better one now.
                    self.blocked.clear();
                    return;
                }
            } else {
                self.wake_at = Some(self.wake_at.map_or(due, |at| at.min(due)));
            }
        }
        self.blocked.insert(ask, reason);
    }

    /// A run to pause so that a critical step can start in this worker.
    fn preempt(
        &mut self,
        world: &World<'_>,
        head: &Head,
        id: WorkerId,
        reason: &WaitReason,
    ) -> Option<(WorkerId, Victim)> {
        let helps = matches!(
            reason,
            WaitReason::PlacesTaken { .. }
                | WaitReason::MemoryInUse { .. }
                | WaitReason::LoadWaitsForRuns { .. }
                | WaitReason::NeedsWorkerAlone { .. }
                | WaitReason::WorkerRunsAlone { .. }
        );
        if head.lane.class != Class::Critical || !helps || self.preempted.contains(&id) {
            return None;
        }
        let worker = world.fleet.worker(id)?;
        let victim = worker.pauses().then(|| (world.victim)(worker)).flatten()?;
        self.preempted.push(id);
        Some((id, victim))
    }
}

/// What waits for each model.
fn count_wanted(world: &mut World<'_>) {
    let (demands, step_ms) = (world.demands, world.step_ms);
    let waiting = world.lanes.demands().flat_map(|(id, steps, example)| {
        let demand = demands.get(id).into_iter();
        demand.flat_map(move |demand| {
            let ms = step_ms(example, demand) * steps as f64;
            demand.models.iter().map(move |need| (&need.model, steps, ms))
        })
    });
    world.fleet.count_wanted(waiting);
}
