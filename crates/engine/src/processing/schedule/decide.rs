//! One pass over the lanes: whose turn it is, and what must happen for it. Pure. The dispatcher carries each decision out
//! before it asks for the next, so a pass sees the state that its own decisions made.
//!
//! An ask (a demand, and where its suspended work lies) that cannot go on is blocked for the rest of the pass, with one
//! reason for all its steps. One that has waited for others to give something up for longer than its bound has the worker
//! reserved: nothing else starts there until it has run.

use std::sync::Arc;
use std::time::Duration;

use calotype_protocol::ModelId;
use rustc_hash::FxHashMap;

use super::choice::Copies;
use super::demand::Demands;
use super::estimates::Estimates;
use super::fleet::{Fleet, WorkerId};
use super::lanes::{Ask, Asks, Head, Lanes};
use super::placement::{Asked, Placement, place};
use super::reason::{Refusal, WaitReason};
use super::reservation::{keep_for, reserve, reserve_after, unreserve};
use super::serves::{Derived, DerivedTable};
use super::waits::{OpenModels, Starving, Waits, is_worth_a_look};
use super::worker::Worker;
use crate::inference::ModelNeed;
use crate::memory::memory_plan::{MemoryPlan, Residency, Slicing};
use crate::processing::job::Class;
use crate::processing::job::StepKey;

/// Models for which waits at least this part of what waits for any are copied first: idle workers go where they are needed
/// most.
const COPIED_FROM: f64 = 0.8;

/// When steps that wait beside workers that could load are looked at again.
const LOOKS_AGAIN_AFTER: Duration = Duration::from_secs(1);

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
    pub(crate) lanes: &'a mut Lanes,
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

/// Asks that are worth a look, and when that was found.
#[derive(Debug)]
struct Candidates {
    asks: Asks,
    /// Asks that had come then.
    asks_come: u64,
    /// The workers that took a run then, where no worker could load.
    open: Option<Vec<WorkerId>>,
}

impl Candidates {
    /// Whether nothing else can be worth a look now: no other worker is open.
    fn hold_for(&self, open: &Option<Vec<WorkerId>>) -> bool {
        match (&self.open, open) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(before), Some(now)) => now.iter().all(|id| before.contains(id)),
        }
    }
}

/// The pass under way: the asks that it has found blocked, and those that it has still to look at.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    blocked: FxHashMap<Ask, WaitReason>,
    /// Workers in which something is being freed or paused for somebody in this pass.
    preempted: Vec<WorkerId>,
    /// Whether any model may be copied, and not only those for which most waits.
    copies_any: bool,
    /// Whether steps wait for a place while a worker could load: the later the runs are, the sooner a copy is worth it.
    looks_again: bool,
    /// Asks for whose models too little waits to be copied first.
    not_copied: Vec<Ask>,
    /// Whether asks were passed over because no worker takes anything: their reasons stand.
    passed_over: bool,
    /// The asks that are still worth a look.
    candidates: Option<Candidates>,
}

