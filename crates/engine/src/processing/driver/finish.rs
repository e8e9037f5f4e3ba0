//! The end of a job: pictures encoded and stored off the worker's path, the end journaled, then told.

use std::collections::BTreeMap;
use std::sync::Arc;

use calotype_imaging::{DecodeLimits, ImageError, Rgb, decode_gray, decode_rgb};
use calotype_protocol::{Blob, JobId, Offload, RunResult};

use super::{Action, Driver, Internal, now_ms};
use crate::error::{Code, Error};
use crate::event::EventKind;
use crate::inference::{self, MaskArea, Plan, estimate};
use crate::postprocessing;
use crate::processing::{ImageView, JobResult, JobState};
use crate::store::{ArtifactHash, Artifacts, Finish, Write};

impl Driver {
    /// The pictures are here: the place is free for the next job while they are encoded.
    pub(super) fn result(&mut self, worker: &str, result: RunResult, blobs: Vec<Blob>) {
        let job = result.job.clone();
        self.measure(worker, &result);
        self.free_place(&job);
        let Some(live) = self.jobs.get_mut(&job) else {
            return;
        };
        live.wish = None;
        live.ending = true;
        live.state = JobState::Finishing;
        let mut timings_ms: BTreeMap<String, f64> = result
            .timings_ms
            .iter()
            .map(|(phase, ms)| (format!("{phase:?}").to_lowercase(), *ms))
            .collect();
        let ran_ms = live
            .started
            .map_or(0.0, |started| started.elapsed().as_secs_f64() * 1e3);
        let all_ms = live.accepted.elapsed().as_secs_f64() * 1e3;
        timings_ms.insert("queued".into(), (all_ms - ran_ms).max(0.0));
        let in_worker_ms: f64 = result.timings_ms.values().sum();
        // Claim, hand-over, and waiting for other jobs' steps in the same worker.
        timings_ms.insert("dispatch".into(), (ran_ms - in_worker_ms).max(0.0));
        let (store, artifacts, internal) =
            (self.store.clone(), self.artifacts.clone(), self.internal.clone());
        let (plan, worker) = (live.record.plan.clone(), worker.to_owned());
        let model_name = self
            .catalogue
            .model(plan.model.as_str())
            .map_or_else(|_| plan.model.to_string(), |model| model.id.to_string());
        self.tell(&job);
        tokio::spawn(async move {
            let began = std::time::Instant::now();
            let stored = store_images(artifacts, plan, model_name, &result, blobs).await;
            let (state, kept, error) = match stored {
                Ok(images) => {
                    timings_ms.insert("finish".into(), began.elapsed().as_secs_f64() * 1e3);
                    let kept = JobResult {
                        images,
                        timings_ms,
                        peak_bytes: result.peak_bytes,
                        batch_sizes: result.batch_sizes,
                        engine: result.engine,
                        plan: result.plan,
                        worker,
                    };
                    (JobState::Succeeded, Some(kept), None)
                }
                Err(error) => (JobState::Failed, None, Some(error)),
            };
            journal_end(&store, &internal, job, state, kept, error).await;
        });
    }

    /// Corrects the estimate by what the job took, where nothing else ran beside it.
    fn measure(&mut self, worker: &str, result: &RunResult) {
        let (Some(live), Some(post)) = (self.jobs.get(&result.job), self.posts.get(worker)) else {
            return;
        };
        if live.accompanied
            || post
                .resident
                .values()
                .any(|stay| stay.residency.offload != Offload::None)
        {
            return;
        }
        let base_bytes = if post.config.device.kind == "cpu" {
            post.idle_bytes
        } else {
            // An accelerator's peak is of what is allocated: the weights, and what the job took.
            Some(post.resident.values().map(|stay| stay.bytes).sum())
        };
        let Some(base_bytes) = base_bytes else {
            return;
        };
        let adapters = live.adapters_in(worker);
        let ledger = self.ledgers.get(&post.device);
        let lora_bytes = adapters.and_then(|owner| Some(ledger?.of(&owner))).unwrap_or(0);
        let took_bytes = result
            .peak_bytes
            .saturating_sub(base_bytes.saturating_add(lora_bytes));
        let shape = estimate::peak_key(&live.record.plan, &post.kind, live.slicing);
        if took_bytes > 0 && self.peaks.measured(&shape, took_bytes) {
            let bytes = took_bytes;
            let receipt = self.store.write(vec![Write::Peak { shape, bytes }]);
            tokio::spawn(async move {
                if let Err(error) = receipt.await {
                    tracing::error!("Failed to keep a measured peak: {error}");
                }
            });
        }
    }

    /// Ends a job that has no pictures. What it held is free from now on; the end is told when it is journaled.
    pub(super) fn end(&mut self, job: &JobId, state: JobState, error: Option<Error>) {
        self.free_place(job);
        let Some(live) = self.jobs.get_mut(job) else {
            return;
        };
        if live.ending {
            return;
        }
        live.ending = true;
        live.wish = live.wish.filter(|wish| *wish == Action::Cancel);
        let (store, internal, job) = (self.store.clone(), self.internal.clone(), job.clone());
        let error = error.map(|error| error.job(job.clone()));
        tokio::spawn(async move { journal_end(&store, &internal, job, state, None, error).await });
    }

