//! What is shown of the live steps and the fleet. Nothing here changes anything or decides anew.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use calotype_protocol::JobId;

use super::Core;
use super::message::{Ended, Now};
use super::step::Step;
use crate::error::Error;
use crate::inference::{self, ModelNeed};
use crate::memory::memory_plan::{Precision, Slicing, lora_on_device_bytes, on_device_bytes};
use crate::processing::job::state::StepState;
use crate::processing::job::{JobProgress, JobState, StepKey};
use crate::processing::schedule::{
    Asked, Copies, Demand, DemandId, Derived, Fleet, Placement, Readiness, Serves, WaitReason, Worker, place,
};

/// A live step as clients see it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StepView {
    pub(crate) key: StepKey,
    pub(crate) state: JobState,
    pub(crate) reason: Option<String>,
    pub(crate) reason_code: Option<&'static str>,
    /// Place among those that wait, from 1.
    pub(crate) position: Option<usize>,
    pub(crate) attempts: u32,
    pub(crate) progress: Option<JobProgress>,
    pub(crate) started_at_ms: Option<u64>,
}

impl StepView {
    /// Of a step that has ended, until its end is told.
    pub(crate) fn ending(ended: &Ended) -> Self {
        Self {
            key: ended.step,
            state: JobState::Finishing,
            reason: None,
            reason_code: None,
            position: None,
            attempts: ended.attempts,
            progress: None,
            started_at_ms: ended.started_at_ms,
        }
    }
}

/// Figures of all live steps.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Totals {
    /// By the state that clients see.
    pub(crate) by_state: BTreeMap<&'static str, usize>,
    pub(crate) outputs_held_bytes: u64,
}

impl Core {
    /// A live step.
    pub(crate) fn view(&self, job: &JobId) -> Option<StepView> {
        let step = self.steps.get(self.steps.find(job)?)?;
        let rank = || self.steps.lanes.rank(step.class, step.priority, step.key);
        Some(self.view_of(step, step.state().is_waiting().then(rank)))
    }

    /// Several live steps at once.
    pub(crate) fn views(&self, jobs: &[JobId]) -> Vec<Option<StepView>> {
        let ranked = self.steps.lanes.ranked();
        let view = |job: &JobId| {
            let step = self.steps.get(self.steps.find(job)?)?;
            let order = (step.class, Reverse(step.priority), step.key);
            let waits = step.state().is_waiting();
            let rank = waits.then(|| ranked.binary_search(&order).unwrap_or_else(|at| at) + 1);
            Some(self.view_of(step, rank))
        };
        jobs.iter().map(view).collect()
    }

    /// The live steps in a state, newest first, older than `before`.
    pub(crate) fn in_state(&self, state: JobState, before: Option<u64>, limit: usize) -> Vec<StepKey> {
        let before = StepKey(before.unwrap_or(u64::MAX));
        let steps = self
            .steps
            .iter()
            .filter(|step| step.key < before && step.shown() == state);
        let mut keys: Vec<StepKey> = steps.map(|step| step.key).collect();
        keys.sort_unstable_by_key(|key| Reverse(*key));
        keys.truncate(limit);
        keys
    }

    pub(crate) fn totals(&self) -> Totals {
        let mut totals = Totals {
            outputs_held_bytes: self.outputs_held_bytes,
            ..Totals::default()
        };
        for step in self.steps.iter() {
            *totals.by_state.entry(step.shown().name()).or_insert(0) += 1;
        }
        totals
    }

    pub(crate) fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// The job of a live step.
    pub(crate) fn job_of(&self, key: StepKey) -> Option<&JobId> {
        self.steps.get(key).map(|step| &step.job)
    }

    pub(crate) fn waiting(&self) -> usize {
        self.steps.lanes.len()
    }

    /// How many steps are live.
    #[cfg(test)]
    pub(crate) fn live(&self) -> usize {
        self.steps.len()
    }

    fn view_of(&self, step: &Step, position: Option<usize>) -> StepView {
        let (reason, reason_code) = self.reason(step).unzip();
        StepView {
            key: step.key,
            state: step.shown(),
            reason,
            reason_code: reason_code.flatten(),
            position,
            attempts: step.attempts,
            progress: step.attempted.as_ref().and_then(|run| run.progress.clone()),
            started_at_ms: step.started_at_ms,
        }
    }

