//! Jobs in its hands: taken, ticked and answered, each in the way of its fault.

use std::collections::BTreeMap;
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread;
use std::time::Duration;

use calotype_protocol::{
    Attempt, Down, Failure, Frame, Generate, JobId, Load, Loaded, MemoryReport, ModelId, Outcome, Phase,
    Progress, Run, Up, Work,
};

use crate::fault::Fault;
use crate::pipe::{Pipe, Shared};
use crate::says::{pictures, preview, result};
use crate::sleep_for_ever;

pub(crate) struct Job {
    pub(crate) job: JobId,
    pub(crate) attempt: Attempt,
    pub(crate) work: Generate,
    pub(crate) pictures: Vec<Vec<u8>>,
    pub(crate) done: u32,
    pub(crate) batch_sizes: Vec<u32>,
    turn: Turn,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Takes,
    Paused,
}

pub(crate) struct Worker {
    fault: Fault,
    pipe: Pipe,
    step: Duration,
    jobs: Vec<Job>,
    resident: Vec<ModelId>,
    runs: u32,
    draining: bool,
    state: Arc<Shared>,
}

impl Worker {
    pub(crate) fn new(fault: Fault, pipe: Pipe, step: Duration, state: Arc<Shared>) -> Self {
        Self {
            fault,
            pipe,
            step,
            jobs: Vec::new(),
            resident: Vec::new(),
            runs: 0,
            draining: false,
            state,
        }
    }

    pub(crate) fn work(mut self, frames: &Receiver<Frame<Down>>) {
        loop {
            loop {
                let busy = self.jobs.iter().any(|job| job.turn == Turn::Takes) && self.fault != Fault::Stalls;
                let frame = if busy {
                    match frames.try_recv() {
                        Ok(frame) => frame,
                        Err(TryRecvError::Empty) => break,
                        Err(TryRecvError::Disconnected) => exit(0),
                    }
                } else if let Ok(frame) = frames.recv() {
                    frame
                } else {
                    exit(0);
                };
                self.obey(frame.message);
                self.publish();
                if self.draining && self.jobs.is_empty() {
                    self.leave();
                }
            }
            self.tick();
            self.publish();
            if self.draining && self.jobs.is_empty() {
                self.leave();
            }
        }
    }

    fn obey(&mut self, message: Down) {
        match message {
            Down::Load(load) => self.load(load),
            Down::Unload { unload, model } => {
                let before = self.resident.len();
                self.resident
                    .retain(|resident| model.as_ref().is_some_and(|model| model != resident));
                let freed_bytes = 1000 * (before - self.resident.len()) as u64;
                self.pipe.say(Up::Unloaded { unload, freed_bytes });
            }
            Down::Run(run) => self.run(*run),
            Down::Cancel { job, attempt } => {
                if self.fault != Fault::IgnoresCancel
                    && let Some(at) = self.find(&job, attempt)
                {
                    let at_step = self.jobs.remove(at).done;
                    self.pipe.say(Up::Cancelled {
                        job,
                        attempt,
                        at_step,
                    });
                }
            }
            Down::Pause {
                job,
                attempt,
                offload: _,
            } => {
                if let Some(at) = self.find(&job, attempt) {
                    self.jobs[at].turn = Turn::Paused;
                    let at_step = self.jobs[at].done;
                    self.pipe.say(Up::Paused {
                        job,
                        attempt,
                        at_step,
                    });
                }
            }
            Down::Resume { job, attempt } => {
                if let Some(at) = self.find(&job, attempt) {
                    self.jobs[at].turn = Turn::Takes;
                    let at_step = self.jobs[at].done;
                    self.pipe.say(Up::Resumed {
                        job,
                        attempt,
                        at_step,
                    });
                }
            }
            Down::Release { segment } => self.pipe.say(Up::Released { segment }),
            Down::Memory { seq, op: _ } => {
                let used_bytes = 1000 * self.resident.len() as u64;
                let total_bytes = 1 << 30;
                let free_bytes = total_bytes - used_bytes;
                let report = MemoryReport {
                    total_bytes,
                    free_bytes,
                    used_bytes,
                    peak_bytes: used_bytes,
                    cached_bytes: 0,
                };
                self.pipe.say(Up::Memory { seq, report });
            }
            Down::Probe { seq, op: _ } => {
                self.pipe.say(Up::Probed {
                    seq,
                    figures: BTreeMap::from([("step_ms".to_owned(), 0.0)]),
                });
            }
            Down::Drain {} => self.draining = true,
            Down::Exit {} | Down::Bye { .. } => self.leave(),
            Down::Welcome(_) | Down::Ping { .. } => {}
        }
    }

