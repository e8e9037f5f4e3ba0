//! Workers and devices as the scheduler sees them: who is ready, what is resident, which runs hold places, and the ledger
//! of each device. Data and arithmetic; `dispatch::core` changes it, `placement` reads it.

use std::collections::HashMap;
use std::sync::Arc;

use calotype_protocol::ModelId;
use rustc_hash::FxHashMap;

use super::demand::DemandId;
use super::worker::{Readiness, Worker, WorkerSpec};
use crate::inference::ModelNeed;
use crate::memory::Ledger;

/// A worker, by its place in [`Fleet::workers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WorkerId(pub(crate) u32);

/// A device, by its place in [`Fleet::devices`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct DeviceId(pub(crate) u32);

/// A device and its ledger, which its workers share.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    pub(crate) id: String,
    pub(crate) ledger: Ledger,
}

/// What waits for a model.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    /// Waiting steps that need it.
    pub(crate) steps: usize,
    /// Device time that they take together, in milliseconds.
    pub(crate) ms: f64,
    /// Workers that have it or are loading it.
    pub(crate) holders: usize,
}

impl Wanted {
    /// The part of one holder.
    pub(crate) fn each_ms(self) -> f64 {
        self.ms / self.holders.max(1) as f64
    }
}

/// Every worker and device.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) workers: Vec<Worker>,
    pub(crate) devices: Vec<DeviceMemory>,
    by_name: HashMap<Arc<str>, WorkerId>,
    /// The workers of each device.
    of_device: Vec<Vec<WorkerId>>,
    /// Most runs a worker, whatever it says itself; 0 for its own figure.
    most_runs: usize,
    /// Grows when capabilities, budgets or working sets change: what was derived from them is derived anew.
    pub(crate) generation: u64,
    /// What waits for each model, as of the last pass of the scheduler.
    wanted: FxHashMap<ModelId, Wanted>,
    /// The workers that have each model or are loading it, in order.
    holders: FxHashMap<ModelId, Vec<WorkerId>>,
    /// The workers' `models_version`s added up, as `holders` was made from them.
    holders_version: u64,
}

impl Fleet {
    pub(crate) fn new(devices: Vec<DeviceMemory>, specs: Vec<WorkerSpec>, most_runs: usize) -> Self {
        let workers: Vec<Worker> = specs.into_iter().map(Worker::new).collect();
        let by_name = workers
            .iter()
            .zip(0..)
            .map(|(worker, index)| (Arc::clone(&worker.spec.name), WorkerId(index)))
            .collect();
        let mut of_device = vec![Vec::new(); devices.len()];
        for (worker, index) in workers.iter().zip(0..) {
            if let Some(workers) = of_device.get_mut(worker.spec.device.0 as usize) {
                workers.push(WorkerId(index));
            }
        }
        Self {
            workers,
            devices,
            by_name,
            of_device,
            most_runs,
            generation: 1,
            wanted: FxHashMap::default(),
            holders: FxHashMap::default(),
            holders_version: 0,
        }
    }

    pub(crate) fn find(&self, name: &str) -> Option<WorkerId> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn worker(&self, id: WorkerId) -> Option<&Worker> {
        self.workers.get(id.0 as usize)
    }

