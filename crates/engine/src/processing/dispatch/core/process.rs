//! Worker processes that come, beat and go.

use std::sync::Arc;

use calotype_protocol::{Beat, Hello, Ready};

use super::Core;
use super::message::{Effect, Now};
use crate::error::{Code, Error};
use crate::event::{EventKind, WorkerChange};
use crate::memory::Owner;
use crate::memory::memory_plan::MemoryFeatures;
use crate::processing::job::state::{StepState, Wish};
use crate::processing::job::{JobState, StepKey};
use crate::processing::schedule::{Head, ProcessState, WorkerId};
use crate::worker::{ExitCause, ExitReport};

/// A step that ran in so many workers that crashed is not tried again.
const CRASHES_MOST: u32 = 2;

impl Core {
    pub(super) fn wake(&mut self, head: &Head, id: WorkerId) {
        if let Some(worker) = self.fleet.worker_mut(id)
            && worker.process == ProcessState::Asleep
        {
            worker.process = ProcessState::Starting;
            let name = Arc::clone(&worker.spec.name);
            if let Some(step) = self.steps.get(head.step) {
                tracing::info!(job.id = %step.job, "Starting {name} for job {}", step.job);
            }
            self.effects.push(Effect::StartWorker { worker: id });
        }
    }

    pub(super) fn worker_starting(&mut self, id: WorkerId, incarnation: u64, pid: u32) {
        if let Some(worker) = self.fleet.worker_mut(id) {
            worker.incarnation = incarnation;
            worker.process = ProcessState::Starting;
            worker.pid = Some(pid);
            self.tell_worker(id, WorkerChange::Starting, None);
        }
    }

    pub(super) fn worker_ready(&mut self, id: WorkerId, hello: Box<Hello>, ready: Box<Ready>) {
        let Some(worker) = self.fleet.worker_mut(id) else {
            return;
        };
        worker.process = ProcessState::Ready;
        worker.deaths = 0;
        worker.recycling = false;
        worker.hello = Some(hello);
        let is_news = worker.capabilities.as_deref() != Some(&ready.capabilities);
        if is_news {
            worker.capabilities = Some(Arc::new(ready.capabilities.clone()));
            worker.memory_features = MemoryFeatures::of(&ready.capabilities.plans);
        }
        worker.ready = Some(ready);
        if is_news {
            self.fleet.generation += 1;
        }
        self.dirty = true;
        self.tell_worker(id, WorkerChange::Ready, None);
        self.effects.push(Effect::AbilitiesChanged);
    }

    pub(super) fn beat(&mut self, id: WorkerId, beat: &Beat, now: Now) {
        if let Some(worker) = self.fleet.worker_mut(id) {
            worker.used_bytes = beat.used_bytes;
            worker.last_beat = Some(now.since_start);
            if worker.runs.is_empty() && beat.running.is_empty() && worker.pending.is_none() {
                worker.idle_bytes = Some(beat.used_bytes);
            }
        }
    }

    /// The process is dead and reaped: its memory is back, its runs are looked at one by one.
    pub(super) fn worker_gone(&mut self, id: WorkerId, report: &ExitReport, now: Now) {
        let cause = format!("{} ({})", report.cause, report.status);
        let Some(worker) = self.fleet.worker_mut(id) else {
            return;
        };
        let name = worker.spec.name.to_string();
        worker.process = ProcessState::Gone;
        worker.pid = None;
        worker.recycling = false;
        worker
            .unusable
            .retain(|_, (error, _)| error.code != Code::OutOfMemory);
        worker.idle_bytes = None;
        worker.used_bytes = 0;
        worker.unreturned_bytes = 0;
        worker.last_beat = None;
        worker.last_exit = Some(cause.clone());
        if !matches!(report.cause, ExitCause::Recycled { .. } | ExitCause::Stopped) {
            worker.deaths += 1;
        }
        let pending = worker.lose_models();
        let mut inside: Vec<StepKey> = worker.runs.keys().chain(worker.parked.keys()).copied().collect();
        inside.sort_unstable();
        metrics::counter!("calotype_worker_exits_total").increment(1);
        tracing::warn!(worker = name, "Worker {name} is gone: {cause}");
        self.tell_worker(id, WorkerChange::Gone, Some(cause.clone()));
        if let Some(pending) = pending {
            self.move_was_lost(pending, now);
        }
        for key in inside {
            self.worker_died_with(key, report, &cause, now);
        }
        // Working sets went with their steps; what is left is the worker's own.
        if let Some(ledger) = self.fleet.ledger_mut(id) {
            let is_its_own = |owner: &Owner| match owner {
                Owner::Weights { worker, .. }
                | Owner::Adapters { worker, .. }
                | Owner::Unreturned { worker } => *worker == name,
                Owner::WorkingSet(_) => false,
            };
            let owners: Vec<Owner> = ledger
                .leases()
                .map(|(owner, _)| owner.clone())
                .filter(is_its_own)
                .collect();
            for owner in owners {
                ledger.release(&owner);
            }
        }
        self.dirty = true;
    }

    /// What becomes of a step whose worker died.
    fn worker_died_with(&mut self, key: StepKey, report: &ExitReport, cause: &str, now: Now) {
        let Some(step) = self.steps.get_mut(key) else {
            return;
        };
        let state = step.state();
        let is_cancelled = matches!(
            state,
            StepState::Cancelling | StepState::Claiming(Wish::Cancel) | StepState::Preparing(Wish::Cancel)
        );
        if is_cancelled {
            self.end(key, JobState::Cancelled, None, now);
            return;
        }
        // Only what was at work in the process can have killed it: not a claim on its way, nor a paused run.
        let was_at_work = state.is_in_worker() && state.holds_place();
        let is_late = matches!(&report.cause, ExitCause::StepDeadline { .. });
        let is_suspect = (was_at_work || is_late) && report.cause.may_be_of(&step.job);
        if is_suspect {
            step.crashes += 1;
        }
        if step.crashes >= CRASHES_MOST {
            let tail = report.stderr_tail.trim();
            let mut error = Error::new(
                Code::Quarantined,
                format!("two workers died with this job, the last one by {cause}"),
            )
            .advice("it is not tried again; submit it anew once the cause is known");
            if !tail.is_empty() {
                error.message.push_str(&format!("; its last words: {tail}"));
            }
            self.end(key, JobState::Failed, Some(error), now);
            return;
        }
        // One whose claim is still being journaled is put back when it is prepared.
        if matches!(state, StepState::Claiming(_) | StepState::Preparing(_)) {
            return;
        }
        if is_suspect {
            // Alone next: a second crash identifies it.
            self.leave_worker(key, now);
            self.steps
                .change_demand(key, &mut self.fleet, |demand| demand.exclusive = true);
        }
        let note = was_at_work.then(|| format!("tried again after its worker died: {cause}"));
        self.put_back(key, note, now);
    }

    fn tell_worker(&mut self, id: WorkerId, state: WorkerChange, reason: Option<String>) {
        if let Some(worker) = self.fleet.worker(id) {
            let kind = EventKind::Worker {
                worker: worker.spec.name.to_string(),
                state,
                reason,
            };
            self.effects.push(Effect::Tell(kind));
        }
    }
}
