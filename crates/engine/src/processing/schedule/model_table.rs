//! What the scheduler knows of each model: the workers that have it, and what waits for it. Pure.
//!
//! Both are kept from pass to pass and brought up to date by what has changed: with a hundred demands in the queue it costs
//! more to count them anew than to decide.

use std::sync::Arc;
use std::time::Duration;

use calotype_protocol::ModelId;
use rustc_hash::FxHashMap;

use super::demand::{Demand, DemandId};
use super::fleet::WorkerId;
use super::worker::Worker;
use crate::inference::ModelNeed;

/// Estimates change while steps wait: what waits is counted anew after so long.
const COUNTED_FOR: Duration = Duration::from_secs(1);

/// What waits for a model.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    /// Waiting steps that need it.
    pub(crate) steps: usize,
    /// Device time that they take together, in milliseconds; that of each class counts by its share.
    pub(crate) ms: f64,
    /// Workers that have it, are loading it, or make room for it.
    pub(crate) holders: usize,
}

impl Wanted {
    /// The part of one holder.
    pub(crate) fn each_ms(self) -> f64 {
        self.ms / self.holders.max(1) as f64
    }
}

#[derive(Debug, Default)]
struct Entry {
    /// The workers that have the model or are loading it, in order.
    holders: Vec<WorkerId>,
    steps: usize,
    ms: f64,
}

impl Entry {
    fn wanted(&self) -> Wanted {
        Wanted {
            steps: self.steps,
            ms: self.ms,
            holders: self.holders.len(),
        }
    }
}

/// What of a demand's waiting steps was added to its models.
#[derive(Debug)]
struct Counted {
    models: Arc<[ModelNeed]>,
    steps: usize,
    ms: f64,
}

/// What is known of each model that a worker has or a waiting step needs.
#[derive(Debug, Default)]
pub(crate) struct ModelTable {
    entries: FxHashMap<ModelId, Entry>,
    /// How often a model had come to a worker or gone from one when the holders were listed.
    version: u64,
    /// What each demand has added to its models.
    counted: FxHashMap<DemandId, Counted>,
    /// When all demands were counted last.
    counted_at: Option<Duration>,
}

impl ModelTable {
    /// Takes the holders from the workers, where a model has come or gone.
    pub(super) fn index(&mut self, workers: &[Worker], version: u64) {
        if version == self.version {
            return;
        }
        self.version = version;
        for entry in self.entries.values_mut() {
            entry.holders.clear();
        }
        for (worker, index) in workers.iter().zip(0..) {
            for model in worker.models() {
                // A model that is moved while it is resident is named twice.
                if let Some(entry) = entry(&mut self.entries, model)
                    && entry.holders.last() != Some(&WorkerId(index))
                {
                    entry.holders.push(WorkerId(index));
                }
            }
        }
        self.entries
            .retain(|_, entry| !entry.holders.is_empty() || entry.steps > 0);
    }

    /// The workers that have a model or are loading it, in order.
    pub(super) fn holders(&self, model: &ModelId) -> &[WorkerId] {
        self.entries
            .get(model)
            .map_or(&[], |entry| entry.holders.as_slice())
    }

    /// What waits for a model.
    pub(super) fn wanted(&self, model: &ModelId) -> Wanted {
        self.entries
            .get(model)
            .map_or_else(Wanted::default, Entry::wanted)
    }

    /// The longest time that waits for any model, as the part of each of its holders.
    pub(super) fn longest_ms(&self) -> f64 {
        let each_ms = self.entries.values().map(|entry| entry.wanted().each_ms());
        each_ms.fold(0.0, f64::max)
    }

    /// Whether anything waits for any model.
    pub(super) fn wants_anything(&self) -> bool {
        !self.counted.is_empty()
    }

    /// Whether everything that waits is to be counted anew; the counts are empty then.
    pub(super) fn begins_anew(&mut self, now: Duration) -> bool {
        let is_fresh = |at: Duration| now.saturating_sub(at) < COUNTED_FOR;
        if self.counted_at.is_some_and(is_fresh) {
            return false;
        }
        self.counted_at = Some(now);
        self.counted.clear();
        self.entries.retain(|_, entry| {
            (entry.steps, entry.ms) = (0, 0.0);
            !entry.holders.is_empty()
        });
        true
    }

    /// Counts a demand: `steps` of it wait, which take `ms` of device time together.
    pub(super) fn count(&mut self, id: DemandId, demand: Option<&Demand>, steps: usize, ms: f64) {
        if let Some(before) = self.counted.remove(&id) {
            for need in before.models.iter() {
                if let Some(entry) = self.entries.get_mut(&need.model) {
                    entry.steps = entry.steps.saturating_sub(before.steps);
                    // What rounding left goes with the last step.
                    entry.ms = if entry.steps == 0 {
                        0.0
                    } else {
                        entry.ms - before.ms
                    };
                    if entry.steps == 0 && entry.holders.is_empty() {
                        self.entries.remove(&need.model);
                    }
                }
            }
        }
        let Some(demand) = demand.filter(|demand| steps > 0 && !demand.models.is_empty()) else {
            return;
        };
        for need in demand.models.iter() {
            if let Some(entry) = entry(&mut self.entries, &need.model) {
                entry.steps += steps;
                entry.ms += ms;
            }
        }
        let models = Arc::clone(&demand.models);
        self.counted.insert(id, Counted { models, steps, ms });
    }

    /// Everything that the lists of holders say.
    #[cfg(test)]
    pub(crate) fn listed_holders(&self) -> impl Iterator<Item = (WorkerId, &ModelId)> {
        let entries = self.entries.iter();
        entries.flat_map(|(model, entry)| entry.holders.iter().map(move |id| (*id, model)))
    }

    /// How many steps wait for each model.
    #[cfg(test)]
    pub(crate) fn wanted_steps(&self) -> impl Iterator<Item = (&ModelId, usize)> {
        let entries = self.entries.iter().filter(|(_, entry)| entry.steps > 0);
        entries.map(|(model, entry)| (model, entry.steps))
    }
}

fn entry<'a>(entries: &'a mut FxHashMap<ModelId, Entry>, model: &ModelId) -> Option<&'a mut Entry> {
    if !entries.contains_key(model) {
        entries.insert(model.clone(), Entry::default());
    }
    entries.get_mut(model)
}
