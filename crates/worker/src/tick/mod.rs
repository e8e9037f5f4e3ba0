//! The tick loop: holds models and jobs, and does one piece of work at a time. Between two pieces it takes messages, so
//! that a job joins, leaves, pauses or is cancelled at any step.
//!
//! 1. A waiting job is prepared: LoRAs are bound, text and images encoded.
//! 2. A job whose sampling is over is decoded, and its result said.
//! 3. Else the jobs that fit together share one run of the UNet and take a step each.
//!
//! Knows no pipe, no thread and no process: messages come by [`Loop::handle`] and leave by a function.

mod intake;
mod phases;
mod probe;
mod step;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use calotype_protocol::{
    Attempt, Down, Failure, Frame, JobId, LogLevel, MemoryOp, ModelId, Outcome, Phase, Progress, Up,
};

use crate::facts;
use crate::failure::failure;
use crate::job::{Job, Stage};
use crate::model::Model;
use crate::runtime::Engine;

/// Most jobs in one run of the UNet.
pub(crate) const MAX_BATCH: usize = 4;

/// Whether the loop goes on after a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// More may come.
    Continue,
    /// The process leaves.
    Leave,
}

/// What the beat tells; written by the loop, read by the beat's thread.
#[derive(Debug, Default, Clone)]
pub struct Pulse {
    /// Resident models.
    pub resident: Vec<ModelId>,
    /// Jobs held.
    pub running: Vec<JobId>,
    /// Since when the piece of work under way lasts.
    pub since: Option<Instant>,
}

/// The pulse, shared between the two.
pub type SharedPulse = Arc<Mutex<Pulse>>;

pub(crate) fn pulse_of(shared: &SharedPulse) -> MutexGuard<'_, Pulse> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The loop's state.
pub struct Loop {
    engine: Box<dyn Engine>,
    emit: Box<dyn FnMut(Frame<Up>)>,
    pulse: SharedPulse,
    models: Vec<Model>,
    jobs: Vec<Job>,
    arrivals: u64,
    draining: bool,
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

impl Loop {
    /// A loop without models. `emit` is told everything that goes up.
    pub fn new(engine: Box<dyn Engine>, pulse: SharedPulse, emit: Box<dyn FnMut(Frame<Up>)>) -> Self {
        Self {
            engine,
            emit,
            pulse,
            models: Vec::new(),
            jobs: Vec::new(),
            arrivals: 0,
            draining: false,
        }
    }

    /// Takes one message.
    pub fn handle(&mut self, frame: Frame<Down>) -> Flow {
        let Frame { message, blobs } = frame;
        match message {
            Down::Run(run) => self.take(*run, blobs),
            Down::Cancel { job, attempt } => {
                if let Some(index) = self.known("cancel", &job, attempt) {
                    let at_step = self.jobs.remove(index).steps_done();
                    self.say(Up::Cancelled {
                        job,
                        attempt,
                        at_step,
                    });
                }
            }
            Down::Pause {
                job,
                attempt,
                offload,
            } => self.pause(&job, attempt, offload),
            Down::Resume { job, attempt } => self.resume(&job, attempt),
            Down::Load(load) => self.load(&load),
            Down::Unload { unload, model } => self.unload(unload, model.as_ref()),
            Down::Memory { seq, op } => {
                match op {
                    MemoryOp::Status => {}
                    MemoryOp::Trim => self.models.iter_mut().for_each(Model::trim),
                    MemoryOp::ResetPeak => facts::reset_peak(),
                }
                self.say(Up::Memory {
                    seq,
                    report: facts::memory(),
                });
            }
            Down::Probe { seq, op } => {
                let figures = self.probe(op);
                self.say(Up::Probed { seq, figures });
            }
            Down::Release { segment } => self.say(Up::Released { segment }),
            Down::Ping { seq } => self.say(Up::Pong { seq }),
            Down::Drain {} => {
                self.draining = true;
                self.drop_paused();
            }
            Down::Exit {} | Down::Bye { .. } => return Flow::Leave,
            Down::Welcome(_) => self.log(LogLevel::Warn, None, "a second welcome was ignored"),
        }
        self.show();
        self.flow()
    }

    /// Whether a tick would do anything.
    pub fn has_work(&self) -> bool {
        self.jobs.iter().any(|job| !job.paused)
    }

    /// Does one piece of work.
    pub fn tick(&mut self) -> Flow {
        pulse_of(&self.pulse).since = Some(Instant::now());
        let mut order: Vec<usize> = (0..self.jobs.len())
            .filter(|index| !self.jobs[*index].paused)
            .collect();
        order.sort_by_key(|index| {
            (
                std::cmp::Reverse(self.jobs[*index].priority),
                self.jobs[*index].arrival,
            )
        });
        let waiting = order
            .iter()
            .find(|index| matches!(self.jobs[**index].stage, Stage::Waiting { .. }));
        let sampled = order.iter().find(|index| match &self.jobs[**index].stage {
            Stage::Sampling(sampling) => sampling.is_done(),
            Stage::Waiting { .. } => false,
        });
        if let Some(index) = sampled {
            self.finish(*index);
        } else if let Some(index) = waiting {
            self.prepare(*index);
        } else if !order.is_empty() {
            self.step(&order);
        }
        pulse_of(&self.pulse).since = None;
        self.show();
        self.flow()
    }

    fn flow(&mut self) -> Flow {
        if self.draining && self.jobs.is_empty() {
            self.say(Up::Bye {});
            return Flow::Leave;
        }
        Flow::Continue
    }

    fn say(&mut self, message: Up) {
        (self.emit)(message.into());
    }

    fn log(&mut self, level: LogLevel, job: Option<JobId>, message: impl Into<String>) {
        self.say(Up::Log {
            level,
            job,
            message: message.into(),
            dropped: 0,
        });
    }

    fn show(&mut self) {
        let mut pulse = pulse_of(&self.pulse);
        pulse.resident = self.models.iter().map(|model| model.id.clone()).collect();
        pulse.running = self.jobs.iter().map(|job| job.job.clone()).collect();
    }

    fn known(&mut self, what: &str, job: &JobId, attempt: Attempt) -> Option<usize> {
        let index = self
            .jobs
            .iter()
            .position(|held| held.job == *job && held.attempt == attempt);
        if index.is_none() {
            self.log(
                LogLevel::Debug,
                Some(job.clone()),
                format!("{what} of a job that is not here (attempt {attempt})"),
            );
        }
        index
    }

    fn progress(&mut self, index: usize, phase: Phase, done: u32, total: u32, step_ms: f64) {
        let (job, attempt) = (self.jobs[index].job.clone(), self.jobs[index].attempt);
        self.say(Up::Progress(Progress {
            job,
            attempt,
            phase,
            done,
            total,
            step_ms,
        }));
    }

    fn fail(&mut self, index: usize, failure: Failure) {
        let job = self.jobs.remove(index);
        self.say(Up::Failed {
            job: job.job,
            attempt: job.attempt,
            failure,
        });
    }

    fn model_index(&self, id: &ModelId) -> Result<usize, Failure> {
        let index = self.models.iter().position(|model| model.id == *id);
        index.ok_or_else(|| failure(Outcome::Failed, format!("the model `{id}` is not resident")))
    }
}
