//! The facade: starts the domains in their order, and passes questions to the one who knows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use calotype_protocol::JobId;
use tokio::sync::{mpsc, oneshot, watch};

use crate::artifact_cache::ArtifactCache;
use crate::config::Config;
use crate::device::{self, Sensors};
use crate::drain::Drain;
use crate::error::{Code, Error};
use crate::event_log::EventLog;
use crate::health::{self, HealthFacts, JournalProbe, ModelCounts, Probe};
use crate::inference::{self, Abilities, GenerateRequest, InputImage, Planned};
use crate::memory::Peaks;
use crate::model::{Catalogue, ModelRecord};
use crate::processing::{
    Action, Command, Driver, Gate, JobRecord, JobState, JobView, Parts, Snapshot, view_of_record,
};
use crate::setting;
use crate::store::{ArtifactHash, Artifacts, Inserted, JobFilter, NewJob, Store};
use crate::subscription::Subscription;
use crate::view::{
    Artifact, DeviceView, Health, JobPage, JobQuery, MemoryView, SubmitOptions, Submitted, Validation,
};

/// Event numbers taken from the journal at each start: more than one run can use, and 2^53 holds millions of starts.
const EVENT_BLOCK: u64 = 1 << 30;
/// Artifacts that no job refers to are kept for so long, for clients that still fetch them.
const SWEEP_AGE: Duration = Duration::from_secs(3600);
/// Largest page of jobs.
const PAGE_MOST: usize = 500;
const PAGE_DEFAULT: usize = 50;
/// Encoding is tried again when somebody asks for the health after this.
const ENCODING_EVERY: Duration = Duration::from_secs(10);
/// The journal likewise: a disk that fills is told within a second.
const JOURNAL_EVERY: Duration = Duration::from_secs(1);
/// How long an answer on the health waits for what is tried.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);

/// The orchestrator. Cheap to clone; all clones are the same engine.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    artifacts: Artifacts,
    catalogue: Arc<Catalogue>,
    log: Arc<EventLog>,
    gate: Arc<Gate>,
    abilities: watch::Receiver<Arc<Abilities>>,
    commands: mpsc::Sender<Command>,
    sensors: Sensors,
    artifact_cache: ArtifactCache,
    encoding: Probe,
    journal: Probe,
    drain: Drain,
    started: Instant,
    max_image_bytes: u64,
}

impl Engine {
    /// Opens the journal, scans the models, starts a worker for each device that is served, and takes over the jobs
    /// that an earlier run left.
    pub async fn start(config: Config) -> Result<Engine, Error> {
        std::fs::create_dir_all(&config.data_dir).map_err(|error| {
            Error::new(
                Code::StoreFailed,
                format!("failed to make {}: {error}", config.data_dir.display()),
            )
            .advice("choose another folder with --data-dir")
        })?;
        let store = Store::open(&config.data_dir)?;
        let artifacts = Artifacts::open(&config.data_dir.join("artifacts"))?;
        tokio::spawn(sweep(store.clone(), artifacts.clone()));
        let dirs = config.model_dirs.clone();
        let catalogue = tokio::task::spawn_blocking(move || Catalogue::scan(&dirs))
            .await
            .map_err(|error| Error::new(Code::Internal, error.to_string()))?;
        let catalogue = Arc::new(catalogue);
        let log = Arc::new(EventLog::new(store.reserve_event_ids(EVENT_BLOCK).await?.max(1)));
        let gate = Arc::new(Gate::new(config.queue_max_jobs, config.queue_max_bytes));
        let (events_in, events) = mpsc::channel(1024);
        let (commands, commands_out) = mpsc::channel(1024);
        let declared = config.declared.clone();
        let inventory = tokio::task::spawn_blocking(move || device::inventory(&declared))
            .await
            .map_err(|error| Error::new(Code::Internal, error.to_string()))?;
        let sensors = Sensors::start(&inventory);
        let posts = setting::posts(&config, &inventory);
        let (abilities_in, abilities) =
            watch::channel(Arc::new(Abilities::of(Vec::new(), !posts.is_empty())));
        let cache = setting::weight_cache(&config, &inventory, &posts).await;
        let devices = setting::ledgers(&config, inventory, cache.budget_bytes());
        let parts = Parts {
            peaks: Peaks::new(store.peaks().await?),
            store: store.clone(),
            artifacts: artifacts.clone(),
            catalogue: Arc::clone(&catalogue),
            log: Arc::clone(&log),
            abilities: abilities_in,
            max_concurrency: config.max_concurrency,
            compile: config.compile,
            gate: Arc::clone(&gate),
            cache,
            devices,
            posts,
            events: events_in,
        };
        tokio::spawn(Driver::run(parts, commands_out, events));
        let inner = Inner {
            store,
            artifacts,
            catalogue,
            log,
            gate,
            abilities,
            commands,
            sensors,
            artifact_cache: ArtifactCache::default(),
            encoding: Probe::new(ENCODING_EVERY, PROBE_PATIENCE),
            journal: Probe::new(JOURNAL_EVERY, PROBE_PATIENCE),
            drain: Drain::default(),
            started: Instant::now(),
            max_image_bytes: 64 << 20,
        };
        let engine = Engine {
            inner: Arc::new(inner),
        };
        engine.take_over().await?;
        let encoding = engine.inner.encoding.clone();
        tokio::spawn(async move { encoding.tried(health::encodes).await });
        Ok(engine)
    }

