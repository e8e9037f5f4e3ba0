//! A live step, and all live steps with the lanes in which they wait. Fields are private to the core.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use calotype_protocol::JobId;
use rustc_hash::FxHashMap;

use crate::error::Error;
use crate::memory::memory_plan::Slicing;
use crate::processing::job::state::{IllegalMove, Move, StepState};
use crate::processing::job::timeline::Timeline;
use crate::processing::job::{Class, JobProgress, JobResult, JobState, RunId, StepKey};
use crate::processing::schedule::{
    Ask, Demand, DemandId, Demands, DerivedTable, Fleet, LaneKey, Lanes, Waits, WorkerId, unreserve,
};

/// How a step ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StepEnd {
    /// A final state.
    pub(crate) state: JobState,
    /// What it made.
    pub(crate) result: Option<JobResult>,
    /// Why it made nothing.
    pub(crate) error: Option<Error>,
    /// Milliseconds since 1970.
    pub(crate) at_ms: u64,
}

/// The present attempt, in its worker or on the way there.
#[derive(Debug)]
pub(super) struct Attempted {
    pub(super) worker: WorkerId,
    pub(super) incarnation: u64,
    /// What of it is done in pieces there.
    pub(super) slicing: Slicing,
    pub(super) progress: Option<JobProgress>,
    /// Whether another run was in the worker with it: what the worker held is not what this one took.
    pub(super) was_accompanied: bool,
    /// `pause` and `resume` lines that the worker has not answered yet.
    pub(super) answers_due: u32,
    pub(super) charged_micros: u64,
    /// Device time that it had before it was parked.
    pub(super) device_ms: f64,
}

/// A step that has not ended.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) key: StepKey,
    pub(super) job: JobId,
    pub(super) class: Class,
    pub(super) priority: i32,
    pub(super) client: Arc<str>,
    pub(super) demand: DemandId,
    pub(super) work_units: f64,
    state: StepState,
    /// The lane that it waits in.
    waits_in: Option<LaneKey>,
    pub(super) attempts: u32,
    /// Workers that crashed while it ran.
    pub(super) crashes: u32,
    /// Failures and lacks of memory so far, each allowed once.
    pub(super) failures: u32,
    pub(super) oom_count: u32,
    /// What happened to it last, for people.
    pub(super) note: Option<String>,
    pub(super) attempted: Option<Box<Attempted>>,
    /// Whether a model is being loaded for it.
    pub(super) loads: bool,
    /// What its raw outputs hold of the host's memory.
    pub(super) outputs_bytes: u64,
    pub(super) timeline: Timeline,
    pub(super) started_at_ms: Option<u64>,
    pub(super) end: Option<Box<StepEnd>>,
}

impl Step {
    pub(super) fn state(&self) -> StepState {
        self.state
    }

    pub(super) fn run(&self) -> RunId {
        RunId {
            step: self.key,
            attempt: self.attempts,
        }
    }

    pub(super) fn shown(&self) -> JobState {
        let end = self.end.as_ref().map_or(JobState::Failed, |end| end.state);
        self.state.shown(end, self.loads)
    }

    /// The lane that it waits in.
    pub(super) fn ask(&self) -> Option<Ask> {
        self.waits_in.as_ref().map(|lane| (lane.demand, lane.bound_to))
    }

    fn lane(&self) -> LaneKey {
        let bound_to = match self.state {
            StepState::Suspended => self.attempted.as_ref().map(|run| run.worker),
            _ => None,
        };
        LaneKey {
            class: self.class,
            client: Arc::clone(&self.client),
            demand: self.demand,
            bound_to,
        }
    }
}

/// What is known of a step that was accepted.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) key: StepKey,
    pub(crate) job: JobId,
    pub(crate) class: Class,
    pub(crate) priority: i32,
    pub(crate) client: Arc<str>,
    /// What it asks for, or why it can never run.
    pub(crate) demand: Result<Demand, Error>,
    /// Megapixels times sampler steps.
    pub(crate) work_units: f64,
    pub(crate) attempts: u32,
    pub(crate) crashes: u32,
    /// Whether a client holds it.
    pub(crate) is_held: bool,
    /// How long ago it was accepted.
    pub(crate) age: Duration,
}

