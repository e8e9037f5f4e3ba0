//! The facade: starts the domains in their order, and passes questions to the one who knows.

mod jobs;
mod submit;
mod view;

pub use view::{Artifact, JobPage, JobQuery, SubmitOptions, Submitted, Validation};

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use calotype_protocol::JobId;
use tokio::sync::{mpsc, oneshot, watch};

use crate::artifact::{ArtifactHash, media_type};
use crate::artifact_cache::ArtifactCache;
use crate::clock;
use crate::config::Config;
use crate::device::{self, DeviceView, HostFacts, Sensors};
use crate::drain::Drain;
use crate::error::{Code, Error};
use crate::event::{Answer, EventLog, JobStates, Subscription};
use crate::health::{self, Health, HealthFacts, JournalProbe, ModelCounts, Probe};
use crate::inference::Abilities;
use crate::memory::{MemoryView, Peaks};
use crate::model::{Catalogue, ModelRecord};
use crate::processing::{Command, Driver, DriverParts, Gate, JobView, Snapshot};
use crate::startup;
use crate::store::{Artifacts, Store, StoreHealth, keep_tidy};

/// Event numbers taken from the journal at each start: more than one run can use, and 2^53 holds millions of starts.
const EVENT_BLOCK: u64 = 1 << 30;
/// The least and the most that raw outputs may hold of the host's memory while they wait to be encoded and stored.
const OUTPUTS_LEAST_BYTES: u64 = 256 << 20;
const OUTPUTS_MOST_BYTES: u64 = 4 << 30;

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
    started: Instant,
    max_image_bytes: u64,
    sensors: Sensors,
    artifact_cache: ArtifactCache,
    encoding: Probe,
    journal: Probe,
    drain: Drain,
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
        let artifacts = store.artifacts();
        tokio::spawn(keep_tidy(store.downgrade(), config.retention));
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
        let workers = startup::workers(&config, &inventory);
        let (abilities_in, abilities) =
            watch::channel(Arc::new(Abilities::of(Vec::new(), !workers.is_empty())));
        let cache = startup::weight_cache(&config, &inventory, &workers).await;
        let devices = startup::ledgers(&config, inventory, cache.budget_bytes());
        let artifact_cache = ArtifactCache::default();
        let started = Instant::now();
        let host = HostFacts::read();
        let parts = DriverParts {
            peaks: Peaks::new(store.peaks().await?),
            store: store.clone(),
            artifacts: artifacts.clone(),
            artifact_cache: artifact_cache.clone(),
            catalogue: Arc::clone(&catalogue),
            log: Arc::clone(&log),
            abilities: abilities_in,
            max_concurrency: config.max_concurrency,
            compile: config.compile,
            gate: Arc::clone(&gate),
            cache,
            devices,
            workers,
            events: events_in,
            outputs_limit_bytes: (host.total_bytes / 16).clamp(OUTPUTS_LEAST_BYTES, OUTPUTS_MOST_BYTES),
            started,
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
            started,
            max_image_bytes: 64 << 20,
            sensors,
            artifact_cache,
            encoding: Probe::new(ENCODING_EVERY, PROBE_PATIENCE),
            journal: Probe::new(JOURNAL_EVERY, PROBE_PATIENCE),
            drain: Drain::default(),
        };
        let engine = Engine {
            inner: Arc::new(inner),
        };
        engine.take_over().await?;
        let encoding = engine.inner.encoding.clone();
        tokio::spawn(async move { encoding.tried(health::encodes).await });
        Ok(engine)
    }

    /// Events of one job, or of all, after the number `after`; from now on where there is none. A job's stream without a
    /// number begins with the job as it stands; one with a number that is too old begins with a gap, and so does that
    /// of all jobs.
    pub fn events(&self, job: Option<JobId>, after: Option<u64>) -> Subscription {
        self.inner.log.subscribe(job, after, Arc::new(self.clone()))
    }

    /// A stored file, from memory where it was stored or read a short while ago.
    pub async fn artifact(&self, hash: &str) -> Result<Artifact, Error> {
        let missing = || Error::new(Code::NotFound, format!("there is no artifact {hash}"));
        let hash = ArtifactHash::parse(hash).ok_or_else(missing)?;
        let bytes = match self.inner.artifact_cache.get(&hash) {
            Some(bytes) => {
                self.inner.artifacts.was_fetched(&hash);
                bytes
            }
            None => {
                let bytes = self.inner.artifacts.fetch(&hash).await?.ok_or_else(missing)?;
                let bytes = Bytes::from(bytes);
                self.inner.artifact_cache.put(hash, bytes.clone());
                bytes
            }
        };
        let media_type = media_type(&bytes);
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
        let (devices, memory, rest) = match snapshot {
            Ok(snapshot) => (snapshot.devices, snapshot.memory, snapshot.rest),
            Err(_) => Default::default(),
        };
        let memory = self.read_free(memory).await;
        let now_ms = clock::now_ms();
        let facts = HealthFacts {
            now_ms,
            dispatching,
            draining: self.inner.drain.left().is_some(),
            was_ready: !self.inner.abilities.borrow().workers.is_empty(),
            workers: health::worker_facts(&devices),
            memory: health::memory_facts(&memory, now_ms),
            models: ModelCounts::of(self.inner.catalogue.models()),
            load_failures: rest.load_failures,
            jobs_live: rest.jobs.values().sum(),
            journal,
            encoding,
            runs: rest.runs,
        };
        let chain = health::chain(&facts);
        Health {
            status: health::status(&facts, &chain).name().into(),
            chain,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: self.inner.started.elapsed().as_millis() as u64,
            jobs: rest.jobs,
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
        let stop = Command::Stop { drain, reply };
        if self.inner.commands.send(stop).await.is_ok() {
            let _ = answer.await;
        }
        self.inner.log.close();
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

impl JournalProbe for Store {
    async fn probe(&self) -> Result<(), String> {
        match Store::probe(self).await {
            StoreHealth::Open => Ok(()),
            StoreHealth::Full { message } | StoreHealth::Failed { message } => Err(message),
        }
    }
}

impl JobStates for Engine {
    fn job<'a>(&'a self, id: &'a JobId) -> Answer<'a, Result<JobView, Error>> {
        Box::pin(self.job_as_told(id))
    }
}

fn going_down() -> Error {
    Error::new(Code::ShuttingDown, "the server is going down")
        .advice("the job is kept; ask again after the restart")
}
