//! From the policy's decisions to claims, loads and evictions.

use std::sync::Arc;
use std::time::Instant;

use calotype_protocol::{
    Attempt, Blob, Down, Dtype, Frame, JobId, Load, LoadId, LoadPlan, ModelId, Run, StepId, Work,
};

use super::{Action, Driver, Internal, Moving, Post, PostState, now_ms};
use crate::error::{Code, Error};
use crate::inference::{self, InputFiles, Plan};
use crate::memory::memory_plan::{MemoryFeatures, Precision, Residency, Slicing};
use crate::memory::{Ledger, Owner};
use crate::processing::JobState;
use crate::processing::policy::{self, Decision, Refusal, Resident, Room, Slot, Standing, Waiting};
use crate::store::{ArtifactHash, Artifacts, Held, Write};

/// Waiting jobs that one decision looks at; those behind them wait for the next.
const LOOKED_AT: usize = 64;

impl Driver {
    /// Asks the policy, and does what it says.
    pub(super) fn decide(&mut self) {
        let mut waiting: Vec<Waiting> = self
            .jobs
            .values()
            .filter(|live| matches!(live.state, JobState::Queued | JobState::Loading) && !live.ending)
            .map(|live| Waiting {
                job: live.record.id.clone(),
                class: live.record.class,
                priority: live.record.priority,
                sequence: live.record.sequence,
                models: Arc::clone(&live.models),
                adapters: live.adapters.clone(),
                needs: Arc::clone(&live.needs),
                working_sets: Arc::clone(&live.working_sets),
                alone: live.alone,
                refused_by: live.refused_by.clone(),
            })
            .collect();
        metrics::gauge!("calotype_jobs_waiting").set(waiting.len() as f64);
        if waiting.is_empty() {
            return;
        }
        policy::order(&mut waiting);
        waiting.truncate(LOOKED_AT);
        let slots: Vec<Slot> = self.posts.keys().filter_map(|name| self.slot(name)).collect();
        let rooms = self
            .ledgers
            .iter()
            .map(|(device, ledger)| (device.clone(), room(ledger)));
        for decision in policy::plan(&waiting, &slots, &rooms.collect()) {
            match decision {
                Decision::Run {
                    job,
                    worker,
                    slicing,
                    lora_bytes,
                } => self.claim(&job, &worker, slicing, lora_bytes),
                Decision::Load {
                    job,
                    model,
                    worker,
                    residency,
                    weights_bytes,
                } => self.load(&job, &model, &worker, residency, weights_bytes),
                Decision::Evict { model, worker } => self.evict(&model, &worker),
                Decision::Wake { worker, job } => self.wake(&worker, &job),
                Decision::Wait { job, reason } => self.wait(&job, reason),
                Decision::Refuse { job, why } => {
                    let error = self.refused(why);
                    self.end(&job, JobState::Failed, Some(error));
                }
            }
        }
    }

    fn refused(&self, why: Refusal) -> Error {
        match why {
            Refusal::TooLarge {
                need_bytes,
                budget_bytes,
            } => Error::new(
                Code::DoesNotFit,
                format!("the job needs {need_bytes} bytes, its device has {budget_bytes}"),
            )
            .advice("ask for a smaller size or fewer images, or raise the memory share"),
            Refusal::Unusable { worker, model } => {
                let known = self.unusable.get(&(worker, model.clone())).cloned();
                known.unwrap_or_else(|| Error::new(Code::ModelUnusable, format!("{model} cannot be loaded")))
            }
            Refusal::NotServed { lacks } => inference::not_served(&lacks),
        }
    }

    /// Starts a worker that was asleep.
    fn wake(&mut self, worker: &str, job: &JobId) {
        let Some(post) = self.posts.get_mut(worker) else {
            return;
        };
        if post.handle.is_none() {
            tracing::info!(job.id = %job, "Starting {worker} for job {job}");
            post.handle = Some(crate::worker::start(post.config.clone(), self.events.clone()));
            post.state = PostState::Starting;
        }
    }

