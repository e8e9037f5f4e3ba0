//! From a request to a job: key, admission, resolving, store, dispatcher.

use std::sync::Arc;

use calotype_protocol::JobId;
use futures_util::future::try_join_all;
use tokio::sync::oneshot;

use super::{Engine, SubmitOptions, Submitted, Validation, going_down};
use crate::artifact::ArtifactHash;
use crate::clock::now_ms;
use crate::error::{Code, Error};
use crate::inference::{self, GenerateRequest, InputImage, Inputs, Plan, Planned, Warning};
use crate::processing::{AcceptedJob, Command, Demand, JobRecord, JobState, view_of};
use crate::store::{Inserted, NewJob, StoreHealth};

/// Jobs that are taken over in one message.
const TAKEN_OVER_TOGETHER: usize = 512;

impl Engine {
    /// Checks a request, puts it on disk, and only then answers. A known key is answered with its job whatever the queue
    /// holds and whatever would become of the request today.
    ///
    /// Not cancel-safe: a caller that may be dropped half way spawns it, else the job can be on disk with nobody told.
    pub async fn submit(&self, request: GenerateRequest, options: SubmitOptions) -> Result<Submitted, Error> {
        let key_digest = match &options.key {
            Some(key) => {
                let digest = digest_of(&request, &options)?;
                if let Some((record, known)) = self.inner.store.by_key(key).await? {
                    return self.known(record, known == digest, Vec::new()).await;
                }
                digest
            }
            None => String::new(),
        };
        self.inner.drain.refuse_new()?;
        self.refuse_while_the_store_fails()?;
        let ticket = self.inner.gate.enter(request.size_bytes())?;
        let Planned {
            mut plan,
            warnings,
            inputs,
        } = self.plan(request).await?;
        self.keep_inputs(&mut plan, inputs).await?;
        let demand = Demand::of(&plan, &self.inner.catalogue);
        let id = JobId(format!("job_{}", uuid::Uuid::now_v7().simple()));
        let created_at_ms = now_ms();
        let job = NewJob {
            id: id.clone(),
            class: options.class,
            priority: options.priority,
            key: options.key.clone(),
            key_digest,
            client: options.client.clone(),
            plan: plan.clone(),
            promise: options.promise,
            created_at_ms,
        };
        match self.inner.store.insert(job).await? {
            Inserted::New { sequence } => {
                let record = Arc::new(JobRecord {
                    id,
                    sequence,
                    state: JobState::Queued,
                    class: options.class,
                    priority: options.priority,
                    key: options.key,
                    client: options.client,
                    plan,
                    attempts: 0,
                    crashes: 0,
                    result: None,
                    error: None,
                    created_at_ms,
                    started_at_ms: None,
                    finished_at_ms: None,
                });
                // On disk: whatever happens from here on, the job is not lost. Its images are files now.
                let accepted = AcceptedJob {
                    record: Arc::clone(&record),
                    demand,
                    ticket: ticket.shrunk_to(plan_bytes(&record.plan)),
                };
                let _ = self.inner.commands.send(Command::Accepted(vec![accepted])).await;
                Ok(Submitted {
                    job: view_of(JobRecord::clone(&record), None),
                    warnings,
                    existing: false,
                })
            }
            Inserted::Existing(record) => self.known(*record, true, warnings).await,
            Inserted::KeyReused => Err(key_reused()),
        }
    }

    /// What cannot be kept is not promised: while the store fails its last word is the answer.
    fn refuse_while_the_store_fails(&self) -> Result<(), Error> {
        let (code, message) = match self.inner.store.health() {
            StoreHealth::Open => return Ok(()),
            StoreHealth::Full { message } => (Code::StoreFull, message),
            StoreHealth::Failed { message } => (Code::StoreFailed, message),
        };
        // Asked of a store that may work again by now: the next try is not far.
        Err(Error::new(code, message)
            .advice("free space in the data directory, or delete jobs; it is tried again by itself")
            .retry_after_ms(1000))
    }

    /// The job of a key that was used before.
    async fn known(
        &self,
        record: JobRecord,
        is_same_request: bool,
        warnings: Vec<Warning>,
    ) -> Result<Submitted, Error> {
        if !is_same_request {
            return Err(key_reused());
        }
        Ok(Submitted {
            job: self.job(&record.id).await?,
            warnings,
            existing: true,
        })
    }

