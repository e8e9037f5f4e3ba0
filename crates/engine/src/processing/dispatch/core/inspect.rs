//! What is shown of the live steps and the fleet. Nothing here changes anything or decides anew.

use std::collections::BTreeMap;
use std::cmp::Reverse;

use calotype_protocol::JobId;

use super::Core;
use super::step::Step;
use crate::processing::job::state::StepState;
use crate::processing::job::{JobProgress, JobState, StepKey};
use crate::processing::schedule::Fleet;

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

/// Figures of all live steps.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Totals {
    /// By the state that clients see.
    pub(crate) by_state: BTreeMap<JobState, usize>,
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
            let rank = waits.then(|| ranked.binary_search(&order).map_or_else(|at| at, |at| at) + 1);
            Some(self.view_of(step, rank))
        };
        jobs.iter().map(view).collect()
    }

    /// The live steps in a state, newest first, older than `before`.
    pub(crate) fn in_state(&self, state: JobState, before: Option<u64>, limit: usize) -> Vec<StepKey> {
        let before = StepKey(before.unwrap_or(u64::MAX));
        let steps = self.steps.iter().filter(|step| step.key < before && step.shown() == state);
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
            *totals.by_state.entry(step.shown()).or_insert(0) += 1;
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
