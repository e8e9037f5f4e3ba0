//! What clients ask of jobs: cancel, pause, resume. A wish is answered once it is in the journal; asking again for what is
//! so already is no fault, and a cancel is final.

use calotype_protocol::{Down, JobId};

use super::Core;
use super::message::{Action, Effect, Now, Then, Token};
use crate::error::{Code, Error};
use crate::processing::job::state::{Move, PausedBy, StepState};
use crate::processing::job::timeline::Spent;
use crate::processing::job::{JobState, StepKey};

impl Core {
    pub(super) fn control(&mut self, job: &JobId, action: Action, token: Token, now: Now) {
        let Some(key) = self.steps.find(job) else {
            let error = Error::new(Code::NotFound, format!("there is no live job {job}"));
            self.answer(token, Err(error));
            return;
        };
        let outcome = match action {
            Action::Cancel => self.cancel(key, now),
            Action::Pause => self.pause(key, now),
            Action::Resume => self.resume(key, now),
        };
        match outcome {
            Ok(Asked::IsSo) => self.answer(token, Ok(())),
            // The end itself is journaled and told; whoever asked hears at once that it was taken.
            Ok(Asked::WillBeSo) => self.answer(token, Ok(())),
            Ok(Asked::KeepIt) => self.journal_step(
                key,
                Then::Answer {
                    token,
                    steps: vec![key],
                },
            ),
            Err(error) => self.answer(token, Err(error.job(job.clone()))),
        }
    }

    fn answer(&mut self, token: Token, outcome: Result<(), Error>) {
        self.effects.push(Effect::Answer { token, outcome });
    }

    fn cancel(&mut self, key: StepKey, now: Now) -> Result<Asked, Error> {
        let Some(state) = self.steps.get(key).map(|step| step.state()) else {
            return Ok(Asked::IsSo);
        };
        match state {
            StepState::Finishing => {
                // The pictures are made and being stored: too late to take back.
                return Err(conflict("the job is done, its pictures are being stored"));
            }
            StepState::Ending | StepState::Ended | StepState::Cancelling => return Ok(Asked::IsSo),
            StepState::Ready | StepState::Paused(_) if !state.is_in_worker() => {
                self.end(key, JobState::Cancelled, None, now);
                return Ok(Asked::WillBeSo);
            }
            _ => {}
        }
        let is_in_worker = state.is_in_worker();
        // One that is being withdrawn was sent its `cancel` already.
        let was_sent = matches!(state, StepState::Withdrawing(_));
        if self.steps.advance(key, Move::Cancel).is_ok() {
            // A suspended one waited for a place: what was kept free for it is free for others.
            self.dirty = true;
            self.note(key, "leaves at the next step".to_owned());
            if is_in_worker && !was_sent {
                self.send_about(key, |job, attempt| Down::Cancel { job, attempt });
            }
            self.tell_state(key);
        }
        Ok(Asked::WillBeSo)
    }

    fn pause(&mut self, key: StepKey, now: Now) -> Result<Asked, Error> {
        let Some(step) = self.steps.get(key) else {
            return Ok(Asked::IsSo);
        };
        let state = step.state();
        match state {
            StepState::Finishing => return Err(conflict("the job is done, its pictures are being stored")),
            StepState::Cancelling => return Err(conflict("the job is being cancelled")),
            // Whatever its end is, it is not taken back.
            StepState::Ending | StepState::Ended => return Err(conflict("the job is ending")),
            // It may not be on the disk yet.
            _ if state.is_held() => return Ok(Asked::KeepIt),
            StepState::Running | StepState::Resuming => {
                let worker = step
                    .attempted
                    .as_ref()
                    .and_then(|run| self.fleet.worker(run.worker));
                if worker.is_some_and(|worker| !worker.pauses()) {
                    let error =
                        Error::new(Code::NotSupported, "the worker that runs the job cannot pause it");
                    return Err(error.advice("let it end, or cancel it"));
                }
            }
            _ => {}
        }
        self.steps
            .advance(key, Move::Pause)
            .map_err(|illegal| conflict(&illegal.to_string()))?;
        match state {
            // A pause for the scheduler is on its way already.
            StepState::Running | StepState::Resuming => self.send_pause(key),
            StepState::Ready => {
                self.note(key, "paused before it began".to_owned());
                self.spend_on(key, Spent::Paused, now);
            }
            StepState::Suspended => self.spend_on(key, Spent::Paused, now),
            _ => {}
        }
        if let Some(step) = self.steps.get_mut(key) {
            step.loads = false;
        }
        self.dirty = true;
        self.tell_state(key);
        Ok(Asked::KeepIt)
    }

    fn resume(&mut self, key: StepKey, now: Now) -> Result<Asked, Error> {
        let Some(state) = self.steps.get(key).map(|step| step.state()) else {
            return Ok(Asked::IsSo);
        };
        match state {
            StepState::Finishing => return Err(conflict("the job is done, its pictures are being stored")),
            StepState::Cancelling => return Err(conflict("the job is being cancelled")),
            // Whatever its end is, it is not taken back.
            StepState::Ending | StepState::Ended => return Err(conflict("the job is ending")),
            _ if !state.is_held() => return Ok(Asked::KeepIt),
            _ => {}
        }
        let next = self
            .steps
            .advance(key, Move::Resume)
            .map_err(|illegal| conflict(&illegal.to_string()))?;
        self.note(key, None);
        if state == StepState::Pausing(PausedBy::Client) {
            if let Some(run) = self.steps.get_mut(key).and_then(|step| step.attempted.as_mut()) {
                run.answers_due += 1;
            }
            self.send_about(key, |job, attempt| Down::Resume { job, attempt });
        }
        if next.is_waiting() {
            self.spend_on(key, Spent::Queued, now);
        }
        self.dirty = true;
        self.tell_state(key);
        Ok(Asked::KeepIt)
    }

    fn spend_on(&mut self, key: StepKey, spent: Spent, now: Now) {
        if let Some(step) = self.steps.get_mut(key) {
            step.timeline.switch(spent, now.since_start);
        }
    }
}

/// What a client's wish came to.
enum Asked {
    /// It was so already.
    IsSo,
    /// It is on its way, and its end will be journaled.
    WillBeSo,
    /// It is so now, and must be kept over a restart.
    KeepIt,
}

fn conflict(what: &str) -> Error {
    Error::new(Code::Conflict, what)
}
