//! The task around the core: it turns commands, worker events and the ends of its own tasks into inputs, and carries the
//! core's effects out in the order in which they were decided. It waits for no disk and no process: those answer it by
//! message.

mod effects;
mod ends;
mod leave;
mod setup;

use setup::WorkerProcess;
pub(crate) use setup::{DriverParts, WorkerSetup};

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use calotype_protocol::{JobId, ModelId, Phase, Up};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep_until;

use super::core::{Accepted, Core, Input, Now, StepView, Token};
use super::message::{AcceptedJob, Command, Internal};
use super::snapshot::{self};
use super::weights::Weights;
use crate::artifact_cache::ArtifactCache;
use crate::clock::now_ms;
use crate::device::Device;
use crate::error::Error;
use crate::event::{EventLog, SegmentChange};
use crate::health::RunFacts;
use crate::inference::Abilities;
use crate::model::Catalogue;
use crate::processing::admission::{Gate, Ticket};
use crate::processing::job::{JobRecord, JobState, JobView, StepKey};
use crate::processing::schedule::WorkerId;
use crate::store::{Artifacts, Store};
use crate::worker::{WorkerEvent, WorkerEventKind, WorkerHandle};

/// Messages that are taken in before the core decides.
const TOGETHER_MOST: usize = 128;
/// Records of steps that were accepted last, for claims that follow at once.
const RECENT_MOST: usize = 256;
/// A worker that is told to leave has so long.
const LEAVE_GRACE: Duration = Duration::from_secs(2);
/// Ends and pictures that are being stored have so long when the server goes down.
const STORE_GRACE: Duration = Duration::from_secs(5);

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
    artifact_cache: ArtifactCache,
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
            Internal::EndedRecord { ended, record } => self.tell_end(*ended, record, now),
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
}
