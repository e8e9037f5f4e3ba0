//! The dispatcher's mind. Pure: it is told what happened and when, and answers with what is to be done, in order.
//! It knows no clock, channel, disk or process; `driver` carries its effects out.
//!
//! - `step`: live steps and their lanes. Every change of a step's state goes through `Steps::advance`, by the table in
//!   `job::state`.
//! - `start`: the scheduler's decisions carried out; `claim`: from a claim to the line that goes down.
//! - `run`: what workers report about runs, and how attempts end; `measure`: what they took.
//! - `residency`: models loaded and dropped.
//! - `process`: workers that come and go.
//! - `control`: what clients ask of jobs.
//! - `journal`: what must be on disk, and what is done while it cannot be.
//! - `inspect`: what is shown.

mod claim;
mod control;
mod inspect;
mod journal;
mod measure;
mod message;
mod process;
mod residency;
mod run;
mod start;
mod step;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use calotype_protocol::{JobId, ModelId};

pub(crate) use inspect::{Forecast, StepView};
pub(crate) use measure::worker_timings;
pub(crate) use message::{
    Action, Effect, Ended, Input, Now, Outputs, StoreFault, StoreOutputsError, StoredOutputs, Then, Token,
};
pub(crate) use step::Accepted;

use self::journal::Outage;
use self::step::Steps;

use crate::error::Error;
use crate::event::EventKind;
use crate::inference::ModelNeed;
use crate::memory::{Owner, Peaks};
use crate::processing::job::state::{Kept, StepState};
use crate::processing::job::{JobState, StepKey};
use crate::processing::schedule::{Estimates, Fleet, WaitReason};

/// What a core is made of.
pub(crate) struct CoreParts {
    pub(crate) fleet: Fleet,
    pub(crate) peaks: Peaks,
    /// The most that outputs may hold that wait to be encoded and stored.
    pub(crate) outputs_limit_bytes: u64,
}

/// The state of everything that is live.
pub(crate) struct Core {
    steps: Steps,
    fleet: Fleet,
    estimates: Estimates,
    peaks: Peaks,
    outage: Option<Outage>,
    /// Held by outputs that wait to be encoded and stored.
    outputs_held_bytes: u64,
    outputs_limit_bytes: u64,
    draining: bool,
    drained: bool,
    /// Whether something changed that may let a step start.
    dirty: bool,
    /// When to decide again though nothing has happened.
    decide_at: Option<Duration>,
    /// Grows with each use of a model.
    uses: u64,
    loads: u64,
    effects: Vec<Effect>,
}

impl Core {
    pub(crate) fn new(parts: CoreParts) -> Self {
        let CoreParts {
            fleet,
            peaks,
            outputs_limit_bytes,
        } = parts;
        Self {
            steps: Steps::default(),
            fleet,
            estimates: Estimates::default(),
            peaks,
            outage: None,
            outputs_held_bytes: 0,
            outputs_limit_bytes,
            draining: false,
            drained: false,
            dirty: false,
            decide_at: None,
            uses: 0,
            loads: 0,
            effects: Vec::new(),
        }
    }