    /// Jobs that an earlier run accepted and did not end.
    pub(super) async fn take_over(&self) -> Result<(), Error> {
        let left = self.inner.store.unfinished().await?;
        if left.is_empty() {
            return Ok(());
        }
        tracing::info!("Taking over {} jobs of an earlier run", left.len());
        let mut left = left.into_iter().peekable();
        while left.peek().is_some() {
            let jobs = left.by_ref().take(TAKEN_OVER_TOGETHER).map(|record| AcceptedJob {
                demand: Demand::of(&record.plan, &self.inner.catalogue),
                ticket: self.inner.gate.readmit(plan_bytes(&record.plan)),
                record: Arc::new(record),
            });
            let jobs = jobs.collect();
            self.tell(Command::Accepted(jobs)).await?;
        }
        Ok(())
    }

    /// The checks of `submit` without running, and where the dispatcher would run it now.
    pub async fn validate(&self, request: GenerateRequest) -> Result<Validation, Error> {
        let planned = self.plan(request).await?;
        let demand = Box::new(Demand::of(&planned.plan, &self.inner.catalogue)?);
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Forecast { demand, reply }).await?;
        let forecast = answer.await.map_err(|_| going_down())?;
        let refusal = forecast.refusal.map(|error| Warning {
            field: error.field.unwrap_or_else(|| "width".into()),
            message: format!("a job would end as {}: {}", error.code.wire(), error.message),
        });
        Ok(Validation {
            plan: planned.plan,
            warnings: planned.warnings.into_iter().chain(refusal).collect(),
            weights_bytes: forecast.weights_bytes,
            working_set_bytes: forecast.working_set_bytes,
            measured: forecast.is_measured,
            memory_plan: forecast.memory_plan,
            worker: forecast.worker,
            waits_for: forecast.waits_for.map(|reason| reason.to_string()),
        })
    }

    async fn plan(&self, request: GenerateRequest) -> Result<Planned, Error> {
        let abilities = Arc::clone(&self.inner.abilities.borrow());
        let catalogue = Arc::clone(&self.inner.catalogue);
        // 32 bits are plenty of pictures, and short enough to be read out.
        let random_seed = u64::from(uuid::Uuid::new_v4().as_fields().0);
        if request.init_image.is_none() && request.mask.is_none() && request.control.is_none() {
            return inference::plan(&request, &catalogue, &abilities, random_seed);
        }
        tokio::task::spawn_blocking(move || inference::plan(&request, &catalogue, &abilities, random_seed))
            .await
            .map_err(|error| Error::new(Code::Internal, error.to_string()))?
    }

    /// Stores every image of a request, at the same time, and names them in its plan.
    async fn keep_inputs(&self, plan: &mut Plan, inputs: Inputs) -> Result<(), Error> {
        let Inputs {
            init_image,
            mask,
            control,
        } = inputs;
        let named = [(init_image, "init_image"), (mask, "mask")].into_iter();
        let control = control.into_iter().map(|image| (Some(image), "control"));
        let kept = named
            .chain(control)
            .map(|(image, field)| self.keep_input(image, field));
        let mut kept = try_join_all(kept).await?.into_iter();
        plan.init_image = kept.next().flatten();
        plan.mask = kept.next().flatten();
        for (unit, image) in plan.control.iter_mut().zip(kept) {
            unit.image = image;
        }
        Ok(())
    }

    async fn keep_input(
        &self,
        image: Option<InputImage>,
        field: &str,
    ) -> Result<Option<ArtifactHash>, Error> {
        match image {
            None => Ok(None),
            Some(InputImage::Bytes(bytes)) => {
                if bytes.len() as u64 > self.inner.max_image_bytes {
                    return Err(
                        Error::new(Code::TooLarge, "the image file is larger than 64 MiB").field(field)
                    );
                }
                Ok(Some(self.inner.artifacts.put(bytes).await?))
            }
            Some(InputImage::Artifact(hash)) => match self.inner.artifacts.renew(&hash).await? {
                Some(bytes) => {
                    inference::check_image(&bytes, field)?;
                    Ok(Some(hash))
                }
                None => {
                    Err(Error::new(Code::NotFound, format!("there is no artifact {}", hash.0)).field(field))
                }
            },
        }
    }
}

/// Digest of a request that came with a key: the same key with another digest is a mistake of the client's.
fn digest_of(request: &GenerateRequest, options: &SubmitOptions) -> Result<String, Error> {
    let internal = |error: serde_json::Error| Error::new(Code::Internal, error.to_string());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&request.canonical_json().map_err(internal)?);
    hasher.update(&serde_json::to_vec(&(options.class, options.priority)).map_err(internal)?);
    Ok(hasher.finalize().to_hex().to_string())
}

fn key_reused() -> Error {
    Error::new(
        Code::KeyReused,
        "this Idempotency-Key came before with another request",
    )
    .field("Idempotency-Key")
    .advice("use a new key for a new request")
}

/// What a waiting job holds of memory and disk, about.
fn plan_bytes(plan: &Plan) -> u64 {
    (plan.prompt.len() + plan.negative_prompt.len()) as u64
}
