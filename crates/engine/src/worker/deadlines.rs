//! By when each job and each load must have moved on. Pure: the time and the messages are handed in.
//!
//! A worker does one thing at a time, so no job's clock ticks while a load moves, and a load's clock begins when the
//! step before it has ended: whatever hangs is found by its own deadline, and nothing else is blamed for it. Beats tell
//! since when the step under way lasts, and so whether it is older than a load that was sent.

mod allowance;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use calotype_protocol::{Attempt, Down, JobId, LoadId, Phase, Progress, Up};

use super::config::Timing;
use allowance::{Piece, load_allowance, step_allowance};

/// A longer step is not believed.
const LONGEST_STEP: Duration = Duration::from_secs(3600);

/// Something that did not move in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Overdue {
    /// A job made no progress: ask it to stop.
    Step {
        /// The job.
        job: JobId,
        /// The attempt to cancel.
        attempt: Attempt,
    },
    /// A job did not heed `cancel`: the process must go.
    Cancel {
        /// The job.
        job: JobId,
    },
    /// A load made no progress: the process must go.
    Load {
        /// The load.
        load: LoadId,
    },
}

/// The clocks of everything that a worker was asked for.
#[derive(Debug)]
pub(super) struct Deadlines {
    timing: Timing,
    jobs: BTreeMap<JobId, JobClock>,
    loads: BTreeMap<LoadId, LoadClock>,
    /// Since when the jobs' clocks stand still because a load moves; none while no load is under way. What was due
    /// before that moment is overdue all the same.
    jobs_stand_since: Option<Instant>,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    Paused,
    /// `cancel` went down; progress counts no longer.
    Cancelling,
}

#[derive(Debug)]
struct LoadClock {
    sent: Instant,
    due: Instant,
    done_bytes: u64,
    /// Bytes that are left of it, which say how long it may take without progress.
    remaining_bytes: u64,
}

impl Deadlines {
    /// No clocks yet.
    pub(super) fn new(timing: Timing) -> Self {
        Self {
            timing,
            jobs: BTreeMap::new(),
            loads: BTreeMap::new(),
            jobs_stand_since: None,
            recent_step: None,
        }
    }

    /// Notes a message that was sent to the worker.
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
                let clock = LoadClock {
                    sent: now,
                    due: now + self.load_allowance(load.budget_bytes),
                    done_bytes: 0,
                    remaining_bytes: load.budget_bytes,
                };
                self.loads.insert(load.load.clone(), clock);
                self.jobs_stand_since.get_or_insert(now);
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

    /// Notes a message from the worker.
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
                let remaining_bytes = total_bytes.saturating_sub(*done_bytes);
                let due = now + self.load_allowance(remaining_bytes);
                if let Some(clock) = self.loads.get_mut(load)
                    && *done_bytes > clock.done_bytes
                {
                    clock.done_bytes = *done_bytes;
                    clock.remaining_bytes = remaining_bytes;
                    clock.due = due;
                    self.loads_wait_their_turn(now, Some(load));
                }
            }
            Up::Loaded(loaded) => self.load_ended(&loaded.load, now),
            Up::LoadFailed { load, failure: _ } => self.load_ended(load, now),
            Up::Beat(beat) => self.step_lasts(Duration::from_millis(beat.oldest_step_ms), now),
            Up::Hello(_)
            | Up::Ready(_)
            | Up::Unloaded { .. }
            | Up::Released { .. }
            | Up::Preview { .. }
            | Up::Memory { .. }
            | Up::Probed { .. }
            | Up::Pong { .. }
            | Up::Log { .. }
            | Up::Fatal { .. }
            | Up::Bye {} => {}
        }
    }

    /// The earliest moment at which something can be overdue.
    pub(super) fn next(&self) -> Option<Instant> {
        let jobs = self.jobs.values().filter_map(|clock| clock.due);
        let jobs = jobs.filter(|due| self.jobs_stand_since.is_none_or(|since| *due <= since));
        jobs.chain(self.loads.values().map(|clock| clock.due)).min()
    }

    /// What is overdue at `now`. A job that is reported as [`Overdue::Step`] counts as asked to cancel from here on.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<Overdue> {
        let mut overdue = Vec::new();
        let jobs_now = self.jobs_stand_since.map_or(now, |since| since.min(now));
        for (job, clock) in &mut self.jobs {
            if clock.due.is_none_or(|due| due > jobs_now) {
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
        // Until now the worker was with its jobs, or it loads beside them.
        self.jobs_stand_since = self.jobs_stand_since.map(|_| now);
    }

    /// The step under way has lasted so long when the worker wrote it, which was no later than `now`. A load that was sent
    /// after its begin has not begun: until now the jobs' clocks ticked, and the load's did not.
    fn step_lasts(&mut self, lasts: Duration, now: Instant) {
        let steps = self.jobs.values().any(|clock| clock.stage != Stage::Paused);
        if !steps || self.jobs_stand_since.is_none() {
            return;
        }
        let waits =
            |clock: &LoadClock| clock.done_bytes == 0 && now.saturating_duration_since(clock.sent) < lasts;
        if self.loads.values().all(waits) {
            self.jobs_stand_since = Some(now);
            self.loads_wait_their_turn(now, None);
        }
    }

    /// Each load but the one that moves has its whole time from `now` on: behind another load, or behind a step, it
    /// cannot move yet.
    fn loads_wait_their_turn(&mut self, now: Instant, moves: Option<&LoadId>) {
        let timing = self.timing;
        for (load, clock) in &mut self.loads {
            if moves == Some(load) {
                continue;
            }
            clock.due = clock
                .due
                .max(now + load_allowance(&timing, clock.remaining_bytes));
        }
    }

    /// A load is over. After the last one the jobs' clocks go on, each with all the time that it had at first.
    fn load_ended(&mut self, load: &LoadId, now: Instant) {
        if self.loads.remove(load).is_none() {
            return;
        }
        self.loads_wait_their_turn(now, None);
        if !self.loads.is_empty() {
            return;
        }
        let Some(since) = self.jobs_stand_since.take() else {
            return;
        };
        let stood = now.saturating_duration_since(since);
        let (timing, recent_step) = (self.timing, self.recent_step);
        for clock in self.jobs.values_mut() {
            let least = match clock.stage {
                Stage::Running => step_allowance(&timing, clock.recent_step.or(recent_step), clock.piece),
                // `cancel` could not be read before now.
                Stage::Cancelling => timing.term_grace,
                Stage::Paused => continue,
            };
            clock.due = clock.due.map(|due| (due + stood).max(now + least));
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
        step_allowance(&self.timing, recent.or(self.recent_step), piece)
    }

    fn load_allowance(&self, bytes: u64) -> Duration {
        load_allowance(&self.timing, bytes)
    }
}

#[cfg(test)]
mod tests;
