//! The core's effects, carried out in the order in which they were decided.

use std::collections::VecDeque;
use std::sync::Arc;

use calotype_imaging::{Format, Rgb, encode};
use calotype_protocol::{Blob, BlobRef, Dtype, Failure, JobId, Load, LoadId, LoadPlan, ModelId, Outcome};

use super::Driver;
use crate::error::{Code, Error};
use crate::memory::memory_plan::{Precision, Residency};
use crate::processing::dispatch::core::{Effect, Input, Now, Outputs, StoreFault, StoreOutputsError};
use crate::processing::dispatch::message::Internal;
use crate::processing::dispatch::{changes, outputs, prepare};
use crate::processing::job::{RunId, StepKey};
use crate::processing::schedule::WorkerId;
use crate::store::StoreHealth;

impl Driver {
    /// Lets the core decide, and does what it wants, in this order.
    pub(super) fn settle(&mut self, now: Now) {
        let mut effects: VecDeque<Effect> = self.core.settle(now).into();
        while let Some(effect) = effects.pop_front() {
            self.carry_out(effect, now);
            if effects.is_empty() {
                // An effect that could not be carried out is told to the core at once.
                effects.extend(self.core.settle(now));
            }
        }
        for (worker, line) in self.weights.tend() {
            let handle = self.core.fleet().find(&worker).and_then(|id| self.handle(id));
            if let Some(handle) = handle {
                handle.send(line.into());
            }
        }
        for line in self.weights.due_lines() {
            if let Some(handle) = self.handle(line.worker) {
                handle.send_to(line.incarnation, line.frame);
            }
        }
        for model in self.core.unusable_models().cloned().collect::<Vec<_>>() {
            self.watch(model);
        }
        metrics::gauge!("calotype_jobs_waiting").set(self.core.waiting() as f64);
    }

    pub(super) fn carry_out(&mut self, effect: Effect, now: Now) {
        match effect {
            Effect::Journal { writes, then } => {
                // Enqueued here, in the order of decisions; only the waiting is elsewhere.
                let receipt = self.store.write(writes);
                self.writes_in_flight += 1;
                let internal = self.internal.clone();
                tokio::spawn(async move {
                    let outcome = receipt.await.map_err(StoreFault::from);
                    let _ = internal.send(Internal::Journaled { then, outcome });
                });
            }
            Effect::Prepare { run, job } => self.prepare(run, job),
            Effect::Send {
                worker,
                incarnation,
                frame,
            } => {
                if let Some(handle) = self.handle(worker) {
                    handle.send_to(incarnation, frame);
                }
            }
            Effect::Load {
                worker,
                incarnation,
                load,
                model,
                residency,
                budget_bytes,
            } => self.load((worker, incarnation), load, &model, residency, budget_bytes, now),
            Effect::StoreOutputs { step, outputs } => self.store_outputs(step, outputs),
            Effect::StartWorker { worker } => {
                if let Some(process) = self.workers.get_mut(worker.0 as usize)
                    && process.handle.is_none()
                {
                    let config = process.config.clone();
                    process.handle = Some(crate::worker::start(config, self.events.clone()));
                }
            }
            Effect::RecycleWorker { worker, reason } => {
                if let Some(handle) = self.handle(worker) {
                    handle.recycle(reason);
                }
            }
            Effect::AbilitiesChanged => self.tell_abilities(),
            Effect::ProbeStore => {
                let (store, internal) = (self.store.clone(), self.internal.clone());
                tokio::spawn(async move {
                    let outcome = match store.probe().await {
                        StoreHealth::Open => Ok(()),
                        StoreHealth::Full { message } => Err((Code::StoreFull, message)),
                        StoreHealth::Failed { message } => Err((Code::StoreFailed, message)),
                    };
                    let outcome = outcome.map_err(|(code, message)| StoreFault {
                        error: Error::new(code, message),
                    });
                    let _ = internal.send(Internal::StoreProbed(outcome));
                });
            }
            Effect::Tell(kind) => self.log.append(now.wall_ms, kind),
            Effect::Preview {
                job,
                done,
                image,
                blobs,
            } => self.preview(job, done, image, blobs),
            Effect::Answer { token, outcome } => {
                if let Some(reply) = self.controls.remove(&token) {
                    let _ = reply.send(Some(outcome));
                }
            }
            Effect::Ended(ended) => self.ended(ended, now),
            Effect::Drained => self.is_drained = true,
        }
    }

