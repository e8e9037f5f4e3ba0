//! The dispatcher: the one task that owns live jobs, ledgers and residency, and acts on what `policy` decides.
//!
//! ```text
//!  queued ──claim──▶ running ──result──▶ finishing ──▶ succeeded
//!    │ ▲  ◀─requeue──  │  ▲                    └──────▶ failed
//!    │ └─resume─┐      │  └─resumed─┐
//!    └─────▶ paused    └─▶ pausing ─┴▶ paused         any ──cancel──▶ cancelled
//! ```
//! Everything reaches it as a message: commands from the facade, events of the workers, and the ends of its own journal
//! and encoding tasks (`Internal`). It never waits for a disk or a process itself.

mod act;
mod cache;
mod commands;
mod finish;
mod show;
pub(crate) use show::view_of_record;
mod workers;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use calotype_protocol::{
    Blob, Capabilities, Hello, JobId, Load, LoadId, ModelId, Phase, Ready, SegmentId, Work,
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{JobProgress, JobRecord, JobResult, JobState, JobView, Ticket};
use crate::device::Device;
use crate::error::Error;
use crate::event::{EventKind, EventLog};
use crate::inference::{Abilities, AdapterNeed, Lack, ModelNeed, Needs, estimate};
use crate::memory::holding::{Pieces, Residency};
use crate::memory::weight_cache::{Source, WeightCache};
use crate::memory::{Ledger, Owner, Peaks, WorkingSets};
use crate::model::Catalogue;
use crate::store::{Artifacts, Store};
use crate::view::{DeviceView, DomainHealth, MemoryView};
use crate::worker::{WorkerConfig, WorkerEvent, WorkerHandle};

/// What a client may do to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// End it.
    Cancel,
    /// Hold it.
    Pause,
    /// Let it go on.
    Resume,
}

/// From the facade.
pub(crate) enum Command {
    /// A job is in the journal.
    Accepted {
        record: Box<JobRecord>,
        ticket: Ticket,
        reply: Option<oneshot::Sender<JobView>>,
    },
    /// The answer is `None` for a job that is not live.
    Control {
        job: JobId,
        action: Action,
        reply: oneshot::Sender<Option<Result<JobView, Error>>>,
    },
    /// Likewise.
    View {
        job: JobId,
        reply: oneshot::Sender<Option<JobView>>,
    },
    /// Answered at the job's end; the reply is dropped for a job that is not live.
    Wait {
        job: JobId,
        reply: oneshot::Sender<JobView>,
    },
    /// Devices, memory, health.
    Snapshot { reply: oneshot::Sender<Snapshot> },
    /// Start nothing more; workers are stopped, and the task ends.
    Stop { reply: oneshot::Sender<()> },
}

/// The driver's state for people.
pub(crate) struct Snapshot {
    pub(crate) devices: Vec<DeviceView>,
    pub(crate) memory: Vec<MemoryView>,
    pub(crate) chain: Vec<DomainHealth>,
    pub(crate) jobs: BTreeMap<String, usize>,
}

/// Ends of the driver's own tasks.
enum Internal {
    /// The claim is in the journal and the work is ready to go down.
    Prepared {
        job: JobId,
        attempt: u32,
        work: Result<(Work, Vec<Blob>), Error>,
    },
    /// The end is in the journal.
    Ended {
        job: JobId,
        state: JobState,
        result: Option<JobResult>,
        error: Option<Error>,
    },
    /// A preview is encoded.
    Preview { job: JobId, done: u32, png: Vec<u8> },
    /// The files of a load were looked at: those of each role that has weights.
    Sourced {
        worker: String,
        incarnation: u64,
        load: Box<Load>,
        sources: Vec<(String, Source)>,
    },
    /// A load has waited long enough for its weights to be in memory.
    Waited { worker: String, load: LoadId },
    /// Weights are in memory, so many bytes of them; or why not.
    Filled {
        segment: SegmentId,
        outcome: Result<u64, String>,
    },
    /// A segment's file is deleted.
    Freed { segment: SegmentId },
}

/// What the driver is made of.
pub(crate) struct Parts {
    pub(crate) store: Store,
    pub(crate) artifacts: Artifacts,
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) log: Arc<EventLog>,
    pub(crate) peaks: Peaks,
    pub(crate) abilities: watch::Sender<Arc<Abilities>>,
    pub(crate) max_concurrency: u32,
    /// Whether accelerators compile what they run.
    pub(crate) compile: bool,
    pub(crate) gate: Arc<super::Gate>,
    pub(crate) cache: WeightCache,
    /// Every device; one without a post is served by no runtime here.
    pub(crate) devices: Vec<(Device, Ledger)>,
    /// The workers that there can be, the preferred one of a device first.
    pub(crate) posts: Vec<NewPost>,
    /// Where workers tell what happens to them.
    pub(crate) events: mpsc::Sender<WorkerEvent>,
}

/// A worker that there can be.
pub(crate) struct NewPost {
    pub(crate) device: String,
    pub(crate) runtime: String,
    /// Smaller is better.
    pub(crate) rank: usize,
    pub(crate) config: WorkerConfig,
    /// Whether it is started with the engine, or when it is needed.
    pub(crate) asleep: bool,
    /// Whether it gets weights from memory, if its worker can take them from there.
    pub(crate) cached: bool,
}

