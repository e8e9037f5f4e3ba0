//! What is resident: models loaded, dropped to make room, and what workers report of both.

use calotype_protocol::{Down, Failure, LoadId, Loaded, ModelId, Outcome};

use super::Core;
use super::message::{Effect, Now};
use super::run::error_of;
use crate::error::{Code, Error};
use crate::memory::memory_plan::Residency;
use crate::memory::{Owner, memory_plan};
use crate::processing::job::state::Move;
use crate::processing::job::timeline::Spent;
use crate::processing::job::{JobState, StepKey};
use crate::processing::schedule::{Head, MoveKind, PendingMove, ResidentModel, WorkerId};

/// An unload must give back so many per cent of what its model was leased; what is missing stays leased until the process
/// is replaced.
const RETURNED_PERCENT: u64 = 80;

impl Core {
    pub(super) fn load(
        &mut self,
        head: &Head,
        id: WorkerId,
        model: ModelId,
        residency: Residency,
        weights_bytes: u64,
        now: Now,
    ) {
        let Some(worker) = self.fleet.worker(id) else {
            return;
        };
        let (name, incarnation) = (worker.spec.name.to_string(), worker.incarnation);
        let expected_ms = self.estimates.load_ms(&worker.spec.kind, weights_bytes);
        let owner = Owner::Weights {
            worker: name.clone(),
            model: model.clone(),
        };
        let Some(ledger) = self.fleet.ledger_mut(id) else {
            return;
        };
        if let Err(no_room) = ledger.reserve(owner, weights_bytes) {
            tracing::error!("A load of `{model}` into {name} found no room: {no_room}");
            let error = Error::new(Code::Internal, format!("the memory plan did not hold: {no_room}"));
            self.end(head.step, JobState::Failed, Some(error), now);
            return;
        }
        let budget_bytes = weights_bytes.max(ledger.free_bytes());
        self.loads += 1;
        let load = LoadId(format!("load_{}", self.loads));
        if let Some(worker) = self.fleet.worker_mut(id) {
            worker.begin_move(PendingMove {
                id: load.clone(),
                model: model.clone(),
                kind: MoveKind::Load {
                    residency,
                    weights_bytes,
                    wanted_by: head.step,
                    expected_ms,
                },
                began: now.since_start,
            });
        }
        if let Some(step) = self.steps.get_mut(head.step) {
            step.loads = true;
            step.note = Some(format!("{name} loads {model}"));
            step.timeline.switch(Spent::Load, now.since_start);
        }
        self.effects.push(Effect::Load {
            worker: id,
            incarnation,
            load,
            model,
            residency,
            budget_bytes,
        });
        self.tell_state(head.step);
    }

    /// Drops an idle model. Paused runs that need it are withdrawn from the worker first.
    pub(super) fn evict(&mut self, id: WorkerId, model: &ModelId, now: Now) {
        let Some(worker) = self.fleet.worker(id) else {
            return;
        };
        if worker.pending.is_some() {
            // A worker moves one model at a time; the next is decided on when this one has ended.
            return;
        }
        let parked: Vec<StepKey> = worker.parked_on(model).collect();
        if !parked.is_empty() {
            for key in parked {
                if self.steps.advance(key, Move::Withdraw).is_ok() {
                    self.note(
                        key,
                        "its model makes room for others; it begins anew in its turn".to_owned(),
                    );
                    self.send_about(key, |job, attempt| Down::Cancel { job, attempt });
                    self.tell_state(key);
                }
            }
            return;
        }
        let incarnation = worker.incarnation;
        tracing::info!("Evicting `{model}` from {} to make room", worker.spec.name);
        self.loads += 1;
        let unload = LoadId(format!("unload_{}", self.loads));
        if let Some(worker) = self.fleet.worker_mut(id) {
            worker.begin_move(PendingMove {
                id: unload.clone(),
                model: model.clone(),
                kind: MoveKind::Unload,
                began: now.since_start,
            });
        }
        let message = Down::Unload {
            unload,
            model: Some(model.clone()),
        };
        self.effects.push(Effect::Send {
            worker: id,
            incarnation,
            frame: message.into(),
        });
    }

