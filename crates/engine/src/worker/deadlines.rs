//! By when each job and each load must have moved on. Pure: it is told the time and what crosses the pipe.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use calotype_protocol::{Attempt, Down, JobId, LoadId, Phase, Progress, Up};

use super::config::Timing;

/// A longer step is not believed.
const LONGEST_STEP: Duration = Duration::from_secs(3600);

/// Something that did not move in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Overdue {
    /// A job made no progress: ask it to stop.
    Step {
        /// Which.
        job: JobId,
        /// Which try.
        attempt: Attempt,
    },
    /// A job did not heed `cancel`: the process must go.
    Cancel {
        /// Which.
        job: JobId,
    },
    /// A load made no progress: the process must go.
    Load {
        /// Which.
        load: LoadId,
    },
}

/// The clocks of everything that a worker was asked for.
#[derive(Debug)]
pub(super) struct Deadlines {
    timing: Timing,
    jobs: BTreeMap<JobId, JobClock>,
    loads: BTreeMap<LoadId, LoadClock>,
    /// Of any job; what a job's first step is measured against.
    recent_step: Option<Duration>,
}

#[derive(Debug)]
struct JobClock {
    attempt: Attempt,
    stage: Stage,
    started: Instant,
    /// None while paused.
    due: Option<Instant>,
    recent_step: Option<Duration>,
    last: Option<(Phase, u32)>,
    piece: Piece,
}

/// What a job does next, as far as it tells how long that may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    /// The first of a phase: nothing that was measured says how long it takes. A step at a large size is not like the
    /// text encoding before it, and decoding is not like a step.
    First,
    /// One like the last.
    Further,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    Paused,
    /// `cancel` went down; progress counts no longer.
    Cancelling,
}

#[derive(Debug)]
struct LoadClock {
    due: Instant,
    done_bytes: u64,
}

impl Deadlines {
    /// No clocks yet.
    pub(super) fn new(timing: Timing) -> Self {
        Self {
            timing,
            jobs: BTreeMap::new(),
            loads: BTreeMap::new(),
            recent_step: None,
        }
    }

    /// Something goes down.
    pub(super) fn sent(&mut self, message: &Down, now: Instant) {
        match message {
            Down::Run(run) => {
                let due = Some(now + self.step_allowance(None, Piece::First));
                let clock = JobClock {
                    attempt: run.attempt,
                    stage: Stage::Running,
                    started: now,
                    due,
                    recent_step: None,
                    last: None,
                    piece: Piece::First,
                };
                self.jobs.insert(run.job.clone(), clock);
            }
            Down::Resume { job, attempt } => self.runs_again(job, *attempt, now),
            Down::Cancel { job, attempt } => {
                let recent = self.job(job, *attempt).and_then(|clock| clock.recent_step);
                // Not the patience of a first piece: a new process is back sooner than that.
                let allowance = self.step_allowance(recent, Piece::Further);
                if let Some(clock) = self.job_mut(job, *attempt)
                    && clock.stage != Stage::Cancelling
                {
                    clock.stage = Stage::Cancelling;
                    clock.due = Some(now + allowance);
                }
            }
            Down::Load(load) => {
                let due = now + self.load_allowance(load.budget_bytes);
                self.loads
                    .insert(load.load.clone(), LoadClock { due, done_bytes: 0 });
            }
            // A pause counts from when it is true, at the end of the step under way.
            Down::Pause { .. }
            | Down::Welcome(_)
            | Down::Release { .. }
            | Down::Unload { .. }
            | Down::Memory { .. }
            | Down::Probe { .. }
            | Down::Ping { .. }
            | Down::Drain {}
            | Down::Exit {}
            | Down::Bye { .. } => {}
        }
    }

    /// Something came up.
    pub(super) fn heard(&mut self, message: &Up, now: Instant) {
        match message {
            Up::Progress(progress) => self.progressed(progress, now),
            Up::Result(result) => self.ended(&result.job, result.attempt),
            Up::Failed {
                job,
                attempt,
                failure: _,
            } => self.ended(job, *attempt),
            Up::Cancelled {
                job,
                attempt,
                at_step: _,
            } => self.ended(job, *attempt),
            Up::Paused {
                job,
                attempt,
                at_step: _,
            } => {
                if let Some(clock) = self.job_mut(job, *attempt)
                    && clock.stage == Stage::Running
                {
                    clock.stage = Stage::Paused;
                    clock.due = None;
                }
            }
            Up::Resumed {
                job,
                attempt,
                at_step: _,
            } => self.runs_again(job, *attempt, now),
            Up::LoadProgress {
                load,
                done_bytes,
                total_bytes,
            } => {
                let due = now + self.load_allowance(total_bytes.saturating_sub(*done_bytes));
                if let Some(clock) = self.loads.get_mut(load)
                    && *done_bytes > clock.done_bytes
                {
                    *clock = LoadClock {
                        due,
                        done_bytes: *done_bytes,
                    };
                }
            }
            Up::Loaded(loaded) => {
                self.loads.remove(&loaded.load);
            }
            Up::LoadFailed { load, failure: _ } => {
                self.loads.remove(load);
            }
            Up::Hello(_)
            | Up::Ready(_)
            | Up::Unloaded { .. }
            | Up::Released { .. }
            | Up::Preview { .. }
            | Up::Memory { .. }
            | Up::Probed { .. }
            | Up::Pong { .. }
            | Up::Beat(_)
            | Up::Log { .. }
            | Up::Fatal { .. }
            | Up::Bye {} => {}
        }
    }