/// A job that has not ended.
struct Live {
    record: JobRecord,
    state: JobState,
    reason: Option<String>,
    progress: Option<JobProgress>,
    /// The worker that it is assigned to, and that process.
    place: Option<(String, u64)>,
    /// What of it is done in pieces there.
    pieces: Pieces,
    /// Whether `run` went down.
    sent: bool,
    /// Whether another job was in its worker with it: what the worker held is not what this one took.
    accompanied: bool,
    /// What a client wants and has not got yet.
    wish: Option<Action>,
    /// Whether its end is being journaled.
    ending: bool,
    /// Whether it must be the only job of its worker.
    alone: bool,
    /// Workers that said that they cannot do it.
    refused_by: Vec<(String, Lack)>,
    /// Failures and lacks of memory so far, each allowed once.
    failures: u32,
    lacks: u32,
    /// The models that it needs, the one that makes the pictures first.
    models: Arc<[ModelNeed]>,
    needs: Arc<Needs>,
    adapters: Option<Arc<AdapterNeed>>,
    working_sets: Arc<WorkingSets>,
    _ticket: Ticket,
    waiters: Vec<oneshot::Sender<JobView>>,
    accepted: Instant,
    started: Option<Instant>,
}

impl Live {
    /// Who holds what its LoRAs change, in a worker; `None` where it has none.
    fn adapters_in(&self, worker: &str) -> Option<Owner> {
        let need = self.adapters.as_ref()?;
        Some(Owner::Adapters {
            worker: worker.to_owned(),
            set: Arc::clone(&need.set),
        })
    }
}

/// A worker and what is in it.
struct Post {
    device: String,
    runtime: String,
    /// Runtime and kind of device: what is of one kind takes the same memory for the same work.
    kind: Arc<str>,
    rank: usize,
    config: WorkerConfig,
    cached: bool,
    /// None while it is asleep.
    handle: Option<WorkerHandle>,
    incarnation: u64,
    state: PostState,
    hello: Option<Box<Hello>>,
    ready: Option<Box<Ready>>,
    /// Of `ready`, shared with every decision.
    capabilities: Option<Arc<Capabilities>>,
    pid: Option<u32>,
    last_exit: Option<String>,
    /// Processes that ended since one was ready.
    deaths: u32,
    resident: BTreeMap<ModelId, Stay>,
    moving: Option<Moving>,
    jobs: BTreeSet<JobId>,
    used_bytes: u64,
    /// Memory of the process when it had no job, the base that peaks are counted from.
    idle_bytes: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PostState {
    /// Not started before something needs it.
    Asleep,
    Starting,
    Ready,
    Gone,
}

/// A resident model.
struct Stay {
    /// What it takes of the device.
    bytes: u64,
    residency: Residency,
    last_use: u64,
}

/// A load or unload under way.
struct Moving {
    load: LoadId,
    model: ModelId,
    residency: Residency,
    began: Instant,
    /// Jobs that are shown as loading.
    waiting: Option<JobId>,
    /// What of it comes from memory.
    segments: Vec<SegmentId>,
    /// What of it comes from files.
    read: Vec<Source>,
    /// What goes down as soon as nothing more is waited for.
    sourced: Option<Sourced>,
}

/// A load whose files were looked at.
struct Sourced {
    load: Load,
    incarnation: u64,
    /// By role.
    sources: Vec<(String, Source)>,
    /// Whether it waits until they are in memory, if they will be there soon.
    waits: bool,
}

/// The task's state.
pub(crate) struct Driver {
    store: Store,
    artifacts: Artifacts,
    catalogue: Arc<Catalogue>,
    log: Arc<EventLog>,
    peaks: Peaks,
    abilities: watch::Sender<Arc<Abilities>>,
    max_concurrency: u32,
    compile: bool,
    gate: Arc<super::Gate>,
    cache: WeightCache,
    /// Tells a copy that is being made that nobody wants it any more.
    cache_ends: Arc<AtomicBool>,
    devices: BTreeMap<String, Device>,
    /// One a device, shared by its workers.
    ledgers: BTreeMap<String, Ledger>,
    posts: BTreeMap<String, Post>,
    events: mpsc::Sender<WorkerEvent>,
    jobs: HashMap<JobId, Live>,
    /// Models that a worker could not load, by the worker's name, and why.
    unusable: HashMap<(String, ModelId), Error>,
    uses: u64,
    loads: u64,
    stopping: Option<oneshot::Sender<()>>,
    internal: mpsc::UnboundedSender<Internal>,
}

impl Driver {
    /// Runs until it is stopped or the facade is gone.
    pub(crate) async fn run(
        parts: Parts,
        mut commands: mpsc::Receiver<Command>,
        mut events: mpsc::Receiver<WorkerEvent>,
    ) {
        let (internal, mut internals) = mpsc::unbounded_channel();
        let mut driver = Self::new(parts, internal);
        loop {
            tokio::select! {
                biased;
                Some(event) = events.recv() => driver.on_worker(event),
                Some(internal) = internals.recv() => driver.on_internal(internal),
                command = commands.recv() => match command {
                    Some(command) => driver.on_command(command),
                    None => break,
                },
            }
            if driver.stopping.is_some() {
                break;
            }
            driver.tend_cache();
            driver.send_sourced();
            driver.decide();
        }
        driver.leave(&mut events, &mut internals).await;
    }