    fn slot(&self, name: &str) -> Option<Slot> {
        let post = self.posts.get(name)?;
        let in_use = self.models_in_use(post);
        let own = post
            .ready
            .as_ref()
            .map_or(1, |ready| ready.capabilities.max_batch.max(1));
        let most = if self.max_concurrency == 0 {
            own
        } else {
            own.min(self.max_concurrency)
        };
        let (standing, not_ready) = match (post.state, &post.last_exit) {
            (PostState::Ready, _) => (Standing::Ready, String::new()),
            (PostState::Asleep, _) => (Standing::Asleep, "it is not started".to_owned()),
            (PostState::Starting, None) => (Standing::Starting, "it is starting".to_owned()),
            (PostState::Starting | PostState::Gone, Some(exit)) => {
                // One that was ready and died is back in seconds; one that dies at its start may never be.
                let standing = if post.deaths == 1 {
                    Standing::Starting
                } else {
                    Standing::Broken
                };
                (standing, format!("it starts again after {exit}"))
            }
            (PostState::Gone, None) => (Standing::Broken, "it is gone".to_owned()),
        };
        let plans = post.capabilities.as_ref().map(|can| &can.plans);
        Some(Slot {
            worker: name.to_owned(),
            device: post.device.clone(),
            kind: Arc::clone(&post.kind),
            precision: Precision::of(&post.config.device.kind),
            ways: plans.map_or_else(MemoryFeatures::default, |plans| MemoryFeatures::of(plans)),
            rank: post.rank,
            standing,
            not_ready,
            capabilities: post.capabilities.clone(),
            busy: post.jobs.len(),
            most: most as usize,
            taken_alone: post
                .jobs
                .iter()
                .filter_map(|job| self.jobs.get(job))
                .any(|live| live.alone),
            moving: post.moving.is_some(),
            resident: post
                .resident
                .iter()
                .map(|(model, stay)| Resident {
                    model: model.clone(),
                    bytes: stay.bytes,
                    residency: stay.residency,
                    in_use: in_use.contains(model),
                    last_use: stay.last_use,
                })
                .collect(),
            adapter_sets: self.adapter_sets(post),
            unusable: self
                .unusable
                .keys()
                .filter(|(worker, _)| worker == name)
                .map(|(_, model)| model.clone())
                .collect(),
        })
    }

    /// The sets of LoRAs that jobs in a worker use.
    fn adapter_sets(&self, post: &Post) -> Vec<Arc<str>> {
        let inside = post
            .jobs
            .iter()
            .filter_map(|job| self.jobs.get(job)?.adapters.as_ref());
        inside.map(|need| Arc::clone(&need.set)).collect()
    }

    fn wait(&mut self, job: &JobId, reason: String) {
        let Some(live) = self.jobs.get_mut(job) else {
            return;
        };
        if live.state == JobState::Queued && live.reason.as_ref() != Some(&reason) {
            live.reason = Some(reason);
        }
    }

    /// Claims a job for a worker: lease, then journal, and only then the line down.
    fn claim(&mut self, job: &JobId, worker: &str, slicing: Slicing, lora_bytes: u64) {
        let (Some(live), Some(post)) = (self.jobs.get_mut(job), self.posts.get_mut(worker)) else {
            return;
        };
        let Some(ledger) = self.ledgers.get_mut(&post.device) else {
            return;
        };
        let working_bytes = live.working_sets.of(&post.kind, slicing);
        if let Err(no_room) = ledger.reserve(Owner::WorkingSet(job.clone()), working_bytes) {
            live.reason = Some(no_room.to_string());
            return;
        }
        if let Some(owner) = live.adapters_in(worker).filter(|_| lora_bytes > 0)
            && let Err(no_room) = ledger.reserve(owner, lora_bytes)
        {
            ledger.release(&Owner::WorkingSet(job.clone()));
            live.reason = Some(no_room.to_string());
            return;
        }
        self.uses += 1;
        for need in live.models.iter() {
            if let Some(stay) = post.resident.get_mut(&need.model) {
                stay.last_use = self.uses;
            }
        }
        post.jobs.insert(job.clone());
        let together = (post.jobs.len() > 1).then(|| post.jobs.clone());
        live.place = Some((worker.to_owned(), post.incarnation));
        live.slicing = slicing;
        live.sent = false;
        live.accompanied = false;
        live.state = JobState::Running;
        live.reason = None;
        live.record.attempts += 1;
        live.record.started_at_ms = Some(now_ms());
        live.started = Some(Instant::now());
        let (artifacts, catalogue) = (self.artifacts.clone(), Arc::clone(&self.catalogue));
        let (job, attempt, plan) = (job.clone(), live.record.attempts, live.record.plan.clone());
        let claimed = self.store.write(vec![Write::Claim {
            job: job.clone(),
            attempt,
            worker: worker.to_owned(),
            at_ms: now_ms(),
        }]);
        let internal = self.internal.clone();
        for one in together.into_iter().flatten() {
            if let Some(live) = self.jobs.get_mut(&one) {
                live.accompanied = true;
            }
        }
        self.tell(&job);
        tokio::spawn(async move {
            let work = async {
                claimed.await?;
                let files = read_inputs(&artifacts, &plan).await?;
                if plan.inputs().next().is_none() {
                    return inference::work(&plan, &catalogue, &files);
                }
                tokio::task::spawn_blocking(move || inference::work(&plan, &catalogue, &files))
                    .await
                    .map_err(|error| Error::new(Code::Internal, error.to_string()))?
            }
            .await;
            let _ = internal.send(Internal::Prepared { job, attempt, work });
        });
    }

