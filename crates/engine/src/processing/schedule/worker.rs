//! A worker as the scheduler sees it: who it is, how soon it takes work, what is resident, and which runs hold places. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use calotype_protocol::{Capabilities, Hello, LoadId, ModelId, Ready};

use super::demand::DemandId;
use super::fleet::DeviceId;
use crate::error::Error;
use crate::inference::{AdapterNeed, ModelNeed};
use crate::memory::memory_plan::{MemoryFeatures, Precision, Residency};
use crate::processing::job::StepKey;

/// A worker that there can be.
#[derive(Debug, Clone)]
pub(crate) struct WorkerSpec {
    /// Its name, for instance `cuda0-python`.
    pub(crate) name: Arc<str>,
    /// The device whose memory it shares.
    pub(crate) device: DeviceId,
    /// `native` or `python`.
    pub(crate) runtime: String,
    /// Runtime and kind of device: workers of one kind share memory and time estimates.
    pub(crate) kind: Arc<str>,
    /// `cpu`, `cuda`, …
    pub(crate) device_kind: String,
    /// Smaller is better where several can do a job.
    pub(crate) rank: usize,
    /// Whether it is started when it is needed, not with the engine.
    pub(crate) starts_when_needed: bool,
}

/// Where a worker's process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProcessState {
    /// Not started before something needs it.
    Asleep,
    /// Started; not ready yet.
    Starting,
    /// Takes work.
    Ready,
    /// Reaped; the next one starts after a backoff.
    Gone,
}

/// How soon a worker takes work, soonest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Readiness {
    /// Now.
    Ready,
    /// Soon: its first process starts, or the one after a death that was the first since it was ready.
    Starting,
    /// Once it is started.
    Asleep,
    /// Perhaps never: its processes die without having been ready.
    Broken,
}

/// A resident model.
#[derive(Debug, Clone)]
pub(crate) struct ResidentModel {
    /// What it takes of the device.
    pub(crate) bytes: u64,
    /// How it was loaded.
    pub(crate) residency: Residency,
    /// Grows with each use; the smallest is evicted first.
    pub(crate) last_use: u64,
    /// Whether a run has used it since it was loaded.
    pub(crate) was_used: bool,
}

/// A load or unload under way.
#[derive(Debug, Clone)]
pub(crate) struct PendingMove {
    pub(crate) id: LoadId,
    pub(crate) model: ModelId,
    pub(crate) kind: MoveKind,
    pub(crate) began: Duration,
}

#[derive(Debug, Clone)]
pub(crate) enum MoveKind {
    Load {
        residency: Residency,
        /// What it was estimated to take of the device.
        weights_bytes: u64,
        /// The step that is shown as loading.
        wanted_by: StepKey,
        expected_ms: f64,
    },
    Unload,
}

/// What a run uses of its worker.
#[derive(Debug, Clone)]
pub(crate) struct Uses {
    /// The models that must stay resident.
    pub(crate) models: Arc<[ModelNeed]>,
    /// The LoRAs on the first of them.
    pub(crate) adapters: Option<Arc<AdapterNeed>>,
}

/// A run that holds a place.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    pub(crate) uses: Uses,
    /// Device time that it was estimated to take.
    pub(crate) estimated_ms: f64,
    /// The worker's shared time when it began.
    began_at_ms: f64,
}

/// For whom a worker is kept free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reservation {
    pub(crate) demand: DemandId,
    /// Whether a critical step asked for it: then it holds for other critical steps too.
    pub(crate) is_critical: bool,
}

/// A worker and what is in it.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) spec: WorkerSpec,
    pub(crate) precision: Precision,
    pub(crate) process: ProcessState,
    /// Which of its processes, from 1.
    pub(crate) incarnation: u64,
    pub(crate) pid: Option<u32>,
    pub(crate) hello: Option<Box<Hello>>,
    pub(crate) ready: Option<Box<Ready>>,
    /// Of `ready`, shared with readers.
    pub(crate) capabilities: Option<Arc<Capabilities>>,
    pub(crate) memory_features: MemoryFeatures,
    pub(crate) last_exit: Option<String>,
    /// Processes that ended since one was ready.
    pub(crate) deaths: u32,
    pub(crate) resident: BTreeMap<ModelId, ResidentModel>,
    pub(crate) pending: Option<PendingMove>,
    /// Models for which room is being made.
    expected: Option<Arc<[ModelNeed]>>,
    /// Grows whenever `resident`, `pending` or `expected` name other models, in any worker of the fleet.
    models_version: Arc<AtomicU64>,
    /// Runs that hold a place.
    pub(crate) runs: BTreeMap<StepKey, Share>,
    /// Paused and suspended runs inside: they hold no place, and their models may be evicted once they are withdrawn.
    pub(crate) parked: BTreeMap<StepKey, Uses>,
    /// Whether a run that must be alone holds a place.
    pub(crate) runs_alone: bool,
    /// Models that it could not load, why, and when.
    pub(crate) unusable: HashMap<ModelId, (Error, Duration)>,
    /// The demand for which it is kept free.
    pub(crate) reserved_for: Option<Reservation>,
    /// Memory of its process as of its last beat.
    pub(crate) used_bytes: u64,
    /// Memory of its process when it had no run: the base that peaks are counted from.
    pub(crate) idle_bytes: Option<u64>,
    /// When it last beat.
    pub(crate) last_beat: Option<Duration>,
    /// Bytes that an unload did not give back; recycling the process does.
    pub(crate) unreturned_bytes: u64,
    /// Whether it was asked to recycle and has not gone yet.
    pub(crate) recycling: bool,
    /// Milliseconds that each run had so far when the device is shared equally.
    shared_ms: f64,
    shared_at: Duration,
}

