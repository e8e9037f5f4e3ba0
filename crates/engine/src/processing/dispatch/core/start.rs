//! The scheduler's decisions carried out: claims, loads, evictions, preemption, refusals.

use std::sync::Arc;

use calotype_protocol::Down;
use rustc_hash::FxHashMap;

use super::Core;
use super::message::{Effect, Now, Then};
use super::step::{Attempted, Step, Steps};
use crate::error::{Code, Error};
use crate::inference;
use crate::memory::Owner;
use crate::memory::memory_plan::MemoryPlan;
use crate::processing::job::state::{Move, PausedBy, StepState};
use crate::processing::job::timeline::Spent;
use crate::processing::job::{Class, JobState, StepKey};
use crate::processing::schedule::{
    Decision, Head, Pass, Refusal, Uses, Victim, Worker, WorkerId, World, unreserve_unwanted,
};
use crate::store::Write;

/// A claim that the scheduler decided.
struct Claim {
    worker: WorkerId,
    plan: MemoryPlan,
    working_bytes: u64,
    lora_bytes: u64,
}

impl Core {
    /// Asks the scheduler until it has nothing more to say, and does each thing before the next is asked for.
    pub(super) fn decide(&mut self, now: Now) {
        self.decide_at = None;
        if self.hold_all().is_some() {
            return;
        }
        unreserve_unwanted(&mut self.fleet, &self.steps.lanes);
        // A decision may make another worker the better one for a step that was asked before, or end the step for which one
        // was kept free: then all are asked again.
        loop {
            let has_moved = self.pass(now);
            let is_freed = unreserve_unwanted(&mut self.fleet, &self.steps.lanes);
            if !(has_moved || is_freed) || self.hold_all().is_some() {
                break;
            }
        }
        // What the decisions themselves changed is decided on already.
        self.dirty = false;
    }

    /// Goes over the lanes once. Says whether that has moved models, or done anything while a critical step waits.
    fn pass(&mut self, now: Now) -> bool {
        let (mut pass, effects_before) = (Pass::default(), self.effects.len());
        let models_before = self.fleet.models_version();
        while let Some(decision) = self.next_decision(&mut pass, now) {
            self.carry_out(decision, now);
            if self.hold_all().is_some() {
                break;
            }
        }
        self.decide_at = pass.finish(&mut self.steps.waits, now.since_start);
        // Also what the last decision changed.
        self.fleet.index_models();
        let has_moved_models = self.fleet.models_version() != models_before;
        let has_decided = self.effects.len() > effects_before;
        has_moved_models || has_decided && self.steps.lanes.has(Class::Critical)
    }

    fn next_decision(&mut self, pass: &mut Pass, now: Now) -> Option<Decision> {
        let Self {
            steps,
            fleet,
            estimates,
            peaks,
            ..
        } = self;
        let Steps {
            by_key,
            lanes,
            demands,
            derived,
            waits,
            ..
        } = steps;
        let mut world = World {
            lanes,
            demands,
            derived,
            fleet,
            estimates,
            waits,
            working_bytes: &|demand, worker, slicing| {
                let spec = &worker.spec;
                inference::need_bytes(&demand.shape, &spec.device_kind, &spec.kind, slicing, peaks).0
            },
            step_ms: &|key, demand| {
                let units = by_key.get(&key).map_or(0.0, |step| step.work_units);
                demand
                    .models
                    .first()
                    .map_or(0.0, |need| estimates.run_anywhere_ms(&need.model, units))
            },
            victim: &|worker| victim(by_key, worker),
            now: now.since_start,
        };
        pass.next(&mut world)
    }