    fn new(parts: Parts, internal: mpsc::UnboundedSender<Internal>) -> Self {
        let Parts {
            store,
            artifacts,
            catalogue,
            log,
            peaks,
            abilities,
            max_concurrency,
            compile,
            gate,
            cache,
            devices,
            posts,
            events,
        } = parts;
        let posts = posts
            .into_iter()
            .map(|new| (new.config.name.0.clone(), Post::new(new, &events)))
            .collect();
        let (mut by_id, mut ledgers) = (BTreeMap::new(), BTreeMap::new());
        for (device, ledger) in devices {
            ledgers.insert(device.id.clone(), ledger);
            by_id.insert(device.id.clone(), device);
        }
        Self {
            store,
            artifacts,
            catalogue,
            log,
            peaks,
            abilities,
            max_concurrency,
            compile,
            gate,
            cache,
            cache_ends: Arc::default(),
            devices: by_id,
            ledgers,
            posts,
            events,
            jobs: HashMap::new(),
            unusable: HashMap::new(),
            uses: 0,
            loads: 0,
            stopping: None,
            internal,
        }
    }

    /// Stops the workers, and waits for the ends that are being journaled. What ran is queued again by the journal's
    /// recovery at the next start.
    async fn leave(
        &mut self,
        events: &mut mpsc::Receiver<WorkerEvent>,
        internals: &mut mpsc::UnboundedReceiver<Internal>,
    ) {
        // Nobody reads worker events from here on; a worker's last words must not block it.
        events.close();
        let posts = std::mem::take(&mut self.posts);
        for (_, post) in posts {
            if let Some(handle) = post.handle {
                handle.stop(std::time::Duration::from_secs(2)).await;
            }
        }
        self.end_cache().await;
        while self.jobs.values().any(|job| job.ending) {
            match internals.recv().await {
                Some(Internal::Ended {
                    job,
                    state,
                    result,
                    error,
                }) => self.ended(&job, state, result, error),
                Some(
                    Internal::Prepared { .. }
                    | Internal::Preview { .. }
                    | Internal::Sourced { .. }
                    | Internal::Waited { .. }
                    | Internal::Filled { .. }
                    | Internal::Freed { .. },
                ) => {}
                None => break,
            }
        }
        if let Some(reply) = self.stopping.take() {
            let _ = reply.send(());
        }
    }

    fn on_internal(&mut self, internal: Internal) {
        match internal {
            Internal::Prepared { job, attempt, work } => self.prepared(&job, attempt, work),
            Internal::Ended {
                job,
                state,
                result,
                error,
            } => self.ended(&job, state, result, error),
            Internal::Preview { job, done, png } => {
                if self.jobs.contains_key(&job) {
                    self.log.preview(now_ms(), job, done, Phase::Denoise, png);
                }
            }
            Internal::Sourced {
                worker,
                incarnation,
                load,
                sources,
            } => self.sourced(&worker, incarnation, *load, sources),
            Internal::Waited { worker, load } => self.waited(&worker, &load),
            Internal::Filled { segment, outcome } => self.filled(&segment, outcome),
            Internal::Freed { segment } => self.freed(&segment),
        }
    }

    /// Writes down that a job changed its state.
    fn tell(&self, job: &JobId) {
        if let Some(live) = self.jobs.get(job) {
            self.log.append(
                now_ms(),
                EventKind::Job {
                    job: job.clone(),
                    state: live.state,
                    reason: live.reason.clone(),
                    view: None,
                },
            );
        }
    }

    /// Models that waiting and running jobs need; they are not evicted for a job behind them.
    fn models_in_use(&self, post: &Post) -> HashSet<ModelId> {
        post.jobs
            .iter()
            .filter_map(|job| self.jobs.get(job))
            .flat_map(|live| live.models.iter().map(|need| need.model.clone()))
            .collect()
    }
}

impl Post {
    fn new(new: NewPost, events: &mpsc::Sender<WorkerEvent>) -> Self {
        let NewPost {
            device,
            runtime,
            rank,
            config,
            asleep,
            cached,
        } = new;
        let handle = (!asleep).then(|| crate::worker::start(config.clone(), events.clone()));
        let kind = estimate::worker_kind(&runtime, &config.device.kind).into();
        Self {
            device,
            runtime,
            kind,
            rank,
            config,
            cached,
            state: if handle.is_some() {
                PostState::Starting
            } else {
                PostState::Asleep
            },
            handle,
            incarnation: 0,
            hello: None,
            ready: None,
            capabilities: None,
            pid: None,
            last_exit: None,
            deaths: 0,
            resident: BTreeMap::new(),
            moving: None,
            jobs: BTreeSet::new(),
            used_bytes: 0,
            idle_bytes: None,
        }
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
