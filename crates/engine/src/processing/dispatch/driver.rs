//! The task around the core: it turns commands, worker events and the ends of its own tasks into inputs, and carries the
//! core's effects out in the order in which they were decided. It waits for no disk and no process: those answer it by
//! message.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use calotype_imaging::{Format, Rgb, encode};
use calotype_protocol::{
    Blob, BlobRef, Dtype, Failure, JobId, Load, LoadId, LoadPlan, ModelId, Outcome, Phase, SegmentId, Up,
    Work,
};
use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep_until, timeout};

use super::core::{
    Accepted, Action, Core, CoreParts, Effect, Ended, Input, Now, Outputs, StepView, StoreFault,
    StoreOutputsError, StoredOutputs, Then, Token,
};
use super::snapshot::{self, Snapshot};
use super::weights::Weights;
use super::{changes, outputs, prepare};
use crate::device::Device;
use crate::error::{Code, Error};
use crate::event::{EventKind, EventLog, SegmentChange};
use crate::health::RunFacts;
use crate::inference::Abilities;
use crate::memory::memory_plan::{Precision, Residency};
use crate::memory::weight_cache::{Source, WeightCache};
use crate::memory::{Ledger, Peaks};
use crate::model::Catalogue;
use crate::processing::job::{JobRecord, JobState, JobView, RunId, StepKey};
use crate::processing::schedule::{Demand, DeviceId, DeviceMemory, Fleet, WorkerId, WorkerSpec};
use crate::processing::{Gate, Ticket};
use crate::store::{Artifacts, Store, StoreHealth};
use crate::worker::{WorkerConfig, WorkerEvent, WorkerEventKind, WorkerHandle};

/// Messages that are taken in before the core decides.
const TOGETHER_MOST: usize = 128;
/// Records of steps that were accepted last, for claims that follow at once.
const RECENT_MOST: usize = 256;
/// A worker that is told to leave has so long.
const LEAVE_GRACE: Duration = Duration::from_secs(2);
/// Ends and pictures that are being stored have so long when the server goes down.
const STORE_GRACE: Duration = Duration::from_secs(5);

/// From the facade.
pub(crate) enum Command {
    /// Jobs are in the journal.
    Accepted(Vec<AcceptedJob>),
    /// What a client wants of a job, answered once it is kept; `None` for a job that is not live.
    Control {
        job: JobId,
        action: Action,
        reply: oneshot::Sender<Option<Result<(), Error>>>,
    },
    /// Jobs as they stand; `None` for each that is not live.
    Views {
        jobs: Vec<JobId>,
        reply: oneshot::Sender<Vec<Option<StepView>>>,
    },
    /// Live jobs in a state, newest first.
    InState {
        state: JobState,
        before: Option<u64>,
        limit: usize,
        reply: oneshot::Sender<Vec<u64>>,
    },
    /// Answered at the job's end; the reply is dropped for a job that is not live.
    Wait {
        job: JobId,
        reply: oneshot::Sender<JobView>,
    },
    /// Where a demand would run now.
    Forecast {
        demand: Box<Demand>,
        reply: oneshot::Sender<super::core::Forecast>,
    },
    /// Devices, memory, health.
    Snapshot { reply: oneshot::Sender<Snapshot> },
    /// Start nothing more; what runs may end within `drain`. A second one shortens the first.
    Stop {
        drain: Duration,
        reply: oneshot::Sender<()>,
    },
}

/// A job that is in the journal.
pub(crate) struct AcceptedJob {
    pub(crate) record: Arc<JobRecord>,
    pub(crate) demand: Result<Demand, Error>,
    pub(crate) ticket: Ticket,
}