    /// Builds a claimed step's work elsewhere.
    pub(super) fn prepare(&mut self, run: RunId, job: JobId) {
        let recent = || {
            let mut recent = self.recent.iter();
            recent
                .find(|(key, _)| *key == run.step)
                .map(|(_, record)| Arc::clone(record))
        };
        let record = self.claimed.get(&run.step).cloned().or_else(recent);
        let (store, artifacts) = (self.store.clone(), self.artifacts.clone());
        let (catalogue, internal) = (Arc::clone(&self.catalogue), self.internal.clone());
        tokio::spawn(async move {
            let (record, work) = prepare::prepare(job, record, store, artifacts, catalogue).await;
            let _ = internal.send(Internal::Prepared { run, record, work });
        });
    }

    pub(super) fn load(
        &mut self,
        (worker, incarnation): (WorkerId, u64),
        load: LoadId,
        model: &ModelId,
        residency: Residency,
        budget_bytes: u64,
        now: Now,
    ) {
        let spec = self
            .catalogue
            .loadable(model.as_str())
            .and_then(|record| match &record.problem {
                None => Ok(self.catalogue.spec(&record)),
                Some(problem) => Err(Error::new(Code::ModelUnusable, format!("{model}: {problem}"))),
            });
        let spec = match spec {
            Ok(spec) => spec,
            Err(error) => {
                let failure = Failure {
                    outcome: Outcome::ModelLoad,
                    message: error.message,
                    detail: None,
                };
                let input = Input::LoadFailed {
                    worker,
                    load,
                    failure,
                    from_memory: false,
                };
                self.core.take(input, now);
                return;
            }
        };
        let Some(process) = self.workers.get(worker.0 as usize) else {
            return;
        };
        let dtype = match Precision::of(&process.config.device.kind) {
            Precision::Single => Dtype::F32,
            Precision::Half => Dtype::F16,
        };
        let can = self
            .core
            .fleet()
            .worker(worker)
            .and_then(|worker| worker.capabilities.as_ref());
        let takes_segments = process.takes_segments && can.is_some_and(|can| can.segments);
        let message = Load {
            load,
            model: spec,
            dtype,
            budget_bytes,
            plan: LoadPlan {
                offload: residency.offload,
                attention_slicing: residency.attention_slicing,
                compile: self.compile,
            },
        };
        let name = self.worker_name(worker).to_owned();
        if let Some(line) = self
            .weights
            .load(worker, &name, incarnation, message, takes_segments)
            && let Some(handle) = self.handle(worker)
        {
            handle.send_to(line.incarnation, line.frame);
        }
    }

    pub(super) fn store_outputs(&mut self, step: StepKey, outputs: Box<Outputs>) {
        let Some(record) = self.claimed.get(&step).cloned() else {
            let error = Error::new(Code::Internal, "the record of a running job is gone");
            let outputs = Err(StoreOutputsError::Wrong(error));
            let _ = self.internal.send(Internal::Stored { step, outputs });
            return;
        };
        let model_name = self
            .catalogue
            .model(record.plan.model.as_str())
            .map_or_else(|_| record.plan.model.to_string(), |model| model.id.to_string());
        let (artifacts, internal) = (self.artifacts.clone(), self.internal.clone());
        let cache = self.artifact_cache.clone();
        tokio::task::spawn_blocking(move || {
            let outputs = outputs::store(&artifacts, &cache, &record.plan, &model_name, outputs)
                .map_err(|failure| *failure);
            let _ = internal.send(Internal::Stored { step, outputs });
        });
    }

    pub(super) fn preview(&self, job: JobId, done: u32, image: BlobRef, blobs: Vec<Blob>) {
        let internal = self.internal.clone();
        tokio::task::spawn_blocking(move || {
            if let Some(png) = encoded_preview(&image, &blobs) {
                let _ = internal.send(Internal::Preview { job, done, png });
            }
        });
    }

    /// A model that could not be loaded is tried again when its files change.
    pub(super) fn watch(&mut self, model: ModelId) {
        if self.watched.contains(&model) {
            return;
        }
        let spec = self
            .catalogue
            .loadable(model.as_str())
            .map(|record| self.catalogue.spec(&record));
        if let Ok(spec) = spec {
            let files = spec.components.into_values().map(Into::into).collect();
            changes::watch(model.clone(), files, self.internal.clone());
        }
        self.watched.insert(model);
    }
}

fn encoded_preview(image: &BlobRef, blobs: &[Blob]) -> Option<Vec<u8>> {
    let [height, width, 3] = image.shape[..] else {
        return None;
    };
    let pixels = image.of(blobs).ok()?.to_vec();
    let picture = Rgb::new(u32::try_from(width).ok()?, u32::try_from(height).ok()?, pixels).ok()?;
    encode(&picture, Format::Png, 0, None).ok()
}
