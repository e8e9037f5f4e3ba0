//! Workers and devices as the scheduler sees them: who is ready, what is resident, which runs hold places, and the ledger
//! of each device. Data and arithmetic; `dispatch::core` changes it, `placement` reads it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use calotype_protocol::ModelId;
use rustc_hash::FxHashMap;

use super::demand::{Demand, DemandId, Demands};
use super::lanes::Lanes;
use super::model_table::{ModelTable, Wanted};
use super::worker::{MoveKind, Readiness, Worker, WorkerSpec};
use crate::inference::ModelNeed;
use crate::memory::Ledger;
use crate::processing::job::StepKey;

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

/// Every worker and device.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) workers: Vec<Worker>,
    pub(crate) devices: Vec<DeviceMemory>,
    by_name: FxHashMap<Arc<str>, WorkerId>,
    /// The workers of each device.
    of_device: Vec<Vec<WorkerId>>,
    /// Most runs a worker, whatever it says itself; 0 for its own figure.
    most_runs: usize,
    /// Grows when capabilities, budgets or working sets change: what was derived from them is derived anew.
    pub(crate) generation: u64,
    /// Who has each model, and what waits for it as of the last pass of the scheduler.
    models: ModelTable,
    /// Grows whenever a model comes to a worker or goes.
    models_version: Arc<AtomicU64>,
}

impl Fleet {
    pub(crate) fn new(devices: Vec<DeviceMemory>, specs: Vec<WorkerSpec>, most_runs: usize) -> Self {
        let models_version = Arc::new(AtomicU64::new(0));
        let workers = specs.into_iter().map(|spec| Worker::new(spec, &models_version));
        let workers: Vec<Worker> = workers.collect();
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
            models: ModelTable::default(),
            models_version,
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

    /// What unloads under way give back to a device, and one of the workers that unload.
    pub(super) fn coming_back(&self, device: DeviceId) -> (u64, Option<&Worker>) {
        let workers = self.workers.iter().filter(|worker| worker.spec.device == device);
        let unloads = workers.filter_map(|worker| {
            let pending = worker.pending.as_ref()?;
            let resident = worker.resident.get(&pending.model)?;
            matches!(pending.kind, MoveKind::Unload).then_some((worker, resident.bytes))
        });
        unloads.fold((0, None), |(sum, _), (worker, bytes)| {
            (sum.saturating_add(bytes), Some(worker))
        })
    }

    /// What waits for a model.
    pub(crate) fn wanted(&self, model: &ModelId) -> Wanted {
        self.models.wanted(model)
    }

    /// What waits for the models of a demand: the longest, as the part of each holder.
    pub(super) fn waits_ms(&self, demand: &Demand) -> f64 {
        let models = demand.models.iter();
        models
            .map(|need| self.wanted(&need.model).each_ms())
            .fold(0.0, f64::max)
    }

    /// What waits for the models of a worker: its part of it, where others hold them too.
    pub(super) fn queue_ms(&self, worker: &Worker) -> f64 {
        if !self.models.wants_anything() {
            return 0.0;
        }
        worker.models().map(|model| self.wanted(model).each_ms()).sum()
    }

    /// Grows whenever a model comes to a worker or goes.
    pub(crate) fn models_version(&self) -> u64 {
        self.models_version.load(Ordering::Relaxed)
    }

    /// Brings the lists of holders up to date, where a model has come or gone.
    pub(crate) fn index_models(&mut self) {
        let version = self.models_version();
        self.models.index(&self.workers, version);
    }

    /// The workers that have a model or are loading it, in order; as of [`index_models`](Self::index_models).
    pub(crate) fn holders(&self, model: &ModelId) -> &[WorkerId] {
        self.models.holders(model)
    }

    /// Room is made in a worker for these models: it counts as one of their holders until a load or
    /// a run begins there.
    pub(super) fn expect_models(&mut self, id: WorkerId, models: &Arc<[ModelNeed]>) {
        if let Some(worker) = self.worker_mut(id) {
            worker.expect(models);
        }
    }

    /// The longest time that waits for any model, as the part of each of its holders.
    pub(super) fn longest_ms(&self) -> f64 {
        self.models.longest_ms()
    }

    /// Everything that is known of the models.
    #[cfg(test)]
    pub(crate) fn models(&self) -> &ModelTable {
        &self.models
    }

    /// Brings up to date what waits for each model: of the demands that have changed, and of all now and then.
    pub(super) fn count_wanted(
        &mut self,
        lanes: &mut Lanes,
        demands: &Demands,
        step_ms: &dyn Fn(StepKey, &Demand) -> f64,
        now: Duration,
    ) {
        let mut changed = lanes.take_changed();
        if self.models.begins_anew(now) {
            changed = lanes.demands().collect();
        }
        for id in changed {
            let demand = demands.get(id).map(|demand| &**demand);
            let waiting = lanes.waiting_of(id).zip(demand);
            let (steps, ms) = waiting.map_or((0, 0.0), |(waiting, demand)| {
                let each_ms = step_ms(waiting.example, demand);
                (waiting.steps, each_ms * waiting.by_share)
            });
            self.models.count(id, demand, steps, ms);
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
