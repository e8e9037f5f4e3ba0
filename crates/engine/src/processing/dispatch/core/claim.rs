//! From a claim to the line that goes down: the claim is journaled, its work is built, and `run` is sent, unless the world has
//! changed meanwhile.

use calotype_protocol::{Attempt, Blob, Down, Frame, Run, StepId, Work};

use super::Core;
use super::message::{Effect, Now};
use crate::error::Error;
use crate::processing::job::state::{Move, StepState, Wish};
use crate::processing::job::timeline::Spent;
use crate::processing::job::{Class, JobState, RunId, StepKey};
use crate::processing::schedule::ProcessState;

impl Core {
    /// A claim is in the journal: its work may be built.
    pub(super) fn claimed(&mut self, run: RunId, now: Now) {
        let Some(step) = self.steps.get(run.step).filter(|step| step.run() == run) else {
            return;
        };
        let job = step.job.clone();
        match self.steps.advance(run.step, Move::Claimed) {
            Ok(StepState::Preparing(Wish::GoOn)) => self.effects.push(Effect::Prepare { run, job }),
            // Nothing was built yet: what the client asked for is done at once.
            Ok(StepState::Preparing(Wish::Pause)) => self.put_back(run.step, None, now),
            Ok(StepState::Preparing(Wish::Cancel)) => self.end(run.step, JobState::Cancelled, None, now),
            Ok(_) | Err(_) => {}
        }
    }

    /// A claim could not be journaled: the step waits again, as the journal says.
    pub(super) fn claim_failed(&mut self, run: RunId, now: Now) {
        let Some(step) = self.steps.get_mut(run.step).filter(|step| step.run() == run) else {
            return;
        };
        match step.state() {
            StepState::Claiming(Wish::Cancel) => self.end(run.step, JobState::Cancelled, None, now),
            StepState::Claiming(_) => {
                step.attempts -= 1;
                self.put_back(run.step, None, now);
            }
            _ => {}
        }
    }

    /// The work is ready to go down, unless the world has changed meanwhile.
    pub(super) fn prepared(&mut self, run: RunId, work: Result<(Box<Work>, Vec<Blob>), Error>, now: Now) {
        let Some(step) = self.steps.get(run.step).filter(|step| step.run() == run) else {
            return;
        };
        let same_process = step.attempted.as_ref().is_some_and(|attempted| {
            let worker = self.fleet.worker(attempted.worker);
            worker.is_some_and(|worker| {
                worker.process == ProcessState::Ready && worker.incarnation == attempted.incarnation
            })
        });
        match (step.state(), work) {
            (StepState::Preparing(Wish::Cancel), _) => self.end(run.step, JobState::Cancelled, None, now),
            (StepState::Preparing(_), Err(error)) => {
                self.end(run.step, JobState::Failed, Some(error), now);
            }
            (StepState::Preparing(Wish::Pause), Ok(_)) => self.put_back(run.step, None, now),
            (StepState::Preparing(Wish::GoOn), Ok(_)) if !same_process => self.put_back(run.step, None, now),
            (StepState::Preparing(Wish::GoOn), Ok((work, blobs))) => self.send_run(run, *work, blobs, now),
            _ => {}
        }
    }

    fn send_run(&mut self, run: RunId, work: Work, blobs: Vec<Blob>, now: Now) {
        if self.steps.advance(run.step, Move::Run).is_err() {
            return;
        }
        // A critical step may have waited until this one could be paused.
        self.dirty |= self.steps.lanes.has(Class::Critical);
        let Some(step) = self.steps.get_mut(run.step) else {
            return;
        };
        step.timeline.switch(Spent::Run, now.since_start);
        let Some(attempted) = &step.attempted else { return };
        let message = Down::Run(Box::new(Run {
            job: step.job.clone(),
            attempt: Attempt(run.attempt),
            step: StepId("generate".into()),
            priority: step.priority,
            deadline_ms: None,
            vae: attempted.slicing.vae,
            work,
        }));
        self.effects.push(Effect::Send {
            worker: attempted.worker,
            incarnation: attempted.incarnation,
            frame: Frame { message, blobs },
        });
    }

    /// Sends a line about a step to the process that has it.
    pub(super) fn send_about(
        &mut self,
        key: StepKey,
        line: impl FnOnce(calotype_protocol::JobId, Attempt) -> Down,
    ) {
        let Some(step) = self.steps.get(key) else { return };
        if let Some(attempted) = &step.attempted {
            self.effects.push(Effect::Send {
                worker: attempted.worker,
                incarnation: attempted.incarnation,
                frame: line(step.job.clone(), Attempt(step.attempts)).into(),
            });
        }
    }
}