    fn carry_out(&mut self, decision: Decision, now: Now) {
        match decision {
            Decision::Start {
                head,
                worker,
                plan,
                working_bytes,
                lora_bytes,
            } => {
                let claim = Claim {
                    worker,
                    plan,
                    working_bytes,
                    lora_bytes,
                };
                self.start(&head, &claim, now);
            }
            Decision::Load {
                head,
                worker,
                model,
                residency,
                weights_bytes,
            } => self.load(&head, worker, model, residency, weights_bytes, now),
            Decision::Evict { models } => {
                for (worker, model) in models {
                    self.evict(worker, &model, now);
                }
            }
            Decision::Recycle { worker } => self.recycle(worker, "to get back memory that its unloads kept"),
            Decision::Wake { head, worker } => self.wake(&head, worker),
            Decision::Preempt { worker, victim } => self.preempt(worker, victim),
            Decision::Refuse { head, why } => {
                let error = self.refusal(why);
                let step = self.steps.get(head.step);
                if step.is_some_and(|step| step.state().is_in_worker()) {
                    // A suspended run leaves its worker too; nobody waits for the answer.
                    self.send_about(head.step, |job, attempt| Down::Cancel { job, attempt });
                }
                self.end(head.step, JobState::Failed, Some(error), now);
            }
        }
    }

    /// Gives a step its place and leases; one that is new is claimed, one that is suspended goes on.
    fn start(&mut self, head: &Head, claim: &Claim, now: Now) {
        let key = head.step;
        let Some(step) = self.steps.get(key) else { return };
        let (job, is_suspended) = (step.job.clone(), step.state() == StepState::Suspended);
        let Some(demand) = self.steps.demands.get(step.demand).cloned() else {
            return;
        };
        let work_units = step.work_units;
        let Some(worker) = self.fleet.worker(claim.worker) else {
            return;
        };
        let (name, kind, incarnation) = (
            worker.spec.name.to_string(),
            Arc::clone(&worker.spec.kind),
            worker.incarnation,
        );
        let Some(ledger) = self.fleet.ledger_mut(claim.worker) else {
            return;
        };
        let working_set = Owner::WorkingSet(job.clone());
        let adapters = demand.adapters.as_ref().filter(|_| claim.lora_bytes > 0);
        let adapters = adapters.map(|need| Owner::Adapters {
            worker: name.clone(),
            set: Arc::clone(&need.set),
        });
        let granted =
            ledger
                .reserve(working_set.clone(), claim.working_bytes)
                .and_then(|()| match adapters {
                    None => Ok(()),
                    Some(owner) => ledger.reserve(owner, claim.lora_bytes).inspect_err(|_| {
                        ledger.release(&working_set);
                    }),
                });
        if let Err(no_room) = granted {
            // The scheduler counted the same bytes; only a mistake of ours comes here, and it must not spin.
            tracing::error!(job.id = %job, "A step that was to start found no room: {no_room}");
            let error = Error::new(Code::Internal, format!("the memory plan did not hold: {no_room}"));
            self.end(key, JobState::Failed, Some(error), now);
            return;
        }
        let estimated_ms = match demand.models.first() {
            Some(need) => self.estimates.run_ms(&need.model, &kind, work_units),
            None => 0.0,
        };
        self.uses += 1;
        let uses = self.uses;
        let mut others = Vec::new();
        if let Some(worker) = self.fleet.worker_mut(claim.worker) {
            for need in demand.models.iter() {
                if let Some(resident) = worker.resident.get_mut(&need.model) {
                    resident.last_use = uses;
                    resident.was_used = true;
                }
            }
            others.extend(worker.runs.keys().copied());
            let uses = Uses {
                models: Arc::clone(&demand.models),
                adapters: demand.adapters.clone(),
            };
            worker.admit(key, uses, estimated_ms, now.since_start);
            worker.runs_alone |= demand.exclusive;
        }
        let charged_micros = (estimated_ms * 1e3) as u64;
        self.steps.lanes.charge(&head.lane, charged_micros);
        let is_accompanied = !others.is_empty();
        for other in others {
            if let Some(run) = self.steps.get_mut(other).and_then(|step| step.attempted.as_mut()) {
                run.was_accompanied = true;
            }
        }
        if is_suspended {
            self.go_on(key, charged_micros, now);
            return;
        }
        let attempted = Attempted {
            worker: claim.worker,
            incarnation,
            slicing: claim.plan.slicing,
            progress: None,
            was_accompanied: is_accompanied,
            answers_due: 0,
            charged_micros,
            device_ms: 0.0,
        };
        if self.steps.advance(key, Move::Claim).is_err() {
            return;
        }
        let Some(step) = self.steps.get_mut(key) else {
            return;
        };
        step.attempted = Some(Box::new(attempted));
        step.attempts += 1;
        step.started_at_ms = Some(now.wall_ms);
        step.note = None;
        step.loads = false;
        step.timeline.switch(Spent::Dispatch, now.since_start);
        let (run, attempt) = (step.run(), step.attempts);
        self.tell_state(key);
        let write = Write::Claim {
            job,
            attempt,
            worker: name,
            at_ms: now.wall_ms,
        };
        self.effects.push(Effect::Journal {
            writes: vec![write],
            then: Then::Claimed(run),
        });
    }