impl Uses {
    fn needs(&self, model: &ModelId) -> bool {
        self.models.iter().any(|need| need.model == *model)
    }
}

impl Worker {
    pub(super) fn new(spec: WorkerSpec, models_version: &Arc<AtomicU64>) -> Self {
        Self {
            precision: Precision::of(&spec.device_kind),
            process: if spec.starts_when_needed {
                ProcessState::Asleep
            } else {
                ProcessState::Starting
            },
            spec,
            incarnation: 0,
            pid: None,
            hello: None,
            ready: None,
            capabilities: None,
            memory_features: MemoryFeatures::default(),
            last_exit: None,
            deaths: 0,
            resident: BTreeMap::new(),
            pending: None,
            expected: None,
            models_version: Arc::clone(models_version),
            runs: BTreeMap::new(),
            parked: BTreeMap::new(),
            runs_alone: false,
            unusable: HashMap::new(),
            reserved_for: None,
            used_bytes: 0,
            idle_bytes: None,
            last_beat: None,
            unreturned_bytes: 0,
            recycling: false,
            shared_ms: 0.0,
            shared_at: Duration::ZERO,
        }
    }

    /// The models that it has, is loading, or makes room for.
    pub(crate) fn models(&self) -> impl Iterator<Item = &ModelId> {
        let loads = self
            .pending
            .as_ref()
            .filter(|pending| matches!(pending.kind, MoveKind::Load { .. }));
        let loads = loads.map(|pending| &pending.model);
        let expected = self.expected.iter().flat_map(|models| models.iter());
        let expected = expected.filter(|need| !self.resident.contains_key(&need.model));
        let others = loads.into_iter().chain(expected.map(|need| &need.model));
        self.resident.keys().chain(others)
    }

    /// Room is made for these models, unless it is being made for others already.
    pub(super) fn expect(&mut self, models: &Arc<[ModelNeed]>) {
        if self.expected.is_none() {
            self.models_change();
            self.expected = Some(Arc::clone(models));
        }
    }

    /// [`models`](Self::models) gives other models from now on.
    fn models_change(&self) {
        self.models_version.fetch_add(1, Ordering::Relaxed);
    }

    /// A load or unload begins.
    pub(crate) fn begin_move(&mut self, pending: PendingMove) {
        self.models_change();
        if matches!(pending.kind, MoveKind::Load { .. }) {
            self.expected = None;
        }
        self.pending = Some(pending);
    }

    /// The load or unload under way has ended, if it is this one.
    pub(crate) fn end_move(&mut self, id: &LoadId) -> Option<PendingMove> {
        self.models_change();
        self.pending.take_if(|pending| pending.id == *id)
    }

    /// A model is resident from now on.
    pub(crate) fn hold(&mut self, model: ModelId, resident: ResidentModel) {
        self.models_change();
        self.resident.insert(model, resident);
    }

    /// A model is resident no longer.
    pub(crate) fn drop_model(&mut self, model: &ModelId) {
        self.models_change();
        self.resident.remove(model);
    }

    /// Its process is dead: nothing is resident, and what was on its way is lost.
    pub(crate) fn lose_models(&mut self) -> Option<PendingMove> {
        self.models_change();
        self.resident.clear();
        self.expected = None;
        self.pending.take()
    }