/// Every live step.
#[derive(Debug, Default)]
pub(super) struct Steps {
    pub(super) by_key: FxHashMap<StepKey, Step>,
    by_job: HashMap<JobId, StepKey>,
    pub(super) lanes: Lanes,
    pub(super) demands: Demands,
    pub(super) derived: DerivedTable,
    pub(super) waits: Waits,
}

impl Steps {
    /// Adds an accepted step to its lane, unless it is held.
    pub(super) fn add(&mut self, accepted: Accepted, demand: Demand, state: StepState, now: Duration) {
        let Accepted {
            key,
            job,
            class,
            priority,
            client,
            demand: _,
            work_units,
            attempts,
            crashes,
            is_held: _,
            age,
        } = accepted;
        let mut step = Step {
            key,
            class,
            priority,
            client,
            demand: self.demands.intern(demand),
            work_units,
            state,
            waits_in: None,
            attempts,
            crashes,
            failures: 0,
            oom_count: 0,
            note: None,
            attempted: None,
            loads: false,
            outputs_bytes: 0,
            timeline: Timeline::new(now, age),
            started_at_ms: None,
            end: None,
            job: job.clone(),
        };
        if state.is_waiting() {
            let lane = step.lane();
            self.lanes.push(&lane, priority, key);
            step.waits_in = Some(lane);
        }
        self.by_job.insert(job, key);
        self.by_key.insert(key, step);
    }

    pub(super) fn get(&self, key: StepKey) -> Option<&Step> {
        self.by_key.get(&key)
    }

    pub(super) fn get_mut(&mut self, key: StepKey) -> Option<&mut Step> {
        self.by_key.get_mut(&key)
    }

    pub(super) fn find(&self, job: &JobId) -> Option<StepKey> {
        self.by_job.get(job).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Step> {
        self.by_key.values()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Moves a step, into and out of its lane where the move says so. An illegal move changes nothing.
    pub(super) fn advance(&mut self, key: StepKey, by: Move) -> Result<StepState, IllegalMove> {
        let Some(step) = self.by_key.get_mut(&key) else {
            // One that has ended and was forgotten.
            return StepState::Ended.on(by);
        };
        let next = step.state.on(by)?;
        if step.state != next {
            step.state = next;
            if let Some(lane) = step.waits_in.take() {
                self.lanes.remove(&lane, step.priority, key);
            }
            if next.is_waiting() {
                let lane = step.lane();
                self.lanes.push(&lane, step.priority, key);
                step.waits_in = Some(lane);
            }
        }
        Ok(next)
    }

    /// Gives a step another demand, and with it another lane if it waits.
    pub(super) fn change_demand(
        &mut self,
        key: StepKey,
        fleet: &mut Fleet,
        change: impl FnOnce(&mut Demand),
    ) {
        let Some(step) = self.by_key.get_mut(&key) else {
            return;
        };
        let Some(mut demand) = self.demands.get(step.demand).map(|demand| Demand::clone(demand)) else {
            return;
        };
        change(&mut demand);
        let before = step.demand;
        step.demand = self.demands.intern(demand);
        if let Some(lane) = step.waits_in.take() {
            self.lanes.remove(&lane, step.priority, key);
            let lane = step.lane();
            self.lanes.push(&lane, step.priority, key);
            step.waits_in = Some(lane);
        }
        self.release(before, fleet);
    }

    /// Forgets a step that has ended.
    pub(super) fn forget(&mut self, key: StepKey, fleet: &mut Fleet) -> Option<Step> {
        let step = self.by_key.remove(&key)?;
        self.by_job.remove(&step.job);
        self.release(step.demand, fleet);
        Some(step)
    }

    fn release(&mut self, demand: DemandId, fleet: &mut Fleet) {
        if self.demands.release(demand) {
            self.derived.forget(demand);
            self.waits.forget(demand);
            unreserve(fleet, demand);
        }
    }
}
