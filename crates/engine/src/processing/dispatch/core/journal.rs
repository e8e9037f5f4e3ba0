//! What must be on disk, and what is done while it cannot be. Writes leave in the order of decisions. A write that fails
//! because of the store makes its steps debts: while there is an outage nothing new is started, the store is tried again and
//! again, and when it works each debt is written as its step stands by then. Nothing is told as ended before its end is in
//! the journal.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Core;
use super::message::{Effect, Ended, Now, Outputs, StoreFault, Then};
use super::step::StepEnd;
use crate::error::Error;
use crate::processing::job::state::{Move, StepState};
use crate::processing::job::timeline::Spent;
use crate::processing::job::{JobState, StepKey};
use crate::store::{Finish, Held, Write};

/// The store is tried again so often during an outage.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// Debts that are written together once the store works again.
const DEBTS_TOGETHER: usize = 256;

/// The store does not take what it must keep.
#[derive(Debug)]
pub(super) struct Outage {
    message: String,
    /// When it is tried next; `None` while a try is under way.
    probe_at: Option<Duration>,
    /// Steps whose state the journal lacks.
    debts: BTreeSet<StepKey>,
    /// Outputs that could not be stored.
    outputs: Vec<(StepKey, Box<Outputs>)>,
}

impl Outage {
    pub(super) fn probe_at(&self) -> Option<Duration> {
        self.probe_at
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }
}

impl Core {
    /// What the store says while it does not work.
    pub(crate) fn store_outage(&self) -> Option<&str> {
        self.outage.as_ref().map(Outage::message)
    }

    /// Ends a step that made nothing. What it held is free from now on; the end is told when it is journaled.
    pub(super) fn end(&mut self, key: StepKey, state: JobState, error: Option<Error>, now: Now) {
        let error = match (self.steps.get(key), error) {
            (Some(step), Some(error)) => Some(error.job(step.job.clone())),
            (_, error) => error,
        };
        let end = StepEnd {
            state,
            result: None,
            error,
            at_ms: now.wall_ms,
        };
        self.end_with(key, end, now);
    }

    /// Ends a step: its lane, its worker and its leases first, then the journal.
    pub(super) fn end_with(&mut self, key: StepKey, end: StepEnd, now: Now) {
        if self.steps.advance(key, Move::End).is_err() {
            return;
        }
        self.leave_worker(key, now);
        if let Some(step) = self.steps.get_mut(key) {
            step.timeline.switch(Spent::Finish, now.since_start);
            step.end = Some(Box::new(end));
            step.loads = false;
        }
        self.dirty = true;
        self.journal_step(key, Then::EndTold(key));
    }

    /// Writes down where a step stands now.
    pub(super) fn journal_step(&mut self, key: StepKey, then: Then) {
        if let Some(write) = self.image(key) {
            self.effects.push(Effect::Journal {
                writes: vec![write],
                then,
            });
        }
    }

    /// What the journal should say about a step as it stands.
    fn image(&self, key: StepKey) -> Option<Write> {
        let step = self.steps.get(key)?;
        let job = step.job.clone();
        let state = step.state();
        if let Some(end) = &step.end {
            let finish = Finish {
                state: end.state,
                result: end.result.clone(),
                error: end.error.clone(),
                finished_at_ms: end.at_ms,
            };
            return Some(Write::Finish { job, finish });
        }
        let waits = |held| Write::Requeue {
            job: job.clone(),
            crashes: step.crashes,
            held,
        };
        Some(match state {
            _ if state.is_held() => waits(Held::Yes),
            StepState::Ready => waits(Held::No),
            _ => {
                let place = step
                    .attempted
                    .as_ref()
                    .and_then(|run| self.fleet.worker(run.worker));
                Write::Claim {
                    job: job.clone(),
                    attempt: step.attempts,
                    worker: place.map_or_else(String::new, |worker| worker.spec.name.to_string()),
                    at_ms: step.started_at_ms.unwrap_or(0),
                }
            }
        })
    }