    /// The claim is durable: send the work down, unless the world has changed meanwhile.
    pub(super) fn prepared(&mut self, job: &JobId, attempt: u32, work: Result<(Work, Vec<Blob>), Error>) {
        let Some(live) = self.jobs.get_mut(job) else {
            return;
        };
        if live.record.attempts != attempt || live.ending || live.sent {
            return;
        }
        let same_process = live.place.as_ref().is_some_and(|(worker, incarnation)| {
            self.posts
                .get(worker)
                .is_some_and(|post| post.state == PostState::Ready && post.incarnation == *incarnation)
        });
        match (live.wish, work) {
            (Some(Action::Cancel), _) => self.end(job, JobState::Cancelled, None),
            (_, Err(error)) => self.end(job, JobState::Failed, Some(error)),
            (Some(Action::Pause), Ok(_)) => self.put_back(job),
            (None | Some(Action::Resume), Ok(_)) if !same_process => self.put_back(job),
            (None | Some(Action::Resume), Ok((work, blobs))) => {
                live.wish = None;
                live.sent = true;
                live.state = JobState::Running;
                let run = Run {
                    job: job.clone(),
                    attempt: Attempt(attempt),
                    step: StepId("generate".into()),
                    priority: live.record.priority,
                    deadline_ms: None,
                    vae: live.slicing.vae,
                    work,
                };
                if let Some((worker, incarnation)) = &live.place
                    && let Some(handle) = self.posts.get(worker).and_then(|post| post.handle.as_ref())
                {
                    handle.send_to(
                        *incarnation,
                        Frame {
                            message: Down::Run(Box::new(run)),
                            blobs,
                        },
                    );
                }
            }
        }
    }

    /// Takes a job out of its worker's hands and puts it back into the queue, at its old place.
    pub(super) fn put_back(&mut self, job: &JobId) {
        self.free_place(job);
        let Some(live) = self.jobs.get_mut(job) else {
            return;
        };
        live.sent = false;
        live.progress = None;
        let paused = live.wish == Some(Action::Pause) || live.state == JobState::Paused;
        live.wish = None;
        live.state = if paused {
            JobState::Paused
        } else {
            JobState::Queued
        };
        let (job, crashes) = (job.clone(), live.record.crashes);
        let held = if paused { Held::Yes } else { Held::No };
        let receipt = self.store.write(vec![Write::Requeue {
            job: job.clone(),
            crashes,
            held,
        }]);
        self.tell(&job);
        tokio::spawn(async move {
            if let Err(error) = receipt.await {
                tracing::error!(job.id = %job, "Failed to journal that a job waits again: {error}");
            }
        });
    }