    pub(crate) fn worker_mut(&mut self, id: WorkerId) -> Option<&mut Worker> {
        self.workers.get_mut(id.0 as usize)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = WorkerId> + use<> {
        (0..self.workers.len() as u32).map(WorkerId)
    }

    pub(crate) fn device(&self, id: DeviceId) -> Option<&DeviceMemory> {
        self.devices.get(id.0 as usize)
    }

    /// The ledger that a worker leases from.
    pub(crate) fn ledger_mut(&mut self, worker: WorkerId) -> Option<&mut Ledger> {
        let device = self.worker(worker)?.spec.device;
        self.devices
            .get_mut(device.0 as usize)
            .map(|device| &mut device.ledger)
    }

    /// The ledger that a worker leases from.
    pub(crate) fn ledger(&self, worker: &Worker) -> Option<&Ledger> {
        self.device(worker.spec.device).map(|device| &device.ledger)
    }

    /// Whether a worker, or another of its device, is kept free for another demand: what is kept free is memory too, and
    /// workers of one device share it. A critical step heeds only what other critical steps have reserved.
    pub(super) fn is_reserved_for_another(
        &self,
        worker: &Worker,
        demand: DemandId,
        is_critical: bool,
    ) -> bool {
        let of_device = self.of_device.get(worker.spec.device.0 as usize);
        let workers = of_device.into_iter().flatten().filter_map(|id| self.worker(*id));
        workers
            .filter_map(|other| other.reserved_for)
            .any(|reserved| reserved.demand != demand && (reserved.is_critical || !is_critical))
    }

    /// What waits for a model.
    pub(crate) fn wanted(&self, model: &ModelId) -> Wanted {
        self.wanted.get(model).copied().unwrap_or_default()
    }

    /// What waits for the models of a worker: its part of it, where others hold them too.
    pub(super) fn queue_ms(&self, worker: &Worker) -> f64 {
        if self.wanted.is_empty() {
            return 0.0;
        }
        worker.models().map(|model| self.wanted(model).each_ms()).sum()
    }

    /// Brings the list of holders up to date, where a model has come or gone.
    pub(crate) fn index_models(&mut self) {
        let version = self.workers.iter().map(Worker::models_version).sum();
        if version == self.holders_version {
            return;
        }
        self.holders_version = version;
        self.holders.clear();
        for (worker, index) in self.workers.iter().zip(0..) {
            for model in worker.models() {
                // A model that is moved while it is resident is named twice.
                match self.holders.get_mut(model) {
                    Some(holders) if holders.last() == Some(&WorkerId(index)) => {}
                    Some(holders) => holders.push(WorkerId(index)),
                    None => {
                        self.holders.insert(model.clone(), vec![WorkerId(index)]);
                    }
                }
            }
        }
    }

    /// The workers that have a model or are loading it, in order; as of [`index_models`](Self::index_models).
    pub(crate) fn holders(&self, model: &ModelId) -> &[WorkerId] {
        self.holders.get(model).map_or(&[], Vec::as_slice)
    }

    /// Everything that the lists of holders say.
    #[cfg(test)]
    pub(crate) fn listed_holders(&self) -> impl Iterator<Item = (WorkerId, &ModelId)> {
        let lists = self.holders.iter();
        lists.flat_map(|(model, ids)| ids.iter().map(move |id| (*id, model)))
    }

    /// Counts anew what waits for each model: steps, and the device time that they take together.
    pub(super) fn count_wanted<'a>(&mut self, waiting: impl Iterator<Item = (&'a ModelId, usize, f64)>) {
        for wanted in self.wanted.values_mut() {
            *wanted = Wanted::default();
        }
        for (model, steps, ms) in waiting {
            if !self.wanted.contains_key(model) {
                self.wanted.insert(model.clone(), Wanted::default());
            }
            if let Some(wanted) = self.wanted.get_mut(model) {
                wanted.steps += steps;
                wanted.ms += ms;
            }
        }
        self.wanted.retain(|_, wanted| wanted.steps > 0);
        for (model, wanted) in &mut self.wanted {
            wanted.holders = self.holders.get(model).map_or(0, Vec::len);
        }
    }

    /// A step that waited for these models has started.
    pub(super) fn wants_less(&mut self, models: &[ModelNeed]) {
        for need in models {
            if let Some(wanted) = self.wanted.get_mut(&need.model) {
                let left = wanted.steps.saturating_sub(1);
                wanted.ms *= left as f64 / wanted.steps.max(1) as f64;
                wanted.steps = left;
            }
        }
    }

    /// The workers that can take a run, where none can load or be started now; `None` where one can, so that anything may
    /// begin there.
    pub(super) fn only_runs_in(&self) -> Option<Vec<WorkerId>> {
        let mut open = Vec::new();
        for (id, worker) in self.ids().zip(&self.workers) {
            match worker.readiness() {
                Readiness::Ready if worker.runs_alone || worker.runs.len() >= self.places(worker) => {}
                Readiness::Ready if worker.loads_beside_runs() => return None,
                Readiness::Ready if worker.pending.is_some() => {}
                Readiness::Ready if worker.runs.is_empty() => return None,
                Readiness::Ready => open.push(id),
                Readiness::Asleep => return None,
                Readiness::Starting | Readiness::Broken => {}
            }
        }
        Some(open)
    }

    /// Most runs in a worker at a time.
    pub(crate) fn places(&self, worker: &Worker) -> usize {
        let own = worker
            .capabilities
            .as_ref()
            .map_or(1, |can| can.max_batch.max(1) as usize);
        if self.most_runs == 0 {
            own
        } else {
            own.min(self.most_runs)
        }
    }
}