    pub(super) fn journaled(&mut self, then: Then, outcome: Result<(), StoreFault>, now: Now) {
        match (then, outcome) {
            (Then::Claimed(run), Ok(())) => self.claimed(run, now),
            (Then::Claimed(run), Err(fault)) => {
                self.outage_began(&fault, now);
                self.claim_failed(run, now);
            }
            (Then::EndTold(key), Ok(())) => self.end_journaled(key, now),
            (Then::EndTold(key), Err(fault)) => {
                self.outage_began(&fault, now);
                self.owe(key);
            }
            (Then::Answer { token, .. }, Ok(())) => {
                self.effects.push(Effect::Answer {
                    token,
                    outcome: Ok(()),
                });
            }
            (Then::Answer { token, steps }, Err(fault)) => {
                self.outage_began(&fault, now);
                for key in steps {
                    self.owe(key);
                }
                let outcome = Err(fault.error);
                self.effects.push(Effect::Answer { token, outcome });
            }
            (Then::Kept(_), Ok(())) => {}
            (Then::Owed { ended, .. }, Ok(())) => {
                for key in ended {
                    self.end_journaled(key, now);
                }
            }
            (Then::Kept(steps) | Then::Owed { steps, .. }, Err(fault)) => {
                self.outage_began(&fault, now);
                for key in steps {
                    self.owe(key);
                }
            }
        }
    }

    /// The store took a probe, or still does not work.
    pub(super) fn store_probed(&mut self, outcome: Result<(), StoreFault>, now: Now) {
        match outcome {
            Err(fault) => self.outage_began(&fault, now),
            Ok(()) => {
                let Some(outage) = self.outage.take() else { return };
                tracing::info!(
                    "The store works again: {} ends and states are written now",
                    outage.debts.len() + outage.outputs.len()
                );
                let debts: Vec<StepKey> = outage.debts.into_iter().collect();
                for steps in debts.chunks(DEBTS_TOGETHER) {
                    let writes = steps.iter().filter_map(|key| self.image(*key)).collect();
                    let has_ended =
                        |key: &StepKey| self.steps.get(*key).is_some_and(|step| step.end.is_some());
                    let then = Then::Owed {
                        steps: steps.to_vec(),
                        ended: steps.iter().copied().filter(has_ended).collect(),
                    };
                    self.effects.push(Effect::Journal { writes, then });
                }
                for (step, outputs) in outage.outputs {
                    self.effects.push(Effect::StoreOutputs { step, outputs });
                }
                self.dirty = true;
            }
        }
    }

    /// Outputs that could not be stored wait until they can be.
    pub(super) fn keep_outputs(&mut self, key: StepKey, fault: &StoreFault, outputs: Box<Outputs>, now: Now) {
        self.outage_began(fault, now);
        if let Some(outage) = &mut self.outage {
            outage.outputs.push((key, outputs));
        }
    }

    pub(super) fn probe_if_due(&mut self, now: Now) {
        if let Some(outage) = &mut self.outage
            && outage.probe_at.is_some_and(|at| at <= now.since_start)
        {
            outage.probe_at = None;
            self.effects.push(Effect::ProbeStore);
        }
    }

    fn outage_began(&mut self, fault: &StoreFault, now: Now) {
        let probe_at = Some(now.since_start + PROBE_EVERY);
        match &mut self.outage {
            Some(outage) => {
                outage.message.clone_from(&fault.error.message);
                outage.probe_at = outage.probe_at.or(probe_at);
            }
            None => {
                tracing::error!(
                    "Nothing new is started while the store does not work: {}",
                    fault.error
                );
                self.outage = Some(Outage {
                    message: fault.error.message.clone(),
                    probe_at,
                    debts: BTreeSet::new(),
                    outputs: Vec::new(),
                });
            }
        }
    }

    fn owe(&mut self, key: StepKey) {
        if let Some(outage) = &mut self.outage
            && self.steps.get(key).is_some()
        {
            outage.debts.insert(key);
        }
    }

    fn end_journaled(&mut self, key: StepKey, now: Now) {
        if self.steps.advance(key, Move::EndIsJournaled).is_err() {
            return;
        }
        if let Some(outage) = &mut self.outage {
            outage.debts.remove(&key);
        }
        let Some(mut step) = self.steps.forget(key, &mut self.fleet) else {
            return;
        };
        step.timeline.switch(Spent::Finish, now.since_start);
        if let Some(end) = step.end {
            let ended = Ended {
                step: key,
                job: step.job,
                end: *end,
                note: step.note,
                attempts: step.attempts,
                started_at_ms: step.started_at_ms,
                took: step.timeline.total(),
            };
            self.effects.push(Effect::Ended(Box::new(ended)));
        }
    }
}