    fn load(&mut self, load: Load) {
        let Load {
            load,
            model,
            dtype: _,
            budget_bytes: _,
            plan: _,
        } = load;
        if self.fault == Fault::ModelLoad {
            let failure = Failure {
                outcome: Outcome::ModelLoad,
                message: "the file ends in the middle of a tensor".to_owned(),
                detail: Some("unet.safetensors: conv_in.weight".to_owned()),
            };
            self.pipe.say(Up::LoadFailed { load, failure });
            return;
        }
        self.pipe.say(Up::LoadProgress {
            load: load.clone(),
            done_bytes: 500,
            total_bytes: 1000,
        });
        if !self.resident.contains(&model.id) {
            self.resident.push(model.id.clone());
        }
        let phases_ms = BTreeMap::from([("read".to_owned(), 0.0)]);
        self.pipe.say(Up::Loaded(Loaded {
            load,
            model: model.id,
            resident_bytes: 1000,
            phases_ms,
        }));
    }

    fn run(&mut self, run: Run) {
        let Run {
            job,
            attempt,
            step: _,
            priority: _,
            deadline_ms: _,
            vae: _,
            work,
        } = run;
        self.runs += 1;
        let refusal = match (self.fault, &work) {
            (Fault::OutOfMemory, _) => Some((Outcome::OutOfMemory, "4000 bytes asked for, 1000 free")),
            (Fault::OutOfMemoryOnce, _) if self.runs == 1 => {
                Some((Outcome::OutOfMemory, "4000 bytes asked for, 1000 free"))
            }
            (Fault::Fails, _) => Some((Outcome::Failed, "it does not work")),
            (_, _) if self.draining => Some((Outcome::Failed, "the worker is leaving")),
            (_, Work::Generate(_)) => None,
            (_, _) => Some((Outcome::NotSupported, "this worker only generates")),
        };
        if let Some((outcome, message)) = refusal {
            let failure = Failure {
                outcome,
                message: message.to_owned(),
                detail: None,
            };
            self.pipe.say(Up::Failed {
                job,
                attempt,
                failure,
            });
            return;
        }
        match self.fault {
            Fault::NeverFinishes => {
                self.state.running.lock().expect("no panic").push(job);
                sleep_for_ever();
            }
            Fault::LosesItsDevice => {
                self.pipe.say(Up::Fatal {
                    reason: "an illegal address was accessed".to_owned(),
                });
                exit(6);
            }
            _ => {}
        }
        if let Work::Generate(work) = work {
            self.jobs.push(Job {
                job,
                attempt,
                pictures: pictures(&work),
                work,
                done: 0,
                batch_sizes: Vec::new(),
                turn: Turn::Takes,
            });
        }
    }

    /// One step of every job that takes its turn.
    fn tick(&mut self) {
        if !self.step.is_zero() {
            thread::sleep(self.step);
        }
        let batch: usize = self
            .jobs
            .iter()
            .filter(|job| job.turn == Turn::Takes)
            .map(|job| job.work.seeds.len())
            .sum();
        let step_ms = self.step.as_secs_f64() * 1000.0;
        for job in self.jobs.iter_mut().filter(|job| job.turn == Turn::Takes) {
            if job.done < job.work.steps {
                job.done += 1;
                job.batch_sizes.push(u32::try_from(batch).unwrap_or(u32::MAX));
                let (phase, done, total) = (Phase::Denoise, job.done, job.work.steps);
                let (id, attempt) = (job.job.clone(), job.attempt);
                self.pipe.say(Up::Progress(Progress {
                    job: id,
                    attempt,
                    phase,
                    done,
                    total,
                    step_ms,
                }));
                let every = job.work.preview_every;
                if every > 0 && done % every == 0 {
                    self.pipe.send(&preview(job));
                }
            }
            let at_half = job.done * 2 >= job.work.steps;
            match self.fault {
                Fault::KilledMidStep if at_half => kill_myself(),
                Fault::KilledOnce if at_half => {
                    let marker = std::env::var_os("FAKE_MARKER").expect("FAKE_MARKER");
                    if std::fs::File::create_new(marker).is_ok() {
                        kill_myself();
                    }
                }
                _ => {}
            }
        }
        let (fault, pipe) = (self.fault, &self.pipe);
        self.jobs.retain(|job| {
            if job.done < job.work.steps {
                return true;
            }
            if fault == Fault::StaleAttempt {
                pipe.send(&result(job, Attempt(job.attempt.0.saturating_sub(1)), step_ms));
            }
            pipe.send(&result(job, job.attempt, step_ms));
            false
        });
    }

    fn find(&self, job: &JobId, attempt: Attempt) -> Option<usize> {
        self.jobs
            .iter()
            .position(|running| running.job == *job && running.attempt == attempt)
    }

    fn publish(&self) {
        self.state
            .resident
            .lock()
            .expect("no panic")
            .clone_from(&self.resident);
        *self.state.running.lock().expect("no panic") = self.jobs.iter().map(|job| job.job.clone()).collect();
    }

    fn leave(&self) -> ! {
        self.state.leaving.store(true, Ordering::Relaxed);
        self.pipe.say(Up::Bye {});
        exit(0)
    }
}

fn kill_myself() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    sleep_for_ever()
}