/// Ends of the driver's own tasks.
pub(super) enum Internal {
    /// Work is ready to go down, with the record that it was built from.
    Prepared {
        run: RunId,
        record: Option<Arc<JobRecord>>,
        work: Result<(Box<Work>, Vec<Blob>), Error>,
    },
    Stored {
        step: StepKey,
        outputs: Result<Box<StoredOutputs>, StoreOutputsError>,
    },
    Journaled {
        then: Then,
        outcome: Result<(), StoreFault>,
    },
    StoreProbed(Result<(), StoreFault>),
    /// A preview is encoded as PNG.
    Preview {
        job: JobId,
        done: u32,
        png: Vec<u8>,
    },
    /// The record of a job that ended without having been claimed.
    EndedRecord {
        ended: Box<Ended>,
        record: Option<JobRecord>,
    },
    /// The files of a load were looked at: those of each role that has weights.
    FilesFound {
        load: Box<Load>,
        sources: Vec<(String, Source)>,
    },
    /// A load has waited long enough for its weights to be in memory.
    WaitedForCopies {
        load: LoadId,
    },
    /// Weights are in memory, so many bytes of them; or why not.
    SegmentFilled {
        segment: SegmentId,
        outcome: Result<u64, String>,
    },
    /// A segment's file is deleted.
    SegmentFreed {
        segment: SegmentId,
    },
    /// The files of a model that could not be loaded have changed.
    FilesChanged {
        model: ModelId,
    },
}

/// A worker that there can be.
pub(crate) struct WorkerSetup {
    pub(crate) device: String,
    pub(crate) runtime: String,
    /// Smaller is better.
    pub(crate) rank: usize,
    pub(crate) config: WorkerConfig,
    /// Whether it is started when it is needed, not with the engine.
    pub(crate) starts_when_needed: bool,
    /// Whether it gets weights from shared memory, if it can take them from there.
    pub(crate) takes_segments: bool,
}

/// What the driver is made of.
pub(crate) struct DriverParts {
    pub(crate) store: Store,
    pub(crate) artifacts: Artifacts,
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) log: Arc<EventLog>,
    pub(crate) peaks: Peaks,
    pub(crate) abilities: watch::Sender<Arc<Abilities>>,
    /// Most runs a worker; 0 for its own figure.
    pub(crate) max_concurrency: u32,
    /// Whether accelerators compile what they run.
    pub(crate) compile: bool,
    pub(crate) gate: Arc<Gate>,
    pub(crate) cache: WeightCache,
    /// Every device; one without a worker is served by no runtime here.
    pub(crate) devices: Vec<(Device, Ledger)>,
    /// The workers that there can be, the preferred one of a device first.
    pub(crate) workers: Vec<WorkerSetup>,
    /// Where workers tell what happens to them.
    pub(crate) events: mpsc::Sender<WorkerEvent>,
    /// The most that outputs may hold that wait to be encoded and stored.
    pub(crate) outputs_limit_bytes: u64,
    pub(crate) started: Instant,
}

/// A worker's process, as far as the driver holds it.
pub(super) struct WorkerProcess {
    pub(super) config: WorkerConfig,
    takes_segments: bool,
    /// `None` while it is asleep.
    handle: Option<WorkerHandle>,
}

/// The server goes down.
struct Stopping {
    until: Instant,
    replies: Vec<oneshot::Sender<()>>,
}

/// The task's state.
pub(crate) struct Driver {
    core: Core,
    started: Instant,
    store: Store,
    artifacts: Artifacts,
    catalogue: Arc<Catalogue>,
    log: Arc<EventLog>,
    abilities: watch::Sender<Arc<Abilities>>,
    compile: bool,
    gate: Arc<Gate>,
    weights: Weights,
    devices: Vec<Device>,
    workers: Vec<WorkerProcess>,
    events: mpsc::Sender<WorkerEvent>,
    tickets: HashMap<StepKey, Ticket>,
    waiters: HashMap<JobId, Vec<oneshot::Sender<JobView>>>,
    controls: HashMap<Token, oneshot::Sender<Option<Result<(), Error>>>>,
    tokens: u64,
    /// Records of claimed steps.
    claimed: HashMap<StepKey, Arc<JobRecord>>,
    /// Records of steps that were accepted last.
    recent: VecDeque<(StepKey, Arc<JobRecord>)>,
    /// Jobs whose end is in the journal and not yet in the event log: they are shown as live until it is.
    untold: HashMap<JobId, StepView>,
    /// How the last runs ended, for the verdict on inference.
    runs: RunFacts,
    /// Models whose files are watched because they could not be loaded.
    watched: HashSet<ModelId>,
    writes_in_flight: usize,
    stopping: Option<Stopping>,
    is_drained: bool,
    internal: mpsc::UnboundedSender<Internal>,
}

