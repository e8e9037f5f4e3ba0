//! What a driver is made of, and how it begins.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, watch};

use super::Driver;
use crate::artifact_cache::ArtifactCache;
use crate::device::Device;
use crate::event::EventLog;
use crate::health::RunFacts;
use crate::inference::Abilities;
use crate::memory::weight_cache::WeightCache;
use crate::memory::{Ledger, Peaks};
use crate::model::Catalogue;
use crate::processing::admission::Gate;
use crate::processing::dispatch::core::{Core, CoreParts};
use crate::processing::dispatch::message::Internal;
use crate::processing::dispatch::weights::Weights;
use crate::processing::schedule::{DeviceId, DeviceMemory, Fleet, WorkerSpec};
use crate::store::{Artifacts, Store};
use crate::worker::{WorkerConfig, WorkerEvent, WorkerHandle};

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
    /// Where pictures wait for those who ask for them at once.
    pub(crate) artifact_cache: ArtifactCache,
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
    pub(super) takes_segments: bool,
    /// `None` while it is asleep.
    pub(super) handle: Option<WorkerHandle>,
}

impl Driver {
    pub(super) fn new(parts: DriverParts, internal: mpsc::UnboundedSender<Internal>) -> Self {
        let DriverParts {
            store,
            artifacts,
            artifact_cache,
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
            artifact_cache,
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
}
