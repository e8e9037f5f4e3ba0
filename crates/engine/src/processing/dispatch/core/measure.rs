//! What a run took, as its worker measured it.

use std::collections::BTreeMap;
use std::sync::Arc;

use calotype_protocol::{Offload, RunResult};

use super::Core;
use super::message::{Effect, Then};
use crate::inference::{self};
use crate::memory::Owner;
use crate::processing::job::StepKey;
use crate::processing::schedule::WorkerId;
use crate::store::Write;

impl Core {
    /// Corrects the estimate by what the run took, where nothing else ran beside it.
    pub(super) fn measure(&mut self, key: StepKey, id: WorkerId, result: &RunResult) {
        let (Some(step), Some(worker)) = (self.steps.get(key), self.fleet.worker(id)) else {
            return;
        };
        let (Some(run), Some(demand)) = (&step.attempted, self.steps.demands.get(step.demand)) else {
            return;
        };
        let is_offloaded = |offload: Offload| offload != Offload::None;
        let mut residents = worker.resident.values();
        if run.was_accompanied || residents.any(|resident| is_offloaded(resident.residency.offload)) {
            return;
        }
        let base_bytes = if worker.spec.device_kind == "cpu" {
            worker.idle_bytes
        } else {
            // An accelerator's peak is of what is allocated: the weights, and what the run took.
            Some(worker.resident.values().map(|resident| resident.bytes).sum())
        };
        let Some(base_bytes) = base_bytes else { return };
        let adapters = demand.adapters.as_ref().map(|need| Owner::Adapters {
            worker: worker.spec.name.to_string(),
            set: Arc::clone(&need.set),
        });
        let ledger = self.fleet.ledger(worker);
        let lora_bytes = adapters.and_then(|owner| Some(ledger?.of(&owner))).unwrap_or(0);
        let took_bytes = result
            .peak_bytes
            .saturating_sub(base_bytes.saturating_add(lora_bytes));
        let shape = inference::peak_key(&demand.shape, &worker.spec.kind, run.slicing);
        if took_bytes > 0 && self.peaks.measured(&shape, took_bytes) {
            // Working sets are derived from peaks.
            self.fleet.generation += 1;
            let bytes = took_bytes;
            self.effects.push(Effect::Journal {
                writes: vec![Write::Peak { shape, bytes }],
                then: Then::Kept(Vec::new()),
            });
        }
    }
}

/// Milliseconds by phase, as a worker measured them.
pub(crate) fn worker_timings(result: &RunResult) -> BTreeMap<String, f64> {
    let phases = result.timings_ms.iter();
    phases
        .map(|(phase, ms)| (format!("{phase:?}").to_lowercase(), *ms))
        .collect()
}