/// What woke the loop.
enum Woken {
    Event(WorkerEvent),
    Internal(Internal),
    Command(Command),
    Time,
    /// The facade is gone.
    Closed,
}

impl Driver {
    /// Runs until it is stopped or the facade is gone.
    pub(crate) async fn run(
        parts: DriverParts,
        mut commands: mpsc::Receiver<Command>,
        mut events: mpsc::Receiver<WorkerEvent>,
    ) {
        let (internal, mut internals) = mpsc::unbounded_channel();
        let mut driver = Self::new(parts, internal);
        loop {
            let wake_at = driver.wake_at();
            // No branch goes before another: a flood of one kind starves none.
            let woken = tokio::select! {
                Some(event) = events.recv() => Woken::Event(event),
                Some(internal) = internals.recv() => Woken::Internal(internal),
                command = commands.recv() => command.map_or(Woken::Closed, Woken::Command),
                () = sleep_until(wake_at.unwrap_or_else(Instant::now).into()), if wake_at.is_some() => Woken::Time,
            };
            let now = driver.now();
            match woken {
                Woken::Event(event) => driver.on_event(event, now),
                Woken::Internal(internal) => driver.on_internal(internal, now),
                Woken::Command(command) => driver.on_command(command, now),
                Woken::Time => driver.core.take(Input::Tick, now),
                Woken::Closed => break,
            }
            // What has come meanwhile is taken in before the core decides once for all of it.
            for _ in 0..TOGETHER_MOST {
                let mut is_idle = true;
                if let Ok(event) = events.try_recv() {
                    driver.on_event(event, now);
                    is_idle = false;
                }
                if let Ok(internal) = internals.try_recv() {
                    driver.on_internal(internal, now);
                    is_idle = false;
                }
                if let Ok(command) = commands.try_recv() {
                    driver.on_command(command, now);
                    is_idle = false;
                }
                if is_idle {
                    break;
                }
            }
            driver.settle(now);
            if driver.may_leave(now) {
                break;
            }
        }
        driver.leave(&mut events, &mut internals).await;
    }

    fn new(parts: DriverParts, internal: mpsc::UnboundedSender<Internal>) -> Self {
        let DriverParts {
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
            workers,
            events,
            outputs_limit_bytes,
            started,
        } = parts;
        let (devices, ledgers): (Vec<Device>, Vec<Ledger>) = devices.into_iter().unzip();
        let device_id = |name: &str| devices.iter().zip(0..).find(|(device, _)| device.id == name);
        let mut specs = Vec::new();
        let mut processes = Vec::new();
        for setup in workers {
            let Some((device, index)) = device_id(&setup.device) else {
                continue;
            };
            specs.push(WorkerSpec {
                name: setup.config.name.0.as_str().into(),
                device: DeviceId(index),
                kind: crate::inference::worker_kind(&setup.runtime, &device.kind).into(),
                runtime: setup.runtime,
                device_kind: device.kind.clone(),
                rank: setup.rank,
                starts_when_needed: setup.starts_when_needed,
            });
            let start = || crate::worker::start(setup.config.clone(), events.clone());
            processes.push(WorkerProcess {
                handle: (!setup.starts_when_needed).then(start),
                config: setup.config,
                takes_segments: setup.takes_segments,
            });
        }
        let memories = devices.iter().zip(ledgers).map(|(device, ledger)| DeviceMemory {
            id: device.id.clone(),
            ledger,
        });
        let fleet = Fleet::new(memories.collect(), specs, max_concurrency as usize);
        Self {
            core: Core::new(CoreParts {
                fleet,
                peaks,
                outputs_limit_bytes,
            }),
            started,
            store,
            artifacts,
            catalogue,
            log,
            abilities,
            compile,
            gate,
            weights: Weights::new(cache, internal.clone()),
            devices,
            workers: processes,
            events,
            tickets: HashMap::new(),
            waiters: HashMap::new(),
            controls: HashMap::new(),
            tokens: 0,
            claimed: HashMap::new(),
            recent: VecDeque::new(),
            untold: HashMap::new(),
            runs: RunFacts::default(),
            watched: HashSet::new(),
            writes_in_flight: 0,
            stopping: None,
            is_drained: false,
            internal,
        }
    }

