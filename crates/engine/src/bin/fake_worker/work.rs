//! Jobs in its hands: taken, ticked and answered, each in the way of its fault.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread;
use std::time::Instant;

use calotype_protocol::{
    Attempt, Down, Failure, Frame, Generate, JobId, ModelId, Outcome, Phase, Progress, Run, Up, Work,
};

use crate::fault::Fault;
use crate::options::Options;
use crate::pipe::{Pipe, Shared};
use crate::says::{pictures, preview, result};
use crate::sleep_for_ever;

pub(crate) struct Job {
    pub(crate) job: JobId,
    pub(crate) attempt: Attempt,
    priority: i32,
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
    pub(crate) options: Options,
    pub(crate) pipe: Pipe,
    /// In the order in which they came.
    jobs: Vec<Job>,
    pub(crate) resident: BTreeMap<ModelId, u64>,
    runs: u32,
    draining: bool,
    pub(crate) state: Arc<Shared>,
}

impl Worker {
    pub(crate) fn new(options: Options, pipe: Pipe, state: Arc<Shared>) -> Self {
        Self {
            options,
            pipe,
            jobs: Vec::new(),
            resident: BTreeMap::new(),
            runs: 0,
            draining: false,
            state,
        }
    }

    pub(crate) fn work(mut self, frames: &Receiver<Frame<Down>>) {
        loop {
            loop {
                let takes = self.jobs.iter().any(|job| job.turn == Turn::Takes);
                let busy = takes && self.options.fault != Fault::Stalls;
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
            Down::Unload { unload, model } => self.unload(unload, model.as_ref()),
            Down::Run(run) => self.run(*run),
            Down::Cancel { job, attempt } => {
                if self.options.fault != Fault::IgnoresCancel
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
                let report = self.memory();
                self.pipe.say(Up::Memory { seq, report });
            }
            Down::Probe { seq, op: _ } => {
                self.pipe.say(Up::Probed {
                    seq,
                    figures: BTreeMap::from([("step_ms".to_owned(), 0.0)]),
                });
            }
            Down::Drain {} => {
                self.draining = true;
                self.fail_jobs("the worker left while the job was paused", |job| {
                    job.turn == Turn::Paused
                });
            }
            Down::Exit {} | Down::Bye { .. } => self.leave(),
            Down::Welcome(_) | Down::Ping { .. } => {}
        }
    }

    fn run(&mut self, run: Run) {
        let Run {
            job,
            attempt,
            step: _,
            priority,
            deadline_ms: _,
            vae: _,
            work,
        } = run;
        self.runs += 1;
        let refusal = match (self.options.fault, &work) {
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
        match self.options.fault {
            Fault::NeverFinishes => {
                *self.state.since.lock().expect("no panic") = Some(Instant::now());
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
                priority,
                pictures: pictures(&work),
                work,
                done: 0,
                batch_sizes: Vec::new(),
                turn: Turn::Takes,
            });
        }
    }

    /// One step of the jobs whose turn it is: the most urgent and the oldest first, as many as go together.
    fn tick(&mut self) {
        let mut chosen: Vec<usize> = (0..self.jobs.len())
            .filter(|at| self.jobs[*at].turn == Turn::Takes)
            .collect();
        chosen.sort_by_key(|at| Reverse(self.jobs[*at].priority));
        chosen.truncate(self.options.max_batch as usize);
        let started = Instant::now();
        *self.state.since.lock().expect("no panic") = Some(started);
        let tick = self.options.tick(chosen.len());
        if !tick.is_zero() {
            thread::sleep(tick);
        }
        *self.state.since.lock().expect("no panic") = None;
        let samples: usize = chosen.iter().map(|at| self.jobs[*at].work.seeds.len()).sum();
        let step_ms = tick.as_secs_f64() * 1000.0;
        for at in chosen {
            self.step(at, u32::try_from(samples).unwrap_or(u32::MAX), step_ms);
        }
        let (fault, pipe) = (self.options.fault, &self.pipe);
        self.jobs.retain(|job| {
            if job.turn == Turn::Paused || job.done < job.work.steps {
                return true;
            }
            if fault == Fault::StaleAttempt {
                pipe.send(&result(job, Attempt(job.attempt.0.saturating_sub(1)), step_ms));
            }
            pipe.send(&result(job, job.attempt, step_ms));
            false
        });
    }

    fn step(&mut self, at: usize, samples: u32, step_ms: f64) {
        let job = &mut self.jobs[at];
        if job.done < job.work.steps {
            job.done += 1;
            job.batch_sizes.push(samples);
            if !self.options.quiet {
                self.pipe.say(Up::Progress(Progress {
                    job: job.job.clone(),
                    attempt: job.attempt,
                    phase: Phase::Denoise,
                    done: job.done,
                    total: job.work.steps,
                    step_ms,
                }));
                let every = job.work.preview_every;
                if every > 0 && job.done.is_multiple_of(every) {
                    self.pipe.send(&preview(job));
                }
            }
        }
        let at_half = job.done * 2 >= job.work.steps;
        match self.options.fault {
            Fault::KilledMidStep if at_half => kill_myself(),
            Fault::KilledOnce if at_half => {
                let marker = self.options.marker.as_ref().expect("FAKE_MARKER");
                if std::fs::File::create_new(marker).is_ok() {
                    kill_myself();
                }
            }
            _ => {}
        }
    }

    /// Ends these jobs without a picture.
    pub(crate) fn fail_jobs(&mut self, why: &str, which: impl Fn(&Job) -> bool) {
        let (failed, kept): (Vec<Job>, Vec<Job>) =
            std::mem::take(&mut self.jobs).into_iter().partition(which);
        self.jobs = kept;
        for job in failed {
            self.pipe.say(Up::Failed {
                job: job.job,
                attempt: job.attempt,
                failure: Failure {
                    outcome: Outcome::Failed,
                    message: why.to_owned(),
                    detail: None,
                },
            });
        }
    }

    fn find(&self, job: &JobId, attempt: Attempt) -> Option<usize> {
        self.jobs
            .iter()
            .position(|running| running.job == *job && running.attempt == attempt)
    }

    fn publish(&self) {
        *self.state.resident.lock().expect("no panic") = self.resident.keys().cloned().collect();
        self.state
            .used_bytes
            .store(self.memory().used_bytes, Ordering::Relaxed);
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
