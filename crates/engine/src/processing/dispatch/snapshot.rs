//! The live state as people see it.

use std::collections::BTreeMap;

use super::core::{Core, Now, StepView};
use crate::device::{Device, DeviceView, WorkerView};
use crate::health::RunFacts;
use crate::memory::weight_cache::WeightCache;
use crate::memory::{LeaseView, Ledger, MemoryView, Owner};
use crate::processing::job::{JobRecord, JobState, JobView};
use crate::processing::schedule::{ProcessState, Worker};

/// Devices, memory and health of one moment.
pub(crate) struct Snapshot {
    pub(crate) devices: Vec<DeviceView>,
    pub(crate) memory: Vec<MemoryView>,
    pub(crate) rest: Figures,
}

/// What the verdict on the engine's health needs beside devices and memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    /// State to number of live jobs.
    pub(crate) jobs: BTreeMap<String, usize>,
    /// Models that some worker could not load.
    pub(crate) load_failures: usize,
    /// How the last runs ended.
    pub(crate) runs: RunFacts,
}

pub(super) fn take(
    core: &Core,
    devices: &[Device],
    cache: &WeightCache,
    runs: RunFacts,
    now: Now,
) -> Snapshot {
    let totals = core.totals();
    let jobs = totals
        .by_state
        .iter()
        .map(|(state, count)| ((*state).to_owned(), *count));
    Snapshot {
        devices: devices
            .iter()
            .map(|device| device_view(core, device, now))
            .collect(),
        memory: devices
            .iter()
            .map(|device| memory_view(core, device, cache))
            .collect(),
        rest: Figures {
            jobs: jobs.collect(),
            load_failures: core.unusable_models().count(),
            runs,
        },
    }
}

/// The workers of a device, the preferred one first.
fn workers_of<'a>(core: &'a Core, device: &Device) -> Vec<&'a Worker> {
    let fleet = core.fleet();
    let is_its = |worker: &&Worker| {
        fleet
            .device(worker.spec.device)
            .is_some_and(|memory| memory.id == device.id)
    };
    let mut workers: Vec<&Worker> = fleet.workers.iter().filter(is_its).collect();
    workers.sort_by_key(|worker| worker.spec.rank);
    workers
}

fn device_view(core: &Core, device: &Device, now: Now) -> DeviceView {
    let workers = workers_of(core, device);
    let is_ready = |worker: &&Worker| worker.process == ProcessState::Ready;
    let state = if workers.is_empty() {
        "unserved"
    } else if workers.iter().any(|worker| !worker.runs.is_empty()) {
        "busy"
    } else if workers.iter().any(is_ready) {
        "available"
    } else {
        "offline"
    };
    DeviceView {
        device: device.clone(),
        state: state.into(),
        workers: workers
            .into_iter()
            .map(|worker| worker_view(core, worker, now))
            .collect(),
    }
}

fn memory_view(core: &Core, device: &Device, cache: &WeightCache) -> MemoryView {
    let mut memories = core.fleet().devices.iter();
    let ledger = memories
        .find(|memory| memory.id == device.id)
        .map(|memory| &memory.ledger);
    let leases = ledger.into_iter().flat_map(Ledger::leases).map(|(owner, bytes)| {
        let (kind, of) = match owner {
            Owner::Weights { model, .. } => ("weights", model.to_string()),
            Owner::Adapters { set, .. } => ("adapters", set.to_string()),
            Owner::WorkingSet(job) => ("working_set", job.to_string()),
            Owner::Unreturned { worker } => ("unreturned", worker.clone()),
        };
        LeaseView {
            id: owner.to_string(),
            kind: kind.into(),
            owner: of,
            bytes,
        }
    });
    MemoryView {
        device: device.id.clone(),
        total_bytes: device.total_bytes,
        free_bytes: device.free_bytes,
        read_at_ms: device.read_at_ms,
        budget_bytes: ledger.map_or(0, Ledger::budget_bytes),
        leased_bytes: ledger.map_or(0, Ledger::leased_bytes),
        high_water_bytes: ledger.map_or(0, Ledger::high_water_bytes),
        worker_used_bytes: workers_of(core, device)
            .iter()
            .map(|worker| worker.used_bytes)
            .sum(),
        leases: leases.collect(),
        // It is of the host, which is the processor's device.
        cache: (device.kind == "cpu").then(|| cache.view()).flatten(),
    }
}

/// A job from its record, with how it stands if it is live.
pub(crate) fn view_of(record: JobRecord, live: Option<StepView>) -> JobView {
    let mut view = JobView {
        id: record.id,
        state: record.state,
        reason: None,
        reason_code: None,
        position: None,
        class: record.class,
        priority: record.priority,
        client: record.client,
        attempts: record.attempts,
        model: record.plan.model.clone(),
        plan: record.plan,
        progress: None,
        result: record.result,
        error: record.error,
        created_at_ms: record.created_at_ms,
        started_at_ms: record.started_at_ms,
        finished_at_ms: record.finished_at_ms,
    };
    // An end that is in the journal is true, also while the dispatcher has yet to hear of it.
    if let Some(live) = live.filter(|_| !view.state.is_final()) {
        view.state = live.state;
        view.reason = live.reason;
        view.reason_code = live.reason_code.map(str::to_owned);
        view.position = live.position;
        view.attempts = live.attempts;
        view.progress = live.progress;
        view.started_at_ms = live.started_at_ms.or(view.started_at_ms);
    }
    view
}

/// A job as it was told: while the dispatcher has it, its end in the journal is not told yet.
pub(crate) fn view_as_told(mut record: JobRecord, live: Option<StepView>) -> JobView {
    if live.is_some() && record.state.is_final() {
        record.state = JobState::Finishing;
        record.result = None;
        record.error = None;
        record.finished_at_ms = None;
    }
    view_of(record, live)
}

fn worker_view(core: &Core, worker: &Worker, now: Now) -> WorkerView {
    let jobs = worker.runs.keys().chain(worker.parked.keys());
    WorkerView {
        name: worker.spec.name.to_string(),
        runtime: worker.spec.runtime.clone(),
        state: match worker.process {
            ProcessState::Asleep => "asleep",
            ProcessState::Starting => "starting",
            ProcessState::Ready => "ready",
            ProcessState::Gone => "gone",
        }
        .into(),
        pid: worker.pid,
        last_beat_ms_ago: worker
            .last_beat
            .map(|at| now.since_start.saturating_sub(at).as_millis() as u64),
        incarnation: worker.incarnation,
        last_exit: worker.last_exit.clone(),
        program: worker.hello.as_ref().map(|hello| hello.worker.clone()),
        capabilities: worker.capabilities.as_deref().cloned(),
        resident: worker.resident.keys().cloned().collect(),
        jobs: jobs
            .filter_map(|key| core.job_of(*key))
            .map(ToString::to_string)
            .collect(),
    }
}