    /// The end is journaled: tell everybody, and forget the job.
    pub(super) fn ended(
        &mut self,
        job: &JobId,
        state: JobState,
        result: Option<JobResult>,
        error: Option<Error>,
    ) {
        let Some(mut live) = self.jobs.remove(job) else {
            return;
        };
        live.state = state;
        live.record.state = state;
        live.record.result = result;
        live.record.error = error;
        live.record.finished_at_ms = Some(now_ms());
        live.progress = None;
        if state != JobState::Cancelled {
            live.reason = None;
        }
        let took = live.accepted.elapsed();
        self.gate.took(took.as_millis() as u64);
        metrics::counter!("calotype_jobs_ended_total", "state" => state.name()).increment(1);
        metrics::histogram!("calotype_job_seconds").record(took.as_secs_f64());
        let view = super::show::view_of(&live, None);
        for waiter in live.waiters.drain(..) {
            let _ = waiter.send(view.clone());
        }
        self.log.append(
            now_ms(),
            EventKind::Job {
                job: job.clone(),
                state,
                reason: live.reason,
                view: Some(Box::new(view)),
            },
        );
    }
}

async fn journal_end(
    store: &crate::store::Store,
    internal: &tokio::sync::mpsc::UnboundedSender<Internal>,
    job: JobId,
    state: JobState,
    result: Option<JobResult>,
    error: Option<Error>,
) {
    let finish = Finish {
        state,
        result: result.clone(),
        error: error.clone(),
        finished_at_ms: now_ms(),
    };
    let write = Write::Finish {
        job: job.clone(),
        finish,
    };
    let ended = match store.write(vec![write]).await {
        Ok(()) => Internal::Ended {
            job,
            state,
            result,
            error,
        },
        // The promise stands in the journal: after a restart the job runs again.
        Err(failure) => {
            tracing::error!(job.id = %job, "Failed to journal the end of job {job}: {failure}");
            let error = Some(Error::from(failure).job(job.clone()));
            Internal::Ended {
                job,
                state: JobState::Failed,
                result: None,
                error,
            }
        }
    };
    let _ = internal.send(ended);
}

async fn store_images(
    artifacts: Artifacts,
    plan: Plan,
    model_name: String,
    result: &RunResult,
    blobs: Vec<Blob>,
) -> Result<Vec<ImageView>, Error> {
    let wrong = |what: String| {
        Error::new(
            Code::WorkerFailed,
            format!("the worker's result is wrong: {what}"),
        )
    };
    if result.images.len() != plan.seeds.len() {
        return Err(wrong(format!(
            "{} images for {} seeds",
            result.images.len(),
            plan.seeds.len()
        )));
    }
    let (width, height) = plan.final_size();
    let plan = Arc::new(plan);
    let mut views = Vec::with_capacity(result.images.len());
    for (index, image) in result.images.iter().enumerate() {
        let shape = [height as usize, width as usize, 3];
        if image.shape != shape {
            return Err(wrong(format!(
                "an image of shape {:?}, not {shape:?}",
                image.shape
            )));
        }
        let pixels = image
            .of(&blobs)
            .map_err(|error| wrong(error.to_string()))?
            .to_vec();
        let (plan, artifacts) = (Arc::clone(&plan), artifacts.clone());
        let (model_name, engine) = (model_name.clone(), result.engine.clone());
        let stored = tokio::task::spawn_blocking(move || {
            let picture = Rgb::new(width, height, pixels)
                .map_err(|error| Error::new(Code::WorkerFailed, error.to_string()))?;
            let picture = whole(&plan, &artifacts, picture)?;
            let bytes = postprocessing::finish(&plan, &model_name, &engine, index, &picture)?;
            let media_type = crate::store::media_type(&bytes).to_owned();
            Ok::<_, Error>(ImageView {
                artifact: artifacts.put_now(&bytes)?,
                media_type,
                size_bytes: bytes.len() as u64,
                width: picture.width,
                height: picture.height,
                seed: plan.seeds.get(index).copied().unwrap_or_default(),
            })
        });
        views.push(
            stored
                .await
                .map_err(|error| Error::new(Code::Internal, error.to_string()))??,
        );
    }
    Ok(views)
}

/// The picture, pasted into the image that it is a part of where only a part was sampled.
fn whole(plan: &Plan, artifacts: &Artifacts, picture: Rgb) -> Result<Rgb, Error> {
    let (MaskArea::Masked, Some(image), Some(mask)) =
        (plan.mask_treatment.area, &plan.init_image, &plan.mask)
    else {
        return Ok(picture);
    };
    let file = |hash: &ArtifactHash| {
        let missing = || Error::new(Code::StoreFailed, format!("the input image {} is gone", hash.0));
        artifacts.read_now(hash)?.ok_or_else(missing)
    };
    let unreadable = |error: ImageError| Error::new(Code::ImageRefused, error.to_string());
    let limits = DecodeLimits::default();
    let image = decode_rgb(&file(image)?, &limits).map_err(unreadable)?;
    let mask = decode_gray(&file(mask)?, &limits).map_err(unreadable)?;
    Ok(inference::paste_back(plan, &image, &mask, &picture).unwrap_or(picture))
}