    fn now(&self) -> Now {
        Now {
            since_start: self.started.elapsed(),
            wall_ms: now_ms(),
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        let core = self.core.wake_at().map(|at| self.started + at);
        let stop = self.stopping.as_ref().map(|stopping| stopping.until);
        core.into_iter().chain(stop).min()
    }

    fn worker_name(&self, id: WorkerId) -> &str {
        self.workers
            .get(id.0 as usize)
            .map_or("", |worker| worker.config.name.0.as_str())
    }

    fn handle(&self, id: WorkerId) -> Option<&WorkerHandle> {
        self.workers.get(id.0 as usize)?.handle.as_ref()
    }

    fn on_event(&mut self, event: WorkerEvent, now: Now) {
        let WorkerEvent {
            worker: name,
            incarnation,
            kind,
        } = event;
        let Some(worker) = self.core.fleet().find(&name.0) else {
            return;
        };
        let input = match kind {
            WorkerEventKind::Starting { pid } => Input::WorkerStarting {
                worker,
                incarnation,
                pid,
            },
            WorkerEventKind::Ready { hello, ready } => Input::WorkerReady { worker, hello, ready },
            WorkerEventKind::Gone(report) => {
                self.weights.worker_gone(worker, &name.0);
                let report = Box::new(report);
                Input::WorkerGone { worker, report }
            }
            WorkerEventKind::Message(frame) => {
                let (line, blobs) = (frame.message, frame.blobs);
                match line {
                    Up::LoadFailed { load, failure } => {
                        let from_memory = self.weights.load_failed(&load, &failure);
                        Input::LoadFailed {
                            worker,
                            load,
                            failure,
                            from_memory,
                        }
                    }
                    Up::Released { segment } => {
                        self.weights.released(&segment, &name.0);
                        return;
                    }
                    line => {
                        if let Up::Loaded(loaded) = &line {
                            self.weights.loaded(loaded);
                        }
                        Input::Line {
                            worker,
                            incarnation,
                            line,
                            blobs,
                        }
                    }
                }
            }
        };
        self.core.take(input, now);
    }

    fn on_command(&mut self, command: Command, now: Now) {
        match command {
            Command::Accepted(jobs) => {
                for job in jobs {
                    self.accepted(job, now);
                }
            }
            Command::Control { job, action, reply } => {
                if self.core.find(&job).is_none() {
                    let _ = reply.send(None);
                    return;
                }
                self.tokens += 1;
                let token = Token(self.tokens);
                self.controls.insert(token, reply);
                self.core.take(Input::Control { job, action, token }, now);
            }
            Command::Views { jobs, reply } => {
                let mut views = match &jobs[..] {
                    [job] => vec![self.core.view(job)],
                    jobs => self.core.views(jobs),
                };
                for (job, view) in jobs.iter().zip(&mut views).filter(|(_, view)| view.is_none()) {
                    *view = self.untold.get(job).cloned();
                }
                let _ = reply.send(views);
            }
            Command::InState {
                state,
                before,
                limit,
                reply,
            } => {
                let keys = self.core.in_state(state, before, limit);
                let _ = reply.send(keys.into_iter().map(|StepKey(sequence)| sequence).collect());
            }
            Command::Wait { job, reply } => {
                if self.core.find(&job).is_some() {
                    self.waiters.entry(job).or_default().push(reply);
                }
            }
            Command::Forecast { demand, reply } => {
                let _ = reply.send(self.core.forecast(&demand, now));
            }
            Command::Snapshot { reply } => {
                let (runs, cache) = (self.runs.clone(), self.weights.cache());
                let snapshot = snapshot::take(&self.core, &self.devices, cache, runs, now);
                let _ = reply.send(snapshot);
            }
            Command::Stop { drain, reply } => {
                let until = Instant::now() + drain;
                match &mut self.stopping {
                    None => {
                        let replies = vec![reply];
                        self.stopping = Some(Stopping { until, replies });
                    }
                    Some(stopping) => {
                        stopping.until = stopping.until.min(until);
                        stopping.replies.push(reply);
                    }
                }
                self.core.take(Input::Drain, now);
            }
        }
    }

    fn accepted(&mut self, job: AcceptedJob, now: Now) {
        let AcceptedJob {
            record,
            demand,
            ticket,
        } = job;
        let key = StepKey(record.sequence);
        self.tickets.insert(key, ticket);
        metrics::counter!("calotype_jobs_accepted_total").increment(1);
        let accepted = Accepted {
            key,
            job: record.id.clone(),
            class: record.class,
            priority: record.priority,
            client: record.client.as_str().into(),
            demand,
            work_units: crate::inference::work_units(&record.plan),
            attempts: record.attempts,
            crashes: record.crashes,
            is_held: record.state == JobState::Paused,
            age: Duration::from_millis(now.wall_ms.saturating_sub(record.created_at_ms)),
        };
        self.recent.push_back((key, record));
        if self.recent.len() > RECENT_MOST {
            self.recent.pop_front();
        }
        self.core.take(Input::Accepted(Box::new(accepted)), now);
    }

    fn on_internal(&mut self, internal: Internal, now: Now) {
        match internal {
            Internal::Prepared { run, record, work } => {
                if let Some(record) = record
                    && self.tickets.contains_key(&run.step)
                {
                    self.claimed.insert(run.step, record);
                }
                self.core.take(Input::Prepared { run, work }, now);
            }
            Internal::Stored { step, outputs } => self.core.take(Input::Stored { step, outputs }, now),
            Internal::Journaled { then, outcome } => {
                self.writes_in_flight = self.writes_in_flight.saturating_sub(1);
                self.core.take(Input::Journaled { then, outcome }, now);
            }
            Internal::StoreProbed(outcome) => self.core.take(Input::StoreProbed(outcome), now),
            Internal::Preview { job, done, png } => {
                if self.core.find(&job).is_some() {
                    self.log.preview(now.wall_ms, job, done, Phase::Denoise, png);
                }
            }
            Internal::EndedRecord { ended, record } => self.tell_end(*ended, record.map(Arc::new), now),
            Internal::FilesFound { load, sources } => self.weights.files_found(*load, sources),
            Internal::WaitedForCopies { load } => self.weights.waited(&load),
            Internal::SegmentFilled { segment, outcome } => {
                let state = match &outcome {
                    Ok(_) => SegmentChange::Ready,
                    Err(_) => SegmentChange::Failed,
                };
                let reason = outcome.as_ref().err().cloned();
                self.weights.filled(&segment, outcome);
                self.tell_segment(&segment, state, reason, now);
            }
            Internal::SegmentFreed { segment } => {
                self.weights.freed(&segment);
                self.tell_segment(&segment, SegmentChange::Freed, None, now);
            }
            Internal::FilesChanged { model } => {
                self.watched.remove(&model);
                self.core.take(Input::ModelsChanged { models: vec![model] }, now);
            }
        }
    }

    /// Lets the core decide, and does what it wants, in this order.
    fn settle(&mut self, now: Now) {
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

    fn carry_out(&mut self, effect: Effect, now: Now) {
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
    fn prepare(&mut self, run: RunId, job: JobId) {
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

    fn load(
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

    fn store_outputs(&mut self, step: StepKey, outputs: Box<Outputs>) {
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
        tokio::task::spawn_blocking(move || {
            let outputs = outputs::store(&artifacts, &record.plan, &model_name, outputs);
            let _ = internal.send(Internal::Stored { step, outputs });
        });
    }

    fn preview(&self, job: JobId, done: u32, image: BlobRef, blobs: Vec<Blob>) {
        let internal = self.internal.clone();
        tokio::task::spawn_blocking(move || {
            if let Some(png) = encoded_preview(&image, &blobs) {
                let _ = internal.send(Internal::Preview { job, done, png });
            }
        });
    }

    /// A step's end is on disk. Its record makes the view: at hand if it was claimed, else it is read.
    fn ended(&mut self, ended: Box<Ended>, now: Now) {
        let step = ended.step;
        let recent = || {
            let mut recent = self.recent.iter();
            recent
                .find(|(key, _)| *key == step)
                .map(|(_, record)| Arc::clone(record))
        };
        match self.claimed.remove(&step).or_else(recent) {
            Some(record) => self.tell_end(*ended, Some(record), now),
            None => {
                self.untold.insert(ended.job.clone(), StepView::ending(&ended));
                let (store, internal) = (self.store.clone(), self.internal.clone());
                tokio::spawn(async move {
                    let record = store.job(&ended.job).await.ok().flatten();
                    let _ = internal.send(Internal::EndedRecord { ended, record });
                });
            }
        }
        self.recent.retain(|(key, _)| *key != step);
        self.tickets.remove(&step);
    }

    /// Tells everybody that a job has ended.
    fn tell_end(&mut self, ended: Ended, record: Option<Arc<JobRecord>>, now: Now) {
        let Ended {
            job,
            end,
            note,
            attempts,
            started_at_ms,
            took,
            ..
        } = ended;
        self.untold.remove(&job);
        match (&end.state, &end.error) {
            (JobState::Succeeded, _) => self.runs.succeeded(now.wall_ms),
            (JobState::Failed, Some(error)) => self.runs.failed(now.wall_ms, error),
            _ => {}
        }
        self.gate.took(took.as_millis() as u64);
        metrics::counter!("calotype_jobs_ended_total", "state" => end.state.name()).increment(1);
        metrics::histogram!("calotype_job_seconds").record(took.as_secs_f64());
        let (state, reason) = (end.state, note.filter(|_| end.state == JobState::Cancelled));
        let view = record.map(|record| {
            let record = JobRecord {
                state,
                attempts,
                started_at_ms: started_at_ms.or(record.started_at_ms),
                finished_at_ms: Some(end.at_ms),
                result: end.result,
                error: end.error,
                ..JobRecord::clone(&record)
            };
            JobView {
                reason: reason.clone(),
                ..snapshot::view_of(record, None)
            }
        });
        let waiters = self.waiters.remove(&job).unwrap_or_default();
        if let Some(view) = &view {
            for waiter in waiters {
                let _ = waiter.send(view.clone());
            }
        }
        let kind = EventKind::Job {
            job,
            state,
            reason,
            view: view.map(Box::new),
        };
        self.log.append(now.wall_ms, kind);
    }

    /// Tells the door what the workers can do now.
    fn tell_abilities(&self) {
        let workers = &self.core.fleet().workers;
        let known = workers.iter().filter_map(|worker| {
            let can = worker.capabilities.as_deref()?;
            Some((worker.spec.name.to_string(), can.clone()))
        });
        let unknown = workers.iter().any(|worker| worker.capabilities.is_none());
        self.abilities
            .send_replace(Arc::new(Abilities::of(known.collect(), unknown)));
    }

    fn tell_segment(&self, segment: &SegmentId, state: SegmentChange, reason: Option<String>, now: Now) {
        let kind = EventKind::Segment {
            segment: segment.to_string(),
            state,
            reason,
        };
        self.log.append(now.wall_ms, kind);
    }

    /// A model that could not be loaded is tried again when its files change.
    fn watch(&mut self, model: ModelId) {
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

    /// Whether nothing is left to wait for.
    fn may_leave(&self, now: Now) -> bool {
        self.stopping
            .as_ref()
            .is_some_and(|stopping| self.is_drained || self.started + now.since_start >= stopping.until)
    }

    /// Stops the workers, all at the same time, and waits for the ends that are on their way to the journal. What still
    /// ran is queued again by the journal's recovery at the next start.
    async fn leave(
        &mut self,
        events: &mut mpsc::Receiver<WorkerEvent>,
        internals: &mut mpsc::UnboundedReceiver<Internal>,
    ) {
        let until = Instant::now() + STORE_GRACE;
        while self.core.has_unwritten_ends() && self.core.store_outage().is_none() && Instant::now() < until {
            let Ok(Some(internal)) = timeout(until - Instant::now(), internals.recv()).await else {
                break;
            };
            let now = self.now();
            self.on_internal(internal, now);
            self.settle(now);
        }
        // Nobody reads worker events from here on; a worker's last words must not block it.
        events.close();
        let handles: Vec<WorkerHandle> = self
            .workers
            .iter_mut()
            .filter_map(|worker| worker.handle.take())
            .collect();
        join_all(handles.iter().map(|handle| handle.stop(LEAVE_GRACE))).await;
        self.weights.end().await;
        for reply in self
            .stopping
            .take()
            .into_iter()
            .flat_map(|stopping| stopping.replies)
        {
            let _ = reply.send(());
        }
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

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