    /// When to ask again.
    pub(super) fn next(&self) -> Option<Instant> {
        let jobs = self.jobs.values().filter_map(|clock| clock.due);
        jobs.chain(self.loads.values().map(|clock| clock.due)).min()
    }

    /// What is overdue at `now`. A job that is reported as [`Overdue::Step`] counts as asked to cancel from here on.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<Overdue> {
        let mut overdue = Vec::new();
        for (job, clock) in &mut self.jobs {
            if clock.due.is_none_or(|due| due > now) {
                continue;
            }
            match clock.stage {
                Stage::Running => {
                    clock.stage = Stage::Cancelling;
                    clock.due = Some(now + self.timing.term_grace);
                    overdue.push(Overdue::Step {
                        job: job.clone(),
                        attempt: clock.attempt,
                    });
                }
                Stage::Cancelling => overdue.push(Overdue::Cancel { job: job.clone() }),
                Stage::Paused => {}
            }
        }
        let loads = self.loads.iter().filter(|(_, clock)| clock.due <= now);
        overdue.extend(loads.map(|(load, _)| Overdue::Load { load: load.clone() }));
        overdue
    }

    fn progressed(&mut self, progress: &Progress, now: Instant) {
        let Progress {
            job,
            attempt,
            phase,
            done,
            total,
            step_ms,
        } = progress;
        let Some(clock) = self.job_mut(job, *attempt) else {
            return;
        };
        let real = match clock.last {
            None => true,
            Some((last_phase, last_done)) => last_phase != *phase || *done > last_done,
        };
        if !real {
            return;
        }
        clock.last = Some((*phase, *done));
        // No step took longer than the job: a wrong figure must not buy time.
        let longest = now.saturating_duration_since(clock.started).min(LONGEST_STEP);
        let step = Duration::try_from_secs_f64(step_ms / 1000.0)
            .unwrap_or_default()
            .min(longest);
        clock.recent_step = Some(step);
        clock.piece = if done < total {
            Piece::Further
        } else {
            Piece::First
        };
        let piece = clock.piece;
        self.recent_step = Some(step);
        let allowance = self.step_allowance(Some(step), piece);
        for (other, clock) in &mut self.jobs {
            if clock.stage != Stage::Running {
                continue;
            }
            let due = Some(now + allowance);
            // The others may wait for their turn behind this one: who runs is the worker's choice. Only when none of
            // them moves on, something hangs.
            clock.due = if other == job { due } else { clock.due.max(due) };
        }
    }

    fn runs_again(&mut self, job: &JobId, attempt: Attempt, now: Instant) {
        let (recent, piece) = self
            .job(job, attempt)
            .map_or((None, Piece::First), |clock| (clock.recent_step, clock.piece));
        let allowance = self.step_allowance(recent, piece);
        if let Some(clock) = self.job_mut(job, attempt)
            && clock.stage != Stage::Cancelling
        {
            clock.stage = Stage::Running;
            clock.due = Some(now + allowance);
        }
    }

    fn ended(&mut self, job: &JobId, attempt: Attempt) {
        if self.job(job, attempt).is_some() {
            self.jobs.remove(job);
        }
    }

    fn job(&self, job: &JobId, attempt: Attempt) -> Option<&JobClock> {
        self.jobs.get(job).filter(|clock| clock.attempt == attempt)
    }

    fn job_mut(&mut self, job: &JobId, attempt: Attempt) -> Option<&mut JobClock> {
        self.jobs.get_mut(job).filter(|clock| clock.attempt == attempt)
    }

    fn step_allowance(&self, recent: Option<Duration>, piece: Piece) -> Duration {
        let step = recent.or(self.recent_step).unwrap_or_default();
        let least = match piece {
            Piece::First => self.timing.step_first,
            Piece::Further => self.timing.step_least,
        };
        step.saturating_mul(self.timing.step_factor).max(least)
    }

    fn load_allowance(&self, bytes: u64) -> Duration {
        self.timing.load_least + Duration::from_secs(bytes / self.timing.load_bytes_per_s.max(1))
    }
}

#[cfg(test)]
mod tests;
