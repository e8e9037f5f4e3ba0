//! A virtual worker: runs share its device equally, leave at a step's end when they are asked to, and answer as the
//! protocol says. It knows no clock: the world tells it the time, and asks when it has something to say next.

use std::collections::BTreeMap;
use std::time::Duration;

use calotype_protocol::{Attempt, JobId, ModelId, RunResult, Up};

use super::workload::DeviceSpec;

/// Work smaller than this is done, in milliseconds: times are whole nanoseconds.
const NOTHING_MS: f64 = 1e-5;

/// What a run has been asked to do at its next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Nothing,
    Pause,
    Cancel,
}

/// A run in a worker.
#[derive(Debug)]
struct Run {
    /// By its index in the world.
    job: usize,
    id: JobId,
    attempt: Attempt,
    model: ModelId,
    left_ms: f64,
    step_ms: f64,
    asked: Asked,
}

/// A run that goes down.
pub(super) struct NewRun {
    pub(super) job: usize,
    pub(super) id: JobId,
    pub(super) attempt: Attempt,
    pub(super) model: ModelId,
    pub(super) work_ms: f64,
    pub(super) steps: u32,
}

#[derive(Debug)]
pub(super) struct VirtualWorker {
    pub(super) spec: DeviceSpec,
    runs: Vec<Run>,
    paused: Vec<Run>,
    /// With their bytes.
    resident: BTreeMap<ModelId, u64>,
    is_moving: bool,
    /// Whether what is moved comes in: then nothing runs meanwhile, unless the worker can do both.
    is_loading: bool,
    /// Until when its runs have been worked on.
    at: Duration,
    /// Grows with each change, so that the world knows which of its events are out of date.
    pub(super) version: u64,
    pub(super) loads: usize,
    pub(super) load_ms: f64,
    /// Rules of the protocol that the core broke.
    pub(super) faults: Vec<String>,
}

impl VirtualWorker {
    pub(super) fn new(spec: DeviceSpec) -> Self {
        Self {
            spec,
            runs: Vec::new(),
            paused: Vec::new(),
            resident: BTreeMap::new(),
            is_moving: false,
            is_loading: false,
            at: Duration::ZERO,
            version: 0,
            loads: 0,
            load_ms: 0.0,
            faults: Vec::new(),
        }
    }

    /// Works on its runs until `now`. Tells of each how much of the device it had, in milliseconds.
    pub(super) fn work_until(&mut self, now: Duration, mut had: impl FnMut(usize, f64)) {
        let passed_ms = now.saturating_sub(self.at).as_secs_f64() * 1e3;
        self.at = now;
        if self.runs.is_empty() || passed_ms == 0.0 {
            return;
        }
        let rate = self.rate();
        let share_ms = passed_ms / self.runs.len() as f64;
        for run in &mut self.runs {
            run.left_ms -= passed_ms * rate;
            had(run.job, share_ms);
        }
    }

    /// What it has to say now.
    pub(super) fn lines(&mut self) -> Vec<Up> {
        let mut lines = Vec::new();
        let mut stay = Vec::with_capacity(self.runs.len());
        for mut run in self.runs.drain(..) {
            let (job, attempt) = (run.id.clone(), run.attempt);
            let at_step = ((run.left_ms / run.step_ms).max(0.0)) as u32;
            if run.left_ms <= NOTHING_MS {
                lines.push(Up::Result(Box::new(RunResult {
                    job,
                    attempt,
                    images: Vec::new(),
                    seeds: Vec::new(),
                    timings_ms: BTreeMap::new(),
                    peak_bytes: 0,
                    phase_peaks_bytes: BTreeMap::new(),
                    batch_sizes: Vec::new(),
                    engine: String::new(),
                    plan: Vec::new(),
                })));
            } else if run.asked == Asked::Nothing || run.to_step_end_ms() > NOTHING_MS {
                stay.push(run);
            } else if run.asked == Asked::Cancel {
                lines.push(Up::Cancelled {
                    job,
                    attempt,
                    at_step,
                });
            } else {
                lines.push(Up::Paused {
                    job,
                    attempt,
                    at_step,
                });
                run.asked = Asked::Nothing;
                self.paused.push(run);
            }
        }
        self.runs = stay;
        lines
    }

