//! What workers report about runs, and how attempts end.

use std::sync::Arc;

use calotype_protocol::{Attempt, Blob, Failure, JobId, Outcome, RunResult, Up};

use super::message::{Effect, Now, Outputs, StoreOutputsError, StoredOutputs, Then};
use super::step::StepEnd;
use super::{Core, models_of};
use crate::error::{Code, Error};
use crate::event::EventKind;
use crate::inference::MissingFeature;
use crate::processing::job::state::{Move, StepState};
use crate::processing::job::timeline::Spent;
use crate::processing::job::{Class, JobProgress, JobState, StepKey};
use crate::processing::schedule::WorkerId;

impl Core {
    /// A line from a worker.
    pub(super) fn line(&mut self, worker: WorkerId, incarnation: u64, line: Up, blobs: Vec<Blob>, now: Now) {
        match line {
            Up::Progress(progress) => {
                if let Some(key) = self.current(worker, incarnation, &progress.job, progress.attempt) {
                    let job = progress.job;
                    let progress = JobProgress {
                        phase: progress.phase,
                        done: progress.done,
                        total: progress.total,
                        step_ms: progress.step_ms,
                    };
                    if let Some(run) = self.steps.get_mut(key).and_then(|step| step.attempted.as_mut()) {
                        run.progress = Some(progress.clone());
                    }
                    self.effects
                        .push(Effect::Tell(EventKind::Progress { job, progress }));
                }
            }
            Up::Preview {
                job,
                attempt,
                done,
                image,
            } => {
                if self.current(worker, incarnation, &job, attempt).is_some() {
                    self.effects.push(Effect::Preview {
                        job,
                        done,
                        image,
                        blobs,
                    });
                }
            }
            Up::Result(result) => {
                if let Some(key) = self.current(worker, incarnation, &result.job, result.attempt) {
                    self.delivered(key, worker, *result, blobs, now);
                }
            }
            Up::Failed {
                job,
                attempt,
                failure,
            } => {
                if let Some(key) = self.current(worker, incarnation, &job, attempt) {
                    self.failed(key, worker, &failure, now);
                }
            }
            Up::Cancelled {
                job,
                attempt,
                at_step,
            } => {
                if let Some(key) = self.current(worker, incarnation, &job, attempt) {
                    self.left(key, at_step, now);
                }
            }
            Up::Paused {
                job,
                attempt,
                at_step,
            } => {
                if let Some(key) = self.current(worker, incarnation, &job, attempt)
                    && self.is_last_answer(key)
                {
                    self.paused(key, worker, at_step, now);
                }
            }
            Up::Resumed { job, attempt, .. } => {
                if let Some(key) = self.current(worker, incarnation, &job, attempt)
                    && self.is_last_answer(key)
                    && self.steps.advance(key, Move::IsResumed).is_ok()
                {
                    // As with a run that has just begun.
                    self.dirty |= self.steps.lanes.has(Class::Critical);
                    self.tell_state(key);
                }
            }
            Up::Loaded(loaded) => self.loaded(worker, incarnation, &loaded, now),
            Up::Unloaded { unload, freed_bytes } => self.unloaded(worker, &unload, freed_bytes),
            Up::Beat(beat) => self.beat(worker, &beat, now),
            // Loads that fail come as `Input::LoadFailed`; the rest is the supervisor's or the weight cache's.
            Up::LoadFailed { .. }
            | Up::Released { .. }
            | Up::LoadProgress { .. }
            | Up::Memory { .. }
            | Up::Probed { .. }
            | Up::Hello(_)
            | Up::Ready(_)
            | Up::Pong { .. }
            | Up::Log { .. }
            | Up::Fatal { .. }
            | Up::Bye {} => {}
        }
    }

    /// The step that a line is about, if it is about its present attempt in this very process; else the line is stale.
    fn current(&self, worker: WorkerId, incarnation: u64, job: &JobId, attempt: Attempt) -> Option<StepKey> {
        let step = self
            .steps
            .find(job)
            .and_then(|key| self.steps.get(key))
            .filter(|step| {
                step.state().is_in_worker()
                    && step.attempts == attempt.0
                    && step
                        .attempted
                        .as_ref()
                        .is_some_and(|run| run.worker == worker && run.incarnation == incarnation)
            });
        if step.is_none() {
            metrics::counter!("calotype_stale_lines_total").increment(1);
            tracing::warn!(job.id = %job, "Dropped a stale line about attempt {attempt} of job {job}");
        }
        step.map(|step| step.key)
    }