    /// Jobs that an earlier run accepted and did not end.
    async fn take_over(&self) -> Result<(), Error> {
        let left = self.inner.store.unfinished().await?;
        if !left.is_empty() {
            tracing::info!("Taking over {} jobs of an earlier run", left.len());
        }
        for record in left {
            let ticket = self.inner.gate.readmit(plan_bytes(&record));
            self.tell(Command::Accepted {
                record: Box::new(record),
                ticket,
                reply: None,
            })
            .await?;
        }
        Ok(())
    }

    /// Checks a request, puts it on disk, and only then answers.
    pub async fn submit(&self, request: GenerateRequest, options: SubmitOptions) -> Result<Submitted, Error> {
        self.inner.drain.refuse_new()?;
        let internal = |error: serde_json::Error| Error::new(Code::Internal, error.to_string());
        let said = request.said().map_err(internal)?;
        let how = serde_json::to_vec(&(options.class, options.priority)).map_err(internal)?;
        let ticket = self.inner.gate.enter(said.len() as u64)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&said);
        hasher.update(&how);
        let key_digest = hasher.finalize().to_hex().to_string();
        let Planned {
            mut plan,
            warnings,
            inputs,
        } = self.plan(request).await?;
        plan.init_image = self.keep_input(inputs.init_image, "init_image").await?;
        plan.mask = self.keep_input(inputs.mask, "mask").await?;
        for (unit, image) in plan.control.iter_mut().zip(inputs.control) {
            unit.image = self.keep_input(Some(image), "control").await?;
        }
        let id = JobId(format!("job_{}", uuid::Uuid::now_v7().simple()));
        let created_at_ms = crate::processing::now_ms();
        let job = NewJob {
            id: id.clone(),
            class: options.class,
            priority: options.priority,
            key: options.key.clone(),
            key_digest,
            plan: plan.clone(),
            promise: options.promise,
            created_at_ms,
        };
        match self.inner.store.insert(job).await? {
            Inserted::New { sequence } => {
                let record = JobRecord {
                    id: id.clone(),
                    sequence,
                    state: JobState::Queued,
                    class: options.class,
                    priority: options.priority,
                    key: options.key,
                    plan,
                    attempts: 0,
                    crashes: 0,
                    result: None,
                    error: None,
                    created_at_ms,
                    started_at_ms: None,
                    finished_at_ms: None,
                };
                let (reply, answer) = oneshot::channel();
                // On disk: whatever happens from here on, the job is not lost.
                let accepted = Command::Accepted {
                    record: Box::new(record.clone()),
                    ticket,
                    reply: Some(reply),
                };
                let _ = self.inner.commands.send(accepted).await;
                let job = answer.await.unwrap_or_else(|_| view_of_record(record));
                Ok(Submitted {
                    job,
                    warnings,
                    existing: false,
                })
            }
            Inserted::Existing(record) => {
                let job = self.job(&record.id).await?;
                Ok(Submitted {
                    job,
                    warnings,
                    existing: true,
                })
            }
            Inserted::KeyReused => Err(Error::new(
                Code::KeyReused,
                "this Idempotency-Key came before with another request",
            )
            .field("Idempotency-Key")
            .advice("use a new key for a new request")),
        }
    }

    /// The checks of `submit` without running.
    pub async fn validate(&self, request: GenerateRequest) -> Result<Validation, Error> {
        let planned = self.plan(request).await?;
        let peaks = Peaks::new(self.inner.store.peaks().await?);
        let now = self.snapshot().await?;
        let (plan, catalogue) = (&planned.plan, &self.inner.catalogue);
        let found = inference::forecast(plan, catalogue, &peaks, &now.devices, &now.memory)?;
        Ok(Validation {
            plan: planned.plan,
            warnings: planned.warnings.into_iter().chain(found.warning).collect(),
            weights_bytes: found.weights_bytes,
            working_set_bytes: found.working_set_bytes,
            measured: found.measured,
            memory_plan: found.memory_plan,
            worker: found.worker,
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

    /// A job as it stands.
    pub async fn job(&self, id: &JobId) -> Result<JobView, Error> {
        let (reply, answer) = oneshot::channel();
        let _ = self
            .inner
            .commands
            .send(Command::View {
                job: id.clone(),
                reply,
            })
            .await;
        match answer.await {
            Ok(Some(view)) => Ok(view),
            Ok(None) | Err(_) => self.kept(id).await,
        }
    }

    /// A job that is not live.
    async fn kept(&self, id: &JobId) -> Result<JobView, Error> {
        match self.inner.store.job(id).await? {
            Some(record) => Ok(view_of_record(record)),
            None => Err(Error::new(Code::NotFound, format!("there is no job {id}"))
                .advice("GET /api/jobs lists them")),
        }
    }

    /// A page of jobs, newest first.
    pub async fn jobs(&self, query: JobQuery) -> Result<JobPage, Error> {
        let limit = match query.limit {
            0 => PAGE_DEFAULT,
            limit => limit.min(PAGE_MOST),
        };
        let filter = JobFilter {
            state: query.state,
            before_sequence: query.cursor,
            limit,
        };
        let records = self.inner.store.jobs(filter).await?;
        let cursor = (records.len() == limit)
            .then(|| records.last().map(|record| record.sequence))
            .flatten();
        let mut jobs = Vec::with_capacity(records.len());
        for record in records {
            jobs.push(if record.state.is_final() {
                view_of_record(record)
            } else {
                self.job(&record.id).await?
            });
        }
        Ok(JobPage { jobs, cursor })
    }

    /// Ends a job; it is `cancelled` once its state says so.
    pub async fn cancel(&self, id: &JobId) -> Result<JobView, Error> {
        self.control(id, Action::Cancel).await
    }

    /// Holds a job at its next step; it is `paused` once its state says so.
    pub async fn pause(&self, id: &JobId) -> Result<JobView, Error> {
        self.control(id, Action::Pause).await
    }

    /// Lets a paused job go on.
    pub async fn resume(&self, id: &JobId) -> Result<JobView, Error> {
        self.control(id, Action::Resume).await
    }

    async fn control(&self, id: &JobId, action: Action) -> Result<JobView, Error> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Control {
            job: id.clone(),
            action,
            reply,
        })
        .await?;
        match answer.await {
            Ok(Some(answer)) => answer,
            Ok(None) | Err(_) => {
                let view = self.kept(id).await?;
                if action == Action::Cancel && view.state == JobState::Cancelled {
                    return Ok(view);
                }
                Err(Error::new(
                    Code::Conflict,
                    format!("the job is already {}", view.state.name()),
                )
                .job(id.clone()))
            }
        }
    }

    /// Forgets a job that has ended.
    pub async fn delete(&self, id: &JobId) -> Result<(), Error> {
        let view = self.job(id).await?;
        if !view.state.is_final() {
            return Err(
                Error::new(Code::Conflict, format!("the job is {}", view.state.name()))
                    .advice("cancel it first")
                    .job(id.clone()),
            );
        }
        self.inner.store.delete(id).await?;
        Ok(())
    }

    /// Waits for a job's end.
    pub async fn wait(&self, id: &JobId) -> Result<JobView, Error> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Wait {
            job: id.clone(),
            reply,
        })
        .await?;
        match answer.await {
            Ok(view) => Ok(view),
            Err(_) => {
                let view = self.kept(id).await?;
                if view.state.is_final() {
                    Ok(view)
                } else {
                    Err(going_down())
                }
            }
        }
    }

    /// Events of one job, or of all, after the number `after`; from now on where there is none. A job's stream begins
    /// with the job as it stands.
    pub fn events(&self, job: Option<JobId>, after: Option<u64>) -> Subscription {
        Subscription::new(self.clone(), Arc::clone(&self.inner.log), job, after)
    }

    /// A stored file, from memory where it was stored or read a short while ago.
    pub async fn artifact(&self, hash: &str) -> Result<Artifact, Error> {
        let missing = || Error::new(Code::NotFound, format!("there is no artifact {hash}"));
        let hash = ArtifactHash::parse(hash).ok_or_else(missing)?;
        let bytes = match self.inner.artifact_cache.get(&hash) {
            Some(bytes) => bytes,
            None => {
                let bytes = self.inner.artifacts.read(&hash).await?.ok_or_else(missing)?;
                let bytes = Bytes::from(bytes);
                self.inner.artifact_cache.put(hash, bytes.clone());
                bytes
            }
        };
        let media_type = crate::store::media_type(&bytes);
        Ok(Artifact { bytes, media_type })
    }

    /// Devices with their workers, and figures that are at most two seconds old where their drivers answer.
    pub async fn devices(&self) -> Result<Vec<DeviceView>, Error> {
        let mut devices = self.snapshot().await?.devices;
        let mut readings = self.inner.sensors.read_all().await;
        for view in &mut devices {
            if let Some(reading) = readings.remove(&view.device.id) {
                view.device = view.device.clone().with(reading);
            }
        }
        Ok(devices)
    }

    /// Everything in the catalogue.
    pub async fn models(&self) -> Vec<ModelRecord> {
        self.inner.catalogue.models().cloned().collect()
    }

    /// One of them, whatever its kind.
    pub async fn model(&self, id: &str) -> Result<ModelRecord, Error> {
        self.inner.catalogue.find(id).cloned()
    }

    /// Ledgers, beside what the drivers call free.
    pub async fn memory(&self) -> Result<Vec<MemoryView>, Error> {
        let memory = self.snapshot().await?.memory;
        Ok(self.read_free(memory).await)
    }

    async fn read_free(&self, mut memory: Vec<MemoryView>) -> Vec<MemoryView> {
        let mut readings = self.inner.sensors.read_all().await;
        for view in &mut memory {
            if let Some(reading) = readings.remove(&view.device) {
                view.free_bytes = reading.free_bytes;
                view.read_at_ms = Some(reading.at_ms);
            }
        }
        memory
    }

    /// The verdict on every link, from what was tried and read.
    pub async fn health(&self) -> Health {
        let store = self.inner.store.clone();
        let journal = self
            .inner
            .journal
            .tried(async move || JournalProbe::probe(&store).await);
        let encoding = self.inner.encoding.tried(health::encodes);
        let (journal, encoding, snapshot) = tokio::join!(journal, encoding, self.snapshot());
        let dispatching = snapshot.is_ok();
        let (devices, memory, jobs) = match snapshot {
            Ok(snapshot) => (snapshot.devices, snapshot.memory, snapshot.jobs),
            Err(_) => Default::default(),
        };
        let memory = self.read_free(memory).await;
        let now_ms = crate::processing::now_ms();
        let facts = HealthFacts {
            now_ms,
            dispatching,
            draining: self.inner.drain.left().is_some(),
            was_ready: !self.inner.abilities.borrow().workers.is_empty(),
            workers: health::worker_facts(&devices),
            memory: health::memory_facts(&memory, now_ms),
            models: ModelCounts::of(self.inner.catalogue.models()),
            // The dispatcher knows them and does not show them yet.
            load_failures: 0,
            jobs_live: jobs.values().sum(),
            journal,
            encoding,
            runs: self.inner.log.runs(),
        };
        let chain = health::chain(&facts);
        Health {
            status: health::status(&facts, &chain).name().into(),
            chain,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: self.inner.started.elapsed().as_millis() as u64,
            jobs,
        }
    }

    /// From here on new jobs are refused and the health says `draining`. What runs goes on until [`shutdown`](Self::shutdown).
    pub fn begin_drain(&self, drain: Duration) {
        self.inner.drain.begin(drain);
    }

    /// Drains, stops the workers and ends the dispatcher. Jobs that have not ended are taken over by the next start.
    pub async fn shutdown(&self, drain: Duration) {
        self.begin_drain(drain);
        let (reply, answer) = oneshot::channel();
        if self.inner.commands.send(Command::Stop { reply }).await.is_ok() {
            let _ = answer.await;
        }
    }

    async fn snapshot(&self) -> Result<Snapshot, Error> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Snapshot { reply }).await?;
        answer.await.map_err(|_| going_down())
    }

    async fn tell(&self, command: Command) -> Result<(), Error> {
        self.inner.commands.send(command).await.map_err(|_| going_down())
    }
}

/// Beside the start, which does not wait for it: it reads every job there ever was.
async fn sweep(store: Store, artifacts: Artifacts) {
    let swept = async {
        artifacts
            .sweep(&store.referenced_artifacts().await?, SWEEP_AGE)
            .await
    };
    match swept.await {
        Ok(swept) => tracing::debug!("Swept the artifacts: {swept:?}"),
        Err(error) => {
            tracing::warn!("Failed to sweep the artifacts, loose ones stay until the next start: {error}")
        }
    }
}

impl JournalProbe for Store {
    /// Takes an event number: a write that is committed, and changes nothing that anybody sees.
    async fn probe(&self) -> Result<(), String> {
        let taken = self.reserve_event_ids(1).await;
        taken.map(drop).map_err(|error| error.to_string())
    }
}

fn going_down() -> Error {
    Error::new(Code::ShuttingDown, "the server is going down")
        .advice("the job is kept; ask again after the restart")
}

fn plan_bytes(record: &JobRecord) -> u64 {
    (record.plan.prompt.len() + record.plan.negative_prompt.len()) as u64
}
