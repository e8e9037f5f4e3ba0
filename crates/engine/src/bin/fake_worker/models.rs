//! Models in its hands: loaded in their time, in the way of the fault, and dropped with the jobs that need them.

use std::collections::BTreeMap;
use std::thread;
use std::time::Instant;

use calotype_protocol::{Failure, Load, LoadId, Loaded, MemoryReport, ModelId, Outcome, Up};

use crate::fault::Fault;
use crate::sleep_for_ever;
use crate::work::Worker;

/// Pieces in which a load that takes time makes progress.
const PIECES: u32 = 10;

impl Worker {
    /// Like the real workers it does nothing else until the load is over.
    pub(crate) fn load(&mut self, load: Load) {
        let Load {
            load,
            model,
            dtype: _,
            budget_bytes: _,
            plan: _,
        } = load;
        if self.options.fault == Fault::ModelLoad {
            let failure = Failure {
                outcome: Outcome::ModelLoad,
                message: "the file ends in the middle of a tensor".to_owned(),
                detail: Some("unet.safetensors: conv_in.weight".to_owned()),
            };
            self.pipe.say(Up::LoadFailed { load, failure });
            return;
        }
        let started = Instant::now();
        *self.state.since.lock().expect("no panic") = Some(started);
        let resident_bytes = self.options.bytes_of(&model.id);
        let pieces = if self.options.load.is_zero() { 2 } else { PIECES };
        for piece in 1..pieces {
            thread::sleep(self.options.load / pieces);
            self.pipe.say(Up::LoadProgress {
                load: load.clone(),
                done_bytes: resident_bytes / u64::from(pieces) * u64::from(piece),
                total_bytes: resident_bytes,
            });
            if self.options.fault == Fault::LoadHangs {
                sleep_for_ever();
            }
        }
        thread::sleep(self.options.load / pieces);
        *self.state.since.lock().expect("no panic") = None;
        self.resident.insert(model.id.clone(), resident_bytes);
        let read_ms = started.elapsed().as_secs_f64() * 1000.0;
        self.pipe.say(Up::Loaded(Loaded {
            load,
            model: model.id,
            resident_bytes,
            phases_ms: BTreeMap::from([("read".to_owned(), read_ms)]),
        }));
    }

    pub(crate) fn unload(&mut self, unload: LoadId, model: Option<&ModelId>) {
        let leaves = |id: &ModelId| model.is_none_or(|model| model == id);
        self.fail_jobs("the job's model was unloaded", |job| leaves(&job.work.model));
        let before = self.used_bytes();
        self.resident.retain(|resident, _| !leaves(resident));
        let freed_bytes = before - self.used_bytes();
        self.pipe.say(Up::Unloaded { unload, freed_bytes });
    }

    fn used_bytes(&self) -> u64 {
        self.resident.values().sum()
    }

    pub(crate) fn memory(&self) -> MemoryReport {
        let (total_bytes, used_bytes) = (self.options.total_bytes, self.used_bytes());
        MemoryReport {
            total_bytes,
            free_bytes: total_bytes.saturating_sub(used_bytes),
            used_bytes,
            peak_bytes: used_bytes,
            cached_bytes: 0,
        }
    }
}