    /// Gives back a job's place and working set. Called when the worker said that the job is out, or is dead and reaped.
    pub(super) fn free_place(&mut self, job: &JobId) {
        let Some((worker, _)) = self.jobs.get_mut(job).and_then(|live| live.place.take()) else {
            return;
        };
        if let Some(post) = self.posts.get_mut(&worker) {
            post.jobs.remove(job);
        }
        let Some(post) = self.posts.get(&worker) else {
            return;
        };
        let still = self.adapter_sets(post);
        let adapters = self.jobs.get(job).and_then(|live| live.adapters_in(&worker));
        if let Some(ledger) = self.ledgers.get_mut(&post.device) {
            ledger.release(&Owner::WorkingSet(job.clone()));
            if let Some(owner) = adapters
                && !matches!(&owner, Owner::Adapters { set, .. } if still.contains(set))
            {
                ledger.release(&owner);
            }
        }
    }

    fn load(&mut self, job: &JobId, model: &ModelId, worker: &str, residency: Residency, weights_bytes: u64) {
        let spec = match self.catalogue.loadable(model.as_str()) {
            Ok(record) => match &record.problem {
                None => self.catalogue.spec(&record),
                Some(problem) => {
                    let error = Error::new(Code::ModelUnusable, format!("{model}: {problem}"));
                    self.end(job, JobState::Failed, Some(error));
                    return;
                }
            },
            Err(error) => {
                self.end(job, JobState::Failed, Some(error));
                return;
            }
        };
        let (Some(live), Some(post)) = (self.jobs.get_mut(job), self.posts.get_mut(worker)) else {
            return;
        };
        let Some(ledger) = self.ledgers.get_mut(&post.device) else {
            return;
        };
        let owner = Owner::Weights {
            worker: worker.to_owned(),
            model: model.clone(),
        };
        if let Err(no_room) = ledger.reserve(owner, weights_bytes) {
            live.reason = Some(no_room.to_string());
            return;
        }
        self.loads += 1;
        let load = LoadId(format!("load_{}", self.loads));
        post.moving = Some(Moving {
            load: load.clone(),
            model: model.clone(),
            residency,
            began: Instant::now(),
            waiting: Some(job.clone()),
            segments: Vec::new(),
            read: Vec::new(),
            sourced: None,
        });
        let budget_bytes = weights_bytes.max(ledger.free_bytes());
        let dtype = match Precision::of(&post.config.device.kind) {
            Precision::Single => Dtype::F32,
            Precision::Half => Dtype::F16,
        };
        live.state = JobState::Loading;
        live.reason = Some(format!("{worker} loads {model}"));
        self.send_load(
            worker,
            Load {
                load,
                model: spec,
                dtype,
                budget_bytes,
                plan: LoadPlan {
                    offload: residency.offload,
                    attention_slicing: residency.attention_slicing,
                    compile: self.compile,
                },
            },
        );
        self.tell(job);
    }

    fn evict(&mut self, model: &ModelId, worker: &str) {
        let Some(post) = self.posts.get_mut(worker) else {
            return;
        };
        let Some(handle) = &post.handle else { return };
        self.loads += 1;
        let unload = LoadId(format!("unload_{}", self.loads));
        tracing::info!("Evicting `{model}` from {worker} to make room");
        post.moving = Some(Moving {
            load: unload.clone(),
            model: model.clone(),
            residency: Residency::default(),
            began: Instant::now(),
            waiting: None,
            segments: Vec::new(),
            read: Vec::new(),
            sourced: None,
        });
        handle.send(
            Down::Unload {
                unload,
                model: Some(model.clone()),
            }
            .into(),
        );
    }
}

fn room(ledger: &Ledger) -> Room {
    Room {
        free_bytes: ledger.free_bytes(),
        budget_bytes: ledger.budget_bytes(),
    }
}

/// The files of a plan's images.
async fn read_inputs(artifacts: &Artifacts, plan: &Plan) -> Result<InputFiles, Error> {
    let read = async |hash: &ArtifactHash| {
        let missing = || Error::new(Code::StoreFailed, format!("the input image {} is gone", hash.0));
        artifacts.read(hash).await?.ok_or_else(missing)
    };
    let mut files = InputFiles::default();
    if let Some(hash) = &plan.init_image {
        files.init_image = Some(read(hash).await?);
    }
    if let Some(hash) = &plan.mask {
        files.mask = Some(read(hash).await?);
    }
    for hash in plan.control.iter().filter_map(|unit| unit.image.as_ref()) {
        files.control.push(read(hash).await?);
    }
    Ok(files)
}