    /// How soon it takes work.
    pub(crate) fn readiness(&self) -> Readiness {
        match (self.process, &self.last_exit) {
            (ProcessState::Ready, _) if self.recycling => Readiness::Starting,
            (ProcessState::Ready, _) => Readiness::Ready,
            (ProcessState::Asleep, _) => Readiness::Asleep,
            (ProcessState::Starting, None) => Readiness::Starting,
            // One that was ready and died is back in seconds; one that dies at its start may never be.
            (ProcessState::Starting | ProcessState::Gone, Some(_)) if self.deaths <= 1 => Readiness::Starting,
            (ProcessState::Starting | ProcessState::Gone, Some(_)) | (ProcessState::Gone, None) => {
                Readiness::Broken
            }
        }
    }

    /// Why it does not take work now, for people.
    pub(crate) fn not_ready(&self) -> String {
        match (self.process, &self.last_exit) {
            (ProcessState::Ready, _) => "its process is being replaced to free its memory".to_owned(),
            (ProcessState::Asleep, _) => "it is not started".to_owned(),
            (ProcessState::Starting, None) => "it is starting".to_owned(),
            (ProcessState::Starting | ProcessState::Gone, Some(exit)) => {
                format!("it starts again after {exit}")
            }
            (ProcessState::Gone, None) => "it is gone".to_owned(),
        }
    }

    /// Whether it goes on with its runs while it loads.
    pub(crate) fn loads_beside_runs(&self) -> bool {
        self.capabilities
            .as_ref()
            .is_some_and(|can| can.loads_beside_runs)
    }

    /// Whether it is kept free for a demand.
    pub(super) fn is_reserved_for(&self, demand: DemandId) -> bool {
        self.reserved_for
            .is_some_and(|reserved| reserved.demand == demand)
    }

    /// Whether it can pause a run at a step.
    pub(crate) fn pauses(&self) -> bool {
        self.capabilities.as_ref().is_some_and(|can| can.pauses)
    }

    /// Gives a run a place.
    pub(crate) fn admit(&mut self, step: StepKey, uses: Uses, estimated_ms: f64, now: Duration) {
        if self.expected.take().is_some() {
            self.models_change();
        }
        self.share_until(now);
        let began_at_ms = self.shared_ms;
        self.parked.remove(&step);
        let share = Share {
            uses,
            estimated_ms,
            began_at_ms,
        };
        self.runs.insert(step, share);
    }

    /// Takes a run's place back and keeps it parked in the worker; the device time that it had, in milliseconds.
    pub(crate) fn park(&mut self, step: StepKey, now: Duration) -> Option<f64> {
        let uses = self.runs.get(&step)?.uses.clone();
        let had_ms = self.dismiss(step, now);
        self.parked.insert(step, uses);
        had_ms
    }

    /// Whether a run that holds a place needs a model.
    pub(crate) fn is_in_use(&self, model: &ModelId) -> bool {
        let mut runs = self.runs.values();
        runs.any(|share| share.uses.needs(model))
    }

    /// Parked runs that need a model.
    pub(crate) fn parked_on<'a>(&'a self, model: &'a ModelId) -> impl Iterator<Item = StepKey> + 'a {
        let parked = self.parked.iter().filter(|(_, uses)| uses.needs(model));
        parked.map(|(step, _)| *step)
    }

    /// Whether a run that holds a place uses a set of LoRAs.
    pub(crate) fn uses_adapters(&self, set: &str) -> bool {
        let mut sets = self
            .runs
            .values()
            .filter_map(|share| share.uses.adapters.as_ref());
        sets.any(|need| *need.set == *set)
    }

    /// Takes a run's place back; the device time that it had, in milliseconds.
    pub(crate) fn dismiss(&mut self, step: StepKey, now: Duration) -> Option<f64> {
        self.share_until(now);
        let share = self.runs.remove(&step)?;
        if self.runs.is_empty() {
            self.runs_alone = false;
        }
        Some(self.shared_ms - share.began_at_ms)
    }

    /// Device time that its runs still need, in milliseconds.
    pub(crate) fn backlog_ms(&self, now: Duration) -> f64 {
        let shared_ms = self.shared_ms + self.since_shared_ms(now);
        self.runs
            .values()
            .map(|share| {
                let left_ms = share.estimated_ms - (shared_ms - share.began_at_ms);
                // One that is late may end at any moment; the later it is, the less its estimate says.
                left_ms.max(share.estimated_ms * 0.1).max(-left_ms)
            })
            .sum()
    }

    fn since_shared_ms(&self, now: Duration) -> f64 {
        let passed_ms = now.saturating_sub(self.shared_at).as_secs_f64() * 1e3;
        passed_ms / self.runs.len().max(1) as f64
    }

    fn share_until(&mut self, now: Duration) {
        self.shared_ms += self.since_shared_ms(now);
        self.shared_at = now;
    }
}