impl Pass {
    /// The next decision; `None` when nothing more can be done now.
    pub(crate) fn next(&mut self, world: &mut World<'_>) -> Option<Decision> {
        world.fleet.index_models();
        world
            .fleet
            .count_wanted(world.lanes, world.demands, world.step_ms, world.now);
        loop {
            let Some(head) = self.head(world) else {
                let some_can_load = world.fleet.only_runs_in().is_none();
                let waits_for_place = |reason: &WaitReason| matches!(reason, WaitReason::PlacesTaken { .. });
                self.looks_again = some_can_load && self.blocked.values().any(waits_for_place);
                if self.not_copied.is_empty() || !some_can_load {
                    return None;
                }
                // The models for which most waits have had their choice: what can still load takes any.
                self.copies_any = true;
                for ask in std::mem::take(&mut self.not_copied) {
                    self.blocked.remove(&ask);
                }
                self.candidates = None;
                continue;
            };
            let ask = (head.lane.demand, head.lane.bound_to);
            let Some(demand) = world.demands.get(head.lane.demand).cloned() else {
                // No lane outlives its demand.
                self.set_blocked(ask, WaitReason::NoWorker);
                continue;
            };
            let (fleet, working_bytes) = (&*world.fleet, world.working_bytes);
            let derived = world.derived.of(ask.0, fleet.generation, || {
                Derived::of(&demand, fleet, |worker, slicing| {
                    working_bytes(&demand, worker, slicing)
                })
            });
            let copies = if self.copies_any || head.lane.class == Class::Critical {
                Copies::Any
            } else {
                let ms = world.fleet.longest_ms() * COPIED_FROM;
                Copies::From { ms }
            };
            let asked = Asked {
                id: ask.0,
                demand: &demand,
                derived,
                bound_to: ask.1,
                own_ms: (world.step_ms)(head.step, &demand),
                share: head.lane.class.share(),
                is_critical: head.lane.class == Class::Critical,
                copies,
            };
            match place(asked, fleet, world.estimates, world.now) {
                Placement::Start {
                    worker,
                    plan,
                    working_bytes,
                    lora_bytes,
                } => {
                    world.waits.starving.remove(&ask);
                    if unreserve(world.fleet, ask.0) {
                        // Those that it held up may start in this pass.
                        self.unblock(|reason| matches!(reason, WaitReason::Reserved { .. }));
                    }
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
                Placement::Evict { worker: id, models } => {
                    if head.lane.class == Class::Critical {
                        keep_for(world.fleet, id, ask.0);
                    }
                    world.fleet.expect_models(id, &demand.models);
                    let worker = world.fleet.worker(id).map(|worker| worker.spec.name.to_string());
                    let worker = worker.unwrap_or_default();
                    self.set_blocked(ask, WaitReason::WorkerMovesModels { worker });
                    return Some(Decision::Evict { models });
                }
                Placement::Recycle { worker: id } => {
                    let worker = world.fleet.worker(id).map(|worker| worker.spec.name.to_string());
                    let worker = worker.unwrap_or_default();
                    let why = "its process is being replaced to free its memory".to_owned();
                    self.set_blocked(ask, WaitReason::WorkerNotReady { worker, why });
                    return Some(Decision::Recycle { worker: id });
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
                    let too_little = |ms| world.fleet.waits_ms(&demand) < ms;
                    if matches!(copies, Copies::From { ms } if too_little(ms)) {
                        self.not_copied.push(ask);
                    }
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

    /// The step whose turn it is among those that are worth a look.
    fn head(&mut self, world: &mut World<'_>) -> Option<Head> {
        let open = world.fleet.only_runs_in();
        if open.is_some() && !self.passed_over {
            self.passed_over = true;
            let still_waits = |ask: &Ask| world.lanes.waiting_with(ask.0) > 0;
            world.waits.starving.retain(|ask, _| still_waits(ask));
        }
        let asks_come = world.lanes.asks_come();
        let known = self.candidates.take();
        let candidates = match known.filter(|known| known.asks_come == asks_come && known.hold_for(&open)) {
            Some(known) if known.open == open => known,
            known => {
                let open_models = open.as_ref().map(|open| OpenModels::of(world.fleet, open));
                let is_candidate = |class, ask| {
                    !self.blocked.contains_key(&ask)
                        && is_worth_a_look(world, open_models.as_ref(), class, ask)
                };
                let asks = match known {
                    Some(Candidates { mut asks, .. }) => {
                        asks.retain(is_candidate);
                        asks
                    }
                    None => world.lanes.asks(is_candidate),
                };
                Candidates {
                    asks,
                    asks_come,
                    open,
                }
            }
        };
        let candidates = self.candidates.insert(candidates);
        world.lanes.next_of(&candidates.asks)
    }

    /// An ask cannot go on in this pass.
    fn set_blocked(&mut self, ask: Ask, reason: WaitReason) {
        if let Some(candidates) = &mut self.candidates {
            candidates.asks.remove(ask);
        }
        self.blocked.insert(ask, reason);
    }

    /// Asks that were blocked for such a reason are asked again.
    fn unblock(&mut self, is_for: impl Fn(&WaitReason) -> bool) {
        self.blocked.retain(|_, reason| !is_for(reason));
        self.not_copied.retain(|ask| self.blocked.contains_key(ask));
        self.candidates = None;
    }

    /// The reasons of this pass become those that clients see. Says when another one must be made at the latest.
    pub(crate) fn finish(self, waits: &mut Waits, now: Duration) -> Option<Duration> {
        if self.passed_over {
            waits.reasons.extend(self.blocked);
        } else {
            waits.reasons = self.blocked;
        }
        let Waits { reasons, starving } = waits;
        starving.retain(|ask, _| reasons.contains_key(ask));
        let dues = starving.values().map(|starving| starving.due);
        let again = self.looks_again.then(|| now + LOOKS_AGAIN_AFTER);
        dues.chain(again).filter(|due| *due > now).min()
    }

    fn block(
        &mut self,
        world: &mut World<'_>,
        head: &Head,
        models: &Arc<[ModelNeed]>,
        worker: Option<WorkerId>,
        reason: WaitReason,
    ) {
        let ask = (head.lane.demand, head.lane.bound_to);
        let is_critical = head.lane.class == Class::Critical;
        if reason.can_starve()
            && let Some(worker) = worker
        {
            let patience = reserve_after(world.fleet, world.estimates, worker, models);
            let starving = world.waits.starving.entry(ask).or_insert(Starving {
                worker,
                since: world.now,
                due: world.now,
            });
            starving.worker = worker;
            starving.due = starving.since + patience;
            if starving.due <= world.now && reserve(world.fleet, worker, ask.0, is_critical) {
                world.fleet.expect_models(worker, models);
                world.fleet.index_models();
                // It may go on at once, and for others another worker may be the better one now.
                self.unblock(|_| true);
                return;
            }
        }
        self.set_blocked(ask, reason);
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