    /// Why a step stands where it stands, for people and as a word for programs.
    pub(super) fn reason(&self, step: &Step) -> Option<(String, Option<&'static str>)> {
        if matches!(step.state(), StepState::Finishing | StepState::Ending)
            && let Some(message) = self.store_outage()
        {
            let text = format!("its end is written once the journal can be: {message}");
            return Some((text, Some("store_outage")));
        }
        let note = step.note.clone().map(|note| (note, None));
        let Some(ask) = step.ask() else { return note };
        if step.loads {
            return note.map(|(note, _)| (note, Some("model_loads")));
        }
        let waits = self.hold_all().map(|reason| (reason.to_string(), reason.code()));
        let waits = waits.or_else(|| {
            let reason = self.steps.waits.reason(ask)?;
            Some((reason.to_string(), reason.code()))
        });
        match (waits, note) {
            (Some((text, code)), Some((note, _))) => Some((format!("{text} ({note})"), Some(code))),
            (Some((text, code)), None) => Some((text, Some(code))),
            (None, note) => note,
        }
    }
}

/// Where a demand would run now, and what it would take there.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Forecast {
    /// The worker that the scheduler would choose; absent where none that could run it is ready.
    pub(crate) worker: Option<String>,
    /// Of its models on the device, with what LoRAs change of them.
    pub(crate) weights_bytes: u64,
    /// Beside them.
    pub(crate) working_set_bytes: u64,
    /// Whether the working set was measured.
    pub(crate) is_measured: bool,
    /// How the job would be made to fit, in the words of a result's plan.
    pub(crate) memory_plan: Vec<String>,
    /// Why it would not start now.
    pub(crate) waits_for: Option<WaitReason>,
    /// Why it never could.
    pub(crate) refusal: Option<Error>,
}

impl Core {
    /// Where the scheduler would place a demand now: the same `place` that the dispatcher asks.
    pub(crate) fn forecast(&mut self, demand: &Demand, now: Now) -> Forecast {
        // Models may have come and gone in messages that nothing was decided on yet.
        self.fleet.index_models();
        let working = |worker: &Worker, slicing| {
            let spec = &worker.spec;
            inference::need_bytes(&demand.shape, &spec.device_kind, &spec.kind, slicing, &self.peaks)
        };
        let derived = Derived::of(demand, &self.fleet, |worker, slicing| working(worker, slicing).0);
        let asked = Asked {
            id: DemandId::none(),
            demand,
            derived: &derived,
            bound_to: None,
            own_ms: 0.0,
            share: 1.0,
            is_critical: false,
            copies: Copies::Any,
        };
        let (chosen, waits_for, refusal) = match place(asked, &self.fleet, &self.estimates, now.since_start) {
            Placement::Start { worker, .. }
            | Placement::Load { worker, .. }
            | Placement::Evict { worker, .. }
            | Placement::Recycle { worker }
            | Placement::Wake { worker } => (Some(worker), None, None),
            Placement::Wait { worker, reason } => (worker, Some(reason), None),
            Placement::Refuse(why) => (None, None, Some(self.refusal(why))),
        };
        let worker = chosen.and_then(|id| Some((id, self.fleet.worker(id)?)));
        // Where nobody can run it: as on a processor, which is the last resort of every job.
        let kind = inference::worker_kind("native", "cpu");
        let default_working =
            |slicing| inference::need_bytes(&demand.shape, "cpu", &kind, slicing, &self.peaks);
        let precision = worker.map_or(Precision::Single, |(_, worker)| worker.precision);
        let weights_bytes = ModelNeed::sum(&demand.models, precision);
        let lora_bytes = demand.adapters.as_ref().map_or(0, |need| need.bytes(precision));
        let whole = Slicing::default();
        let (working_set_bytes, is_measured) =
            worker.map_or_else(|| default_working(whole), |(_, worker)| working(worker, whole));
        let mut forecast = Forecast {
            worker: worker
                .filter(|(_, worker)| worker.readiness() == Readiness::Ready)
                .map(|(_, worker)| worker.spec.name.to_string()),
            weights_bytes: weights_bytes.saturating_add(lora_bytes),
            working_set_bytes,
            is_measured,
            memory_plan: Vec::new(),
            waits_for,
            refusal,
        };
        if let Some((id, worker)) = worker
            && let Serves::Yes { plan, .. } = derived.of_worker(id)
        {
            let lora_bytes = lora_on_device_bytes(lora_bytes, plan.offload);
            forecast.weights_bytes = on_device_bytes(weights_bytes, plan.offload).saturating_add(lora_bytes);
            (forecast.working_set_bytes, forecast.is_measured) = working(worker, plan.slicing);
            forecast.memory_plan = plan.labels().map(str::to_owned).collect();
        }
        forecast
    }

    /// Whether an end or outputs are on their way to the store.
    pub(crate) fn has_unwritten_ends(&self) -> bool {
        let mut steps = self.steps.iter();
        steps.any(|step| matches!(step.state(), StepState::Finishing | StepState::Ending))
    }
}