    pub(super) fn recycle(&mut self, id: WorkerId, reason: &str) {
        if let Some(worker) = self.fleet.worker_mut(id)
            && !worker.recycling
        {
            worker.recycling = true;
            let reason = reason.to_owned();
            self.effects.push(Effect::RecycleWorker { worker: id, reason });
        }
    }

    pub(super) fn loaded(&mut self, id: WorkerId, incarnation: u64, loaded: &Loaded, now: Now) {
        let Some(worker) = self
            .fleet
            .worker_mut(id)
            .filter(|worker| worker.incarnation == incarnation)
        else {
            return;
        };
        let Some(pending) = worker.end_move(&loaded.load) else {
            return;
        };
        let MoveKind::Load {
            residency,
            weights_bytes,
            wanted_by,
            ..
        } = pending.kind
        else {
            return;
        };
        // Of what waits in host memory only a part lies on the device at a time.
        let bytes = memory_plan::on_device_bytes(loaded.resident_bytes, residency.offload);
        self.uses += 1;
        let resident = ResidentModel {
            bytes,
            residency,
            last_use: self.uses,
            was_used: false,
        };
        worker.hold(loaded.model.clone(), resident);
        let (name, kind) = (worker.spec.name.to_string(), worker.spec.kind.clone());
        let took = now.since_start.saturating_sub(pending.began);
        let phases: Vec<String> = loaded
            .phases_ms
            .iter()
            .map(|(phase, ms)| format!("{phase} {ms:.0} ms"))
            .collect();
        tracing::info!(
            "Loaded `{}` into {name}: {bytes} bytes in {} ms ({})",
            loaded.model,
            took.as_millis(),
            phases.join(", ")
        );
        metrics::histogram!("calotype_load_seconds").record(took.as_secs_f64());
        // By the bytes that a load is predicted from, whatever the model turned out to take.
        self.estimates
            .loaded(&kind, weights_bytes, took.as_secs_f64() * 1e3);
        if let Some(ledger) = self.fleet.ledger_mut(id) {
            let owner = Owner::Weights {
                worker: name,
                model: loaded.model.clone(),
            };
            ledger.correct(&owner, bytes);
        }
        self.waits_again(wanted_by, now);
        self.dirty = true;
    }

    pub(super) fn load_failed(
        &mut self,
        id: WorkerId,
        load: &LoadId,
        failure: &Failure,
        from_memory: bool,
        now: Now,
    ) {
        let Some(worker) = self.fleet.worker_mut(id) else {
            return;
        };
        let Some(pending) = worker.end_move(load) else {
            return;
        };
        let name = worker.spec.name.to_string();
        self.release_weights(id, &name, &pending.model);
        let error = error_of(failure);
        tracing::error!("Failed to load `{}` into {name}: {error}", pending.model);
        self.dirty = true;
        if let MoveKind::Load { wanted_by, .. } = pending.kind {
            self.waits_again(wanted_by, now);
        }
        let is_lack = failure.outcome == Outcome::OutOfMemory;
        if is_lack && !self.is_elsewhere(id, &pending.model) {
            // Memory may come back for others; these have asked in vain.
            self.end_waiting_for(&pending.model, &error, now);
        } else if is_lack {
            // The copy is not tried again before memory has come back here.
            if let Some(worker) = self.fleet.worker_mut(id) {
                worker.unusable.insert(pending.model, (error, now.since_start));
            }
        } else if !from_memory || failure.outcome != Outcome::ModelLoad {
            // Files do not mend themselves. What waits for the model goes to another worker, or ends with this reason.
            if let Some(worker) = self.fleet.worker_mut(id) {
                worker.unusable.insert(pending.model, (error, now.since_start));
            }
        }
    }