    /// A suspended run has its place again.
    fn go_on(&mut self, key: StepKey, charged_micros: u64, now: Now) {
        if self.steps.advance(key, Move::GoOn).is_err() {
            return;
        }
        if let Some(step) = self.steps.get_mut(key) {
            step.note = None;
            step.timeline.switch(Spent::Run, now.since_start);
            if let Some(run) = &mut step.attempted {
                run.charged_micros += charged_micros;
                run.answers_due += 1;
            }
        }
        self.send_about(key, |job, attempt| Down::Resume { job, attempt });
        self.tell_state(key);
    }

    /// Pauses a run for a more urgent one. Its state leaves the device, and it goes on as soon as there is room.
    fn preempt(&mut self, worker: WorkerId, victim: StepKey) {
        if self.steps.advance(victim, Move::Preempt).is_err() {
            return;
        }
        let name = self
            .fleet
            .worker(worker)
            .map(|worker| worker.spec.name.to_string());
        let name = name.unwrap_or_default();
        self.note(victim, format!("makes room in {name} for a critical job"));
        self.send_pause(victim);
        self.tell_state(victim);
    }

    pub(super) fn send_pause(&mut self, key: StepKey) {
        if let Some(run) = self.steps.get_mut(key).and_then(|step| step.attempted.as_mut()) {
            run.answers_due += 1;
        }
        self.send_about(key, |job, attempt| Down::Pause {
            job,
            attempt,
            offload: true,
        });
    }

    pub(super) fn refusal(&self, why: Refusal) -> Error {
        match why {
            Refusal::TooLarge {
                need_bytes,
                budget_bytes,
            } => Error::new(
                Code::DoesNotFit,
                format!("the job needs {need_bytes} bytes, its device has {budget_bytes}"),
            )
            .advice("ask for a smaller size or fewer images, or raise the memory share"),
            Refusal::Unusable { worker, model } => {
                let worker = self.fleet.find(&worker).and_then(|id| self.fleet.worker(id));
                let known = worker.and_then(|worker| worker.unusable.get(&model));
                known.map_or_else(
                    || Error::new(Code::ModelUnusable, format!("{model} cannot be loaded")),
                    |(error, _)| error.clone(),
                )
            }
            Refusal::NotServed { missing } => inference::not_served(&missing),
        }
    }
}

/// The run in a worker that is paused for a critical one: of the lowest class, and of those the last that came. One at a
/// time: while one is pausing no other is chosen.
fn victim(steps: &FxHashMap<StepKey, Step>, worker: &Worker) -> Option<Victim> {
    let runs = || worker.runs.keys().filter_map(|key| steps.get(key));
    let is_pausing = |step: &Step| step.state() == StepState::Pausing(PausedBy::Scheduler);
    if runs().any(is_pausing) {
        return Some(Victim::IsPausing);
    }
    runs()
        .filter(|step| step.class > Class::Critical && step.state() == StepState::Running)
        .max_by_key(|step| (step.class, step.key))
        .map(|step| Victim::Run(step.key))
}
