//! The facade: starts the domains in their order, and passes questions to the one who knows.

mod jobs;
mod submit;

use std::sync::Arc;
use std::time::{Duration, Instant};

use calotype_protocol::JobId;
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::Config;
use crate::device::{self, HostFacts};
use crate::error::{Code, Error};
use crate::event::{Answer, EventLog, JobStates, Subscription};
use crate::inference::Abilities;
use crate::memory::Peaks;
use crate::model::{Catalogue, ModelRecord};
use crate::processing::{Command, JobView, Driver, DriverParts, Gate, Snapshot};
use crate::startup;
use crate::store::{ArtifactHash, Artifacts, Store, keep_tidy};
use crate::view::{Artifact, DeviceView, Health, MemoryView};

/// Event numbers taken from the journal at each start: more than one run can use, and 2^53 holds millions of starts.
const EVENT_BLOCK: u64 = 1 << 30;
/// The least and the most that raw outputs may hold of the host's memory while they wait to be encoded and stored.
const OUTPUTS_LEAST_BYTES: u64 = 256 << 20;
const OUTPUTS_MOST_BYTES: u64 = 4 << 30;

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
        let inventory = device::inventory(&config.declared);
        let workers = startup::workers(&config, &inventory);
        let (abilities_in, abilities) =
            watch::channel(Arc::new(Abilities::of(Vec::new(), !workers.is_empty())));
        let cache = startup::weight_cache(&config, &inventory, &workers).await;
        let devices = startup::ledgers(&config, inventory, cache.budget_bytes());
        let started = Instant::now();
        let host = HostFacts::read();
        let parts = DriverParts {
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
        };
        let engine = Engine {
            inner: Arc::new(inner),
        };
        engine.take_over().await?;
        Ok(engine)
    }

    /// Events of one job, or of all, after the number `after`; from now on where there is none. A job's stream without a
    /// number begins with the job as it stands; one with a number that is too old begins with a gap, and so does that
    /// of all jobs.
    pub fn events(&self, job: Option<JobId>, after: Option<u64>) -> Subscription {
        self.inner.log.subscribe(job, after, Arc::new(self.clone()))
    }

    /// A stored file.
    pub async fn artifact(&self, hash: &str) -> Result<Artifact, Error> {
        let missing = || Error::new(Code::NotFound, format!("there is no artifact {hash}"));
        let hash = ArtifactHash::parse(hash).ok_or_else(missing)?;
        let bytes = self.inner.artifacts.fetch(&hash).await?.ok_or_else(missing)?;
        let media_type = crate::store::media_type(&bytes);
        Ok(Artifact { bytes, media_type })
    }

    /// Devices with their workers.
    pub async fn devices(&self) -> Vec<DeviceView> {
        self.snapshot()
            .await
            .map(|snapshot| snapshot.devices)
            .unwrap_or_default()
    }

    /// Models and LoRAs.
    pub async fn models(&self) -> Vec<ModelRecord> {
        self.inner.catalogue.models().cloned().collect()
    }

    /// One of them.
    pub async fn model(&self, id: &str) -> Result<ModelRecord, Error> {
        let found = self
            .inner
            .catalogue
            .model(id)
            .or_else(|error| self.inner.catalogue.lora(id).map_err(|_| error));
        found.cloned().map_err(|mut error| {
            error.code = Code::NotFound;
            error
        })
    }

    /// Ledgers.
    pub async fn memory(&self) -> Vec<MemoryView> {
        let mut memory = self
            .snapshot()
            .await
            .map(|snapshot| snapshot.memory)
            .unwrap_or_default();
        let host = HostFacts::read();
        for view in memory.iter_mut().filter(|view| view.device.starts_with("cpu")) {
            view.free_bytes = host.free_bytes;
        }
        memory
    }

    /// The chain.
    pub async fn health(&self) -> Health {
        let uptime_ms = self.inner.started.elapsed().as_millis() as u64;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        match self.snapshot().await {
            Ok(snapshot) => {
                let sound = snapshot.chain.iter().all(|link| link.healthy);
                let starting = self.inner.abilities.borrow().workers.is_empty();
                let status = if sound {
                    "ok"
                } else if starting {
                    "starting"
                } else {
                    "degraded"
                };
                Health {
                    status: status.into(),
                    chain: snapshot.chain,
                    version,
                    uptime_ms,
                    jobs: snapshot.jobs,
                }
            }
            Err(_) => Health {
                status: "degraded".into(),
                chain: Vec::new(),
                version,
                uptime_ms,
                jobs: Default::default(),
            },
        }
    }

    /// Starts nothing more, lets what runs end within `drain`, stops the workers and ends the dispatcher. Jobs that have
    /// not ended are taken over by the next start. A second call shortens the first.
    pub async fn shutdown(&self, drain: Duration) {
        let (reply, answer) = oneshot::channel();
        if self
            .inner
            .commands
            .send(Command::Stop { drain, reply })
            .await
            .is_ok()
        {
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

impl JobStates for Engine {
    fn job<'a>(&'a self, id: &'a JobId) -> Answer<'a, Result<JobView, Error>> {
        Box::pin(self.job_as_told(id))
    }
}

fn going_down() -> Error {
    Error::new(Code::ShuttingDown, "the server is going down")
        .advice("the job is kept; ask again after the restart")
}