    /// Counts an answer to `pause` or `resume`; whether it is the one to the last of those lines.
    fn is_last_answer(&mut self, key: StepKey) -> bool {
        let run = self.steps.get_mut(key).and_then(|step| step.attempted.as_mut());
        run.is_some_and(|run| {
            run.answers_due = run.answers_due.saturating_sub(1);
            run.answers_due == 0
        })
    }

    /// A run is out of the tick loop: its place and its working set are free.
    fn paused(&mut self, key: StepKey, id: WorkerId, at_step: u32, now: Now) {
        let Some(StepState::Pausing(by)) = self.steps.get(key).map(|step| step.state()) else {
            return;
        };
        let had_ms = self
            .fleet
            .worker_mut(id)
            .and_then(|worker| worker.park(key, now.since_start));
        if let Some(step) = self.steps.get_mut(key) {
            step.timeline.switch(Spent::Paused, now.since_start);
            if let Some(run) = &mut step.attempted {
                run.device_ms += had_ms.unwrap_or(0.0);
            }
            if by == crate::processing::job::state::PausedBy::Client {
                step.note = Some(format!("paused at step {at_step}"));
            }
        }
        self.release_working_set(key, id);
        if self.steps.advance(key, Move::IsPaused).is_ok() {
            self.tell_state(key);
        }
        self.dirty = true;
    }

    /// A run was dropped at a step, as it was asked.
    fn left(&mut self, key: StepKey, at_step: u32, now: Now) {
        match self.steps.get(key).map(|step| step.state()) {
            Some(StepState::Cancelling) => {
                self.note(key, format!("left at step {at_step}"));
                self.end(key, JobState::Cancelled, None, now);
            }
            Some(StepState::Withdrawing(_)) => self.withdrawn(key, now),
            _ => {
                // Nobody asked: the supervisor did, because a step took too long.
                let what = format!("step {at_step} took longer than its deadline");
                let error = Error::new(Code::DeadlineMissed, what);
                self.end(key, JobState::Failed, Some(error), now);
            }
        }
    }

    /// A paused run has made room; its work so far is gone, and the journal says that it waits or is held.
    fn withdrawn(&mut self, key: StepKey, now: Now) {
        self.leave_worker(key, now);
        if self.steps.advance(key, Move::IsWithdrawn).is_err() {
            return;
        }
        if let Some(step) = self.steps.get_mut(key) {
            step.timeline.start_over(now.since_start);
        }
        self.journal_step(key, Then::Kept(vec![key]));
        self.tell_state(key);
    }

    /// Outputs are here: the place is free for the next step while they are encoded.
    fn delivered(&mut self, key: StepKey, id: WorkerId, result: RunResult, blobs: Vec<Blob>, now: Now) {
        self.measure(key, id, &result);
        let kind = self.fleet.worker(id).map(|worker| Arc::clone(&worker.spec.kind));
        let name = self.fleet.worker(id).map(|worker| worker.spec.name.to_string());
        if self.steps.advance(key, Move::Deliver).is_err() {
            return;
        }
        let device_ms = self.leave_worker(key, now);
        let Some(step) = self.steps.get_mut(key) else {
            return;
        };
        step.timeline.switch(Spent::Finish, now.since_start);
        let (work_units, demand) = (step.work_units, step.demand);
        step.outputs_bytes = held_bytes(&blobs);
        self.outputs_held_bytes += step.outputs_bytes;
        let models = models_of(self.steps.demands.get(demand));
        if let (Some(need), Some(kind)) = (models.first(), kind) {
            self.estimates.ran(&need.model, &kind, work_units, device_ms);
        }
        self.tell_state(key);
        self.effects.push(Effect::StoreOutputs {
            step: key,
            outputs: Box::new(Outputs {
                result,
                blobs,
                worker: name.unwrap_or_default(),
            }),
        });
    }

