//! From what the dispatcher shows to the facts of the verdicts.

use super::facts::{MemoryFacts, WorkerFacts, WorkerHealth};
use crate::device::{DeviceView, WorkerView};
use crate::memory::MemoryView;

/// Every worker of every device.
pub(crate) fn workers(devices: &[DeviceView]) -> Vec<WorkerFacts> {
    let workers = devices
        .iter()
        .flat_map(|view| view.workers.iter().map(move |worker| (view, worker)));
    workers
        .map(|(view, worker)| of(&view.device.id, worker))
        .collect()
}

fn of(device: &str, worker: &WorkerView) -> WorkerFacts {
    let health = match worker.state.as_str() {
        "asleep" => WorkerHealth::Asleep,
        "starting" => WorkerHealth::Starting,
        "ready" => WorkerHealth::Ready,
        _ => WorkerHealth::Gone,
    };
    let engine = worker.capabilities.as_ref().map(|can| can.engine.clone());
    WorkerFacts {
        name: worker.name.clone(),
        device: device.to_owned(),
        health,
        beat_age_ms: worker.last_beat_ms_ago,
        engine: engine.filter(|_| health == WorkerHealth::Ready),
        last_exit: worker.last_exit.clone(),
    }
}

/// Every ledger, with the reading that is in its view.
pub(crate) fn memory(views: &[MemoryView], now_ms: u64) -> Vec<MemoryFacts> {
    let facts = views.iter().map(|view| MemoryFacts {
        device: view.device.clone(),
        budget_bytes: view.budget_bytes,
        leased_bytes: view.leased_bytes,
        worker_used_bytes: view.worker_used_bytes,
        free_bytes: view.free_bytes,
        read_age_ms: view.read_at_ms.map(|at_ms| now_ms.saturating_sub(at_ms)),
    });
    facts.collect()
}