    /// When it has something to say next, if nothing comes between.
    pub(super) fn speaks_at(&self) -> Option<Duration> {
        let rate = self.rate();
        let next_ms = self.runs.iter().map(|run| match run.asked {
            Asked::Nothing => run.left_ms,
            Asked::Pause | Asked::Cancel => run.to_step_end_ms().min(run.left_ms),
        });
        let next_ms = next_ms.reduce(f64::min)?.max(0.0) / rate;
        // Rounded up: the work is done by then.
        Some(self.at + Duration::from_nanos((next_ms * 1e6).ceil() as u64))
    }

    fn rate(&self) -> f64 {
        let runs = self.runs.len().max(1);
        self.spec.throughput(runs) / runs as f64
    }

    pub(super) fn run(&mut self, new: NewRun) {
        if !self.resident.contains_key(&new.model) {
            self.faults.push(format!("{} runs without {}", new.id, new.model));
        }
        if self.runs.len() >= self.spec.places as usize {
            self.faults
                .push(format!("{} is one more than the places", new.id));
        }
        if self.is_loading && !self.spec.loads_beside_runs {
            self.faults.push(format!("{} starts during a load", new.id));
        }
        self.runs.push(Run {
            job: new.job,
            id: new.id,
            attempt: new.attempt,
            model: new.model,
            left_ms: new.work_ms,
            step_ms: new.work_ms / f64::from(new.steps.max(1)),
            asked: Asked::Nothing,
        });
    }

    pub(super) fn pause(&mut self, job: &JobId) -> Option<Up> {
        if let Some(run) = self.runs.iter_mut().find(|run| run.id == *job) {
            run.asked = Asked::Pause;
            return None;
        }
        let run = self.paused.iter().find(|run| run.id == *job)?;
        Some(Up::Paused {
            job: run.id.clone(),
            attempt: run.attempt,
            at_step: 0,
        })
    }

    pub(super) fn resume(&mut self, job: &JobId) -> Option<Up> {
        let index = self.paused.iter().position(|run| run.id == *job)?;
        let run = self.paused.remove(index);
        let line = Up::Resumed {
            job: run.id.clone(),
            attempt: run.attempt,
            at_step: 0,
        };
        if self.runs.len() >= self.spec.places as usize {
            self.faults
                .push(format!("{job} comes back and is one more than the places"));
        }
        self.runs.push(run);
        Some(line)
    }

    pub(super) fn cancel(&mut self, job: &JobId) -> Option<Up> {
        if let Some(run) = self.runs.iter_mut().find(|run| run.id == *job) {
            run.asked = Asked::Cancel;
            return None;
        }
        let index = self.paused.iter().position(|run| run.id == *job)?;
        let run = self.paused.remove(index);
        Some(Up::Cancelled {
            job: run.id,
            attempt: run.attempt,
            at_step: 0,
        })
    }

    pub(super) fn load_begins(&mut self) {
        if !self.runs.is_empty() && !self.spec.loads_beside_runs {
            self.faults.push("a load begins beside runs".to_owned());
        }
        self.move_begins();
        self.is_loading = true;
    }

    pub(super) fn unload_begins(&mut self) {
        self.move_begins();
    }

    fn move_begins(&mut self) {
        if self.is_moving {
            self.faults
                .push("a load or unload begins beside another".to_owned());
        }
        self.is_moving = true;
    }

    pub(super) fn loaded(&mut self, model: &ModelId, bytes: u64, took_ms: f64) {
        self.is_moving = false;
        self.is_loading = false;
        self.loads += 1;
        self.load_ms += took_ms;
        self.resident.insert(model.clone(), bytes);
        let held: u64 = self.resident.values().sum();
        if held > self.spec.budget_bytes {
            self.faults.push(format!("{model} is more than the memory"));
        }
    }

    /// A model is dropped; its bytes.
    pub(super) fn unloaded(&mut self, model: &ModelId) -> u64 {
        self.is_moving = false;
        if self
            .runs
            .iter()
            .chain(&self.paused)
            .any(|run| run.model == *model)
        {
            self.faults
                .push(format!("{model} is dropped while a run needs it"));
        }
        self.resident.remove(model).unwrap_or(0)
    }
}

impl Run {
    /// Work to the end of the step under way.
    fn to_step_end_ms(&self) -> f64 {
        let into_ms = self.left_ms % self.step_ms;
        if self.step_ms - into_ms <= NOTHING_MS {
            0.0
        } else {
            into_ms
        }
    }
}