    /// Outputs are stored, or cannot be.
    pub(super) fn stored(
        &mut self,
        key: StepKey,
        outputs: Result<Box<StoredOutputs>, StoreOutputsError>,
        now: Now,
    ) {
        let outputs = match outputs {
            Err(StoreOutputsError::Store(fault, outputs)) => {
                self.keep_outputs(key, &fault, outputs, now);
                return;
            }
            Err(StoreOutputsError::Wrong(error)) => Err(error),
            Ok(outputs) => Ok(*outputs),
        };
        if let Some(step) = self.steps.get_mut(key) {
            let bytes = std::mem::take(&mut step.outputs_bytes);
            self.outputs_held_bytes = self.outputs_held_bytes.saturating_sub(bytes);
            self.dirty = true;
        }
        match outputs {
            Err(error) => self.end(key, JobState::Failed, Some(error), now),
            Ok(StoredOutputs { mut result }) => {
                if let Some(step) = self.steps.get_mut(key) {
                    step.timeline.switch(Spent::Finish, now.since_start);
                    result.timings_ms = step.timeline.phases_ms(&result.timings_ms);
                }
                let end = StepEnd {
                    state: JobState::Succeeded,
                    result: Some(result),
                    error: None,
                    at_ms: now.wall_ms,
                };
                self.end_with(key, end, now);
            }
        }
    }

    /// An attempt failed; the worker stays.
    fn failed(&mut self, key: StepKey, id: WorkerId, failure: &Failure, now: Now) {
        let Some(step) = self.steps.get_mut(key) else {
            return;
        };
        match step.state() {
            StepState::Cancelling => {
                self.end(key, JobState::Cancelled, None, now);
                return;
            }
            StepState::Withdrawing(_) => {
                self.withdrawn(key, now);
                return;
            }
            StepState::Paused(_) | StepState::Suspended => {
                // Its model was unloaded, or the worker leaves: no fault of its own.
                self.put_back(key, Some(format!("begins anew: {}", failure.message)), now);
                return;
            }
            _ => {}
        }
        metrics::counter!("calotype_attempts_failed_total").increment(1);
        let (mut is_exclusive, mut missing) = (false, None);
        let retry = match failure.outcome {
            Outcome::OutOfMemory => {
                step.oom_count += 1;
                is_exclusive = true;
                step.oom_count == 1
            }
            Outcome::Failed | Outcome::Fatal => {
                step.failures += 1;
                step.failures == 1
            }
            Outcome::Cancelled => {
                self.end(key, JobState::Cancelled, None, now);
                return;
            }
            Outcome::NotSupported => {
                // Another may: the scheduler looks for one, and tells of all of them where there is none.
                let words = match &failure.detail {
                    Some(detail) => format!("says: {}: {detail}", failure.message),
                    None => format!("says: {}", failure.message),
                };
                missing = Some(MissingFeature {
                    field: "model",
                    words,
                });
                true
            }
            Outcome::Done | Outcome::InvalidInput | Outcome::ModelLoad => false,
        };
        if !retry {
            self.end(key, JobState::Failed, Some(error_of(failure)), now);
            return;
        }
        let worker = self.fleet.worker(id).map(|worker| worker.spec.name.to_string());
        self.steps.change_demand(key, &mut self.fleet, |demand| {
            demand.exclusive |= is_exclusive;
            demand.refused_by.extend(worker.zip(missing));
        });
        self.put_back(key, Some(format!("tried again after: {}", failure.message)), now);
    }

    /// Takes a step out of its worker's hands and puts it back into its lane, at its old place, or holds it where a client
    /// asked for that.
    pub(super) fn put_back(&mut self, key: StepKey, note: Option<String>, now: Now) {
        self.leave_worker(key, now);
        if self.steps.advance(key, Move::Requeue).is_err() {
            return;
        }
        if let Some(step) = self.steps.get_mut(key) {
            step.timeline.start_over(now.since_start);
            step.note = note;
        }
        self.dirty = true;
        self.journal_step(key, Then::Kept(vec![key]));
        self.tell_state(key);
    }
}

/// What raw outputs hold of the host's memory.
fn held_bytes(blobs: &[Blob]) -> u64 {
    blobs.iter().map(|blob| blob.len() as u64).sum()
}

/// A worker's failure as the engine's error.
pub(super) fn error_of(failure: &Failure) -> Error {
    let code = match failure.outcome {
        Outcome::InvalidInput => Code::InvalidInput,
        Outcome::NotSupported => Code::NotSupported,
        Outcome::OutOfMemory => Code::OutOfMemory,
        Outcome::Cancelled => Code::Cancelled,
        Outcome::ModelLoad => Code::ModelUnusable,
        Outcome::Done | Outcome::Failed | Outcome::Fatal => Code::WorkerFailed,
    };
    let message = match &failure.detail {
        Some(detail) => format!("{}: {detail}", failure.message),
        None => failure.message.clone(),
    };
    Error::new(code, message)
}