    /// Takes in what happened and answers with what is to be done, in this order. The driver takes several inputs of one
    /// moment together.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn on(&mut self, input: Input, now: Now) -> Vec<Effect> {
        self.take(input, now);
        self.settle(now)
    }

    /// Takes in what happened; several inputs of one moment may come before [`settle`](Self::settle).
    pub(crate) fn take(&mut self, input: Input, now: Now) {
        match input {
            Input::Accepted(accepted) => self.accepted(*accepted, now),
            Input::Control { job, action, token } => self.control(&job, action, token, now),
            Input::WorkerStarting {
                worker,
                incarnation,
                pid,
            } => self.worker_starting(worker, incarnation, pid),
            Input::WorkerReady { worker, hello, ready } => self.worker_ready(worker, hello, ready),
            Input::Line {
                worker,
                incarnation,
                line,
                blobs,
            } => self.line(worker, incarnation, line, blobs, now),
            Input::LoadFailed {
                worker,
                load,
                failure,
                from_memory,
            } => self.load_failed(worker, &load, &failure, from_memory, now),
            Input::WorkerGone { worker, report } => self.worker_gone(worker, &report, now),
            Input::ModelsChanged { models } => self.models_changed(&models),
            Input::Prepared { run, work } => self.prepared(run, work, now),
            Input::Stored { step, outputs } => self.stored(step, outputs, now),
            Input::Journaled { then, outcome } => self.journaled(then, outcome, now),
            Input::StoreProbed(outcome) => self.store_probed(outcome, now),
            Input::Drain => {
                self.draining = true;
            }
            Input::Tick => {
                if self.decide_at.is_some_and(|at| at <= now.since_start) {
                    self.dirty = true;
                }
            }
        }
    }

    /// Decides, if something changed that matters, and answers with everything that is to be done, in this order.
    pub(crate) fn settle(&mut self, now: Now) -> Vec<Effect> {
        self.probe_if_due(now);
        if std::mem::take(&mut self.dirty) {
            // Also while nothing may start, so that no pass is made: readers find the list as the workers are.
            self.fleet.index_models();
            self.decide(now);
        }
        if self.draining && !self.drained && self.is_quiet() {
            self.drained = true;
            self.effects.push(Effect::Drained);
        }
        std::mem::take(&mut self.effects)
    }

    /// When it wants to be told [`Input::Tick`] at the latest.
    pub(crate) fn wake_at(&self) -> Option<Duration> {
        let probe_at = self.outage.as_ref().and_then(Outage::probe_at);
        self.decide_at.into_iter().chain(probe_at).min()
    }

    /// A step is in the journal: it waits, is held, or ends at once because it can never run.
    fn accepted(&mut self, mut accepted: Accepted, now: Now) {
        let (key, crashed) = (accepted.key, accepted.crashes > 0);
        let state = if accepted.is_held {
            StepState::Paused(Kept::Nowhere)
        } else {
            StepState::Ready
        };
        let demand = std::mem::replace(
            &mut accepted.demand,
            Err(Error::new(crate::error::Code::Internal, "")),
        );
        let (mut demand, problem) = match demand {
            Ok(demand) => (demand, None),
            // A model that was taken away since the job was accepted: the job is kept, and ends with that reason.
            Err(error) => (crate::processing::schedule::Demand::nothing(), Some(error)),
        };
        demand.exclusive = crashed;
        self.steps.add(accepted, demand, state, now.since_start);
        self.tell_state(key);
        match problem {
            Some(error) => self.end(key, JobState::Failed, Some(error), now),
            None => self.dirty = true,
        }
    }

    /// Tells subscribers where a step stands.
    fn tell_state(&mut self, key: StepKey) {
        if let Some(step) = self.steps.get(key) {
            let kind = EventKind::Job {
                job: step.job.clone(),
                state: step.shown(),
                reason: self.reason(step).map(|(text, _)| text),
                view: None,
            };
            self.effects.push(Effect::Tell(kind));
        }
    }

    /// Sets what happened to a step last.
    fn note(&mut self, key: StepKey, note: impl Into<Option<String>>) {
        if let Some(step) = self.steps.get_mut(key) {
            step.note = note.into();
        }
    }

    /// Whether nothing is in a worker or on its way to the journal.
    fn is_quiet(&self) -> bool {
        let mut steps = self.steps.iter();
        !steps.any(|step| {
            let state = step.state();
            state.holds_place() || matches!(state, StepState::Finishing | StepState::Ending)
        })
    }

    /// Why nothing starts at all now.
    fn hold_all(&self) -> Option<WaitReason> {
        if self.draining {
            return Some(WaitReason::Draining);
        }
        if let Some(outage) = &self.outage {
            return Some(WaitReason::StoreOutage {
                message: outage.message().to_owned(),
            });
        }
        (self.outputs_held_bytes > self.outputs_limit_bytes).then_some(WaitReason::OutputsPending {
            held_bytes: self.outputs_held_bytes,
            limit_bytes: self.outputs_limit_bytes,
        })
    }

    /// Gives back a working set, and the changed weights that no other run in the worker needs.
    fn release_working_set(&mut self, key: StepKey, worker: crate::processing::schedule::WorkerId) {
        let Some(step) = self.steps.get(key) else { return };
        let (job, demand) = (step.job.clone(), self.steps.demands.get(step.demand).cloned());
        let set = demand.and_then(|demand| demand.adapters.as_ref().map(|need| Arc::clone(&need.set)));
        let Some(place) = self.fleet.worker(worker) else {
            return;
        };
        let adapters = set
            .filter(|set| !place.uses_adapters(set))
            .map(|set| Owner::Adapters {
                worker: place.spec.name.to_string(),
                set,
            });
        if let Some(ledger) = self.fleet.ledger_mut(worker) {
            ledger.release(&Owner::WorkingSet(job));
            if let Some(owner) = adapters {
                ledger.release(&owner);
            }
        }
    }

    /// Takes a step out of its worker's hands: place, working set, and its entry among the parked. Called when the worker
    /// said that the run is out, or is dead and reaped. Returns the device time that the attempt had.
    fn leave_worker(&mut self, key: StepKey, now: Now) -> f64 {
        let Some(attempted) = self.steps.get_mut(key).and_then(|step| step.attempted.take()) else {
            return 0.0;
        };
        let mut device_ms = attempted.device_ms;
        if let Some(worker) = self.fleet.worker_mut(attempted.worker) {
            device_ms += worker.dismiss(key, now.since_start).unwrap_or(0.0);
            worker.parked.remove(&key);
        }
        self.release_working_set(key, attempted.worker);
        if let Some(step) = self.steps.get(key) {
            let (class, client, took_micros) =
                (step.class, Arc::clone(&step.client), (device_ms * 1e3) as u64);
            self.steps
                .lanes
                .correct(class, &client, attempted.charged_micros, took_micros);
        }
        self.dirty = true;
        device_ms
    }

    /// Models that some worker could not load.
    pub(crate) fn unusable_models(&self) -> impl Iterator<Item = &ModelId> {
        self.fleet
            .workers
            .iter()
            .flat_map(|worker| worker.unusable.keys())
    }

    /// The step of a job, while it is live.
    pub(crate) fn find(&self, job: &JobId) -> Option<StepKey> {
        self.steps.find(job)
    }
}

/// The models of a demand, or none.
fn models_of(demand: Option<&Arc<crate::processing::schedule::Demand>>) -> Arc<[ModelNeed]> {
    demand.map_or_else(|| Arc::from([]), |demand| Arc::clone(&demand.models))
}
