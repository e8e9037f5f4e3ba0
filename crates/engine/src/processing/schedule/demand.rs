//! What a step asks of an executor. Equal demands are kept once, and their steps share a lane. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::Error;
use crate::inference::{AdapterNeed, MissingFeature, ModelNeed, Needs, Plan, WorkShape};
use crate::model::Catalogue;

/// What a step asks of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Demand {
    /// What the worker must be able to do.
    pub(crate) needs: Arc<Needs>,
    /// The models that must be resident together, the one that makes the pictures first.
    pub(crate) models: Arc<[ModelNeed]>,
    /// The LoRAs that are laid on the first of them.
    pub(crate) adapters: Option<Arc<AdapterNeed>>,
    /// What decides the memory that it takes beside the weights.
    pub(crate) shape: Arc<WorkShape>,
    /// Whether it must be the only run in its worker: after a crash of its worker, or after a lack of memory.
    pub(crate) exclusive: bool,
    /// Workers that had it and reported that they cannot do it, and why.
    pub(crate) refused_by: Vec<(String, MissingFeature)>,
}

impl Demand {
    /// Of a plan. An error where its models are no longer in the catalogue.
    pub(crate) fn of(plan: &Plan, catalogue: &Catalogue) -> Result<Self, Error> {
        let needs = Needs::of(plan, catalogue)?;
        Ok(Self {
            shape: Arc::new(WorkShape::of(plan, needs.family())),
            needs: Arc::new(needs),
            models: ModelNeed::all_of(plan, catalogue)?.into(),
            adapters: AdapterNeed::of(plan, catalogue)?.map(Arc::new),
            exclusive: false,
            refused_by: Vec::new(),
        })
    }

    /// Of a step that will not be run.
    pub(crate) fn nothing() -> Self {
        Self {
            needs: Arc::new(Needs::nothing()),
            models: Arc::from([]),
            adapters: None,
            shape: Arc::new(WorkShape::nothing()),
            exclusive: false,
            refused_by: Vec::new(),
        }
    }
}

/// One demand, as long as a step has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct DemandId(u32);

impl DemandId {
    /// Of a demand that no step has: for questions.
    pub(crate) fn none() -> Self {
        Self(u32::MAX)
    }

    /// Its index in tables that are kept beside [`Demands`].
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// The demands of all live steps, each once.
#[derive(Debug, Default)]
pub(crate) struct Demands {
    entries: Vec<Option<Entry>>,
    by_value: HashMap<Arc<Demand>, DemandId>,
    free: Vec<DemandId>,
}

#[derive(Debug)]
struct Entry {
    demand: Arc<Demand>,
    users: usize,
}

impl Demands {
    /// The id of a demand, which is kept until it was released as often as it was taken.
    pub(crate) fn intern(&mut self, demand: Demand) -> DemandId {
        if let Some(id) = self.by_value.get(&demand).copied() {
            if let Some(Some(entry)) = self.entries.get_mut(id.index()) {
                entry.users += 1;
            }
            return id;
        }
        let demand = Arc::new(demand);
        let id = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            DemandId(self.entries.len() as u32 - 1)
        });
        if let Some(place) = self.entries.get_mut(id.index()) {
            *place = Some(Entry {
                demand: Arc::clone(&demand),
                users: 1,
            });
        }
        self.by_value.insert(demand, id);
        id
    }

    /// Gives one use back; says whether it was the last.
    pub(crate) fn release(&mut self, id: DemandId) -> bool {
        let Some(place) = self.entries.get_mut(id.index()) else {
            return false;
        };
        let Some(entry) = place else { return false };
        entry.users -= 1;
        if entry.users > 0 {
            return false;
        }
        self.by_value.remove(&entry.demand);
        *place = None;
        self.free.push(id);
        true
    }

    /// A demand that somebody uses.
    pub(crate) fn get(&self, id: DemandId) -> Option<&Arc<Demand>> {
        self.entries
            .get(id.index())
            .and_then(Option::as_ref)
            .map(|entry| &entry.demand)
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_value.len()
    }
}