    pub(super) fn unloaded(&mut self, id: WorkerId, unload: &LoadId, freed_bytes: u64) {
        let Some(worker) = self.fleet.worker_mut(id) else {
            return;
        };
        let Some(pending) = worker.end_move(unload) else {
            return;
        };
        let model = pending.model;
        worker.drop_model(&model);
        worker
            .unusable
            .retain(|_, (error, _)| error.code != Code::OutOfMemory);
        let name = worker.spec.name.to_string();
        tracing::info!("Dropped `{model}` from {name}: {freed_bytes} bytes came back");
        let leased_bytes = self.release_weights(id, &name, &model);
        if freed_bytes < leased_bytes.saturating_mul(RETURNED_PERCENT) / 100 {
            // A lease is given back when the memory is. The rest stays leased until the process is replaced, which
            // happens once somebody needs it and nothing runs in the worker.
            let kept_bytes = leased_bytes - freed_bytes;
            tracing::warn!("{name} keeps {kept_bytes} bytes after dropping `{model}`");
            let mut unreturned_bytes = 0;
            if let Some(worker) = self.fleet.worker_mut(id) {
                worker.unreturned_bytes = worker.unreturned_bytes.saturating_add(kept_bytes);
                unreturned_bytes = worker.unreturned_bytes;
            }
            if let Some(ledger) = self.fleet.ledger_mut(id) {
                ledger.hold(Owner::Unreturned { worker: name }, unreturned_bytes);
            }
        }
        self.dirty = true;
    }

    /// Files of models have changed: they may be loadable now.
    pub(super) fn models_changed(&mut self, models: &[ModelId]) {
        for worker in &mut self.fleet.workers {
            worker.unusable.retain(|model, _| !models.contains(model));
        }
        self.dirty = true;
    }

    /// What was being moved when the process died.
    pub(super) fn move_was_lost(&mut self, pending: PendingMove, now: Now) {
        if let MoveKind::Load { wanted_by, .. } = pending.kind {
            self.waits_again(wanted_by, now);
        }
    }

    /// Gives back what a model's weights were leased; how much that was.
    fn release_weights(&mut self, id: WorkerId, name: &str, model: &ModelId) -> u64 {
        let owner = Owner::Weights {
            worker: name.to_owned(),
            model: model.clone(),
        };
        self.fleet
            .ledger_mut(id)
            .map_or(0, |ledger| ledger.release(&owner))
    }

    /// A step is no longer waiting for a load.
    fn waits_again(&mut self, key: StepKey, now: Now) {
        let Some(step) = self.steps.get_mut(key).filter(|step| step.loads) else {
            return;
        };
        step.loads = false;
        step.note = None;
        if step.state().is_waiting() {
            step.timeline.switch(Spent::Queued, now.since_start);
            self.tell_state(key);
        }
    }

    /// Whether another worker has a model, or is loading it.
    fn is_elsewhere(&self, id: WorkerId, model: &ModelId) -> bool {
        self.fleet.ids().zip(&self.fleet.workers).any(|(other, worker)| {
            let loads = |pending: &PendingMove| {
                pending.model == *model && matches!(pending.kind, MoveKind::Load { .. })
            };
            other != id && (worker.resident.contains_key(model) || worker.pending.as_ref().is_some_and(loads))
        })
    }

    /// Ends the steps that wait for a model for which there is no memory.
    fn end_waiting_for(&mut self, model: &ModelId, error: &Error, now: Now) {
        let demands = &self.steps.demands;
        let needs_it = |step: &super::step::Step| {
            let demand = demands.get(step.demand);
            demand.is_some_and(|demand| demand.models.iter().any(|need| need.model == *model))
        };
        let waiting = self.steps.iter().filter(|step| step.state().is_waiting());
        let mut in_vain: Vec<StepKey> = waiting
            .filter(|step| needs_it(step))
            .map(|step| step.key)
            .collect();
        in_vain.sort_unstable();
        for key in in_vain {
            self.end(key, JobState::Failed, Some(error.clone()), now);
        }
    }
}
