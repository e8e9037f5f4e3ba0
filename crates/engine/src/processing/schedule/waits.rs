//! What is known of the asks that wait from one pass to the next, and which of them are worth another look. Pure.

use std::time::Duration;

use calotype_protocol::ModelId;
use rustc_hash::{FxHashMap, FxHashSet};

use super::decide::World;
use super::demand::DemandId;
use super::fleet::{Fleet, WorkerId};
use super::lanes::Ask;
use super::reason::WaitReason;
use super::worker::Worker;
use crate::inference::ModelNeed;
use crate::processing::job::Class;

/// What is known of the asks that wait, kept from pass to pass.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    /// Why each blocked ask waits.
    pub(super) reasons: FxHashMap<Ask, WaitReason>,
    /// The asks that have waited for others to give something up.
    pub(super) starving: FxHashMap<Ask, Starving>,
}

/// An ask that waits for others to give something up.
#[derive(Debug)]
pub(super) struct Starving {
    /// Where.
    pub(super) worker: WorkerId,
    /// Since when.
    pub(super) since: Duration,
    /// When the worker is reserved for it.
    pub(super) due: Duration,
}

/// The models of the workers that take a run, where no worker can load.
pub(super) struct OpenModels<'a>(FxHashSet<&'a ModelId>);

impl<'a> OpenModels<'a> {
    pub(super) fn of(fleet: &'a Fleet, open: &[WorkerId]) -> Self {
        let workers = open.iter().filter_map(|id| fleet.worker(*id));
        Self(workers.flat_map(Worker::models).collect())
    }
}

impl Waits {
    /// Why the steps of an ask wait, as of the last pass.
    pub(crate) fn reason(&self, ask: Ask) -> Option<&WaitReason> {
        self.reasons.get(&ask)
    }

    /// How many asks it knows anything about.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.reasons.len() + self.starving.len()
    }

    /// A demand that nobody has any more.
    pub(crate) fn forget(&mut self, demand: DemandId) {
        self.reasons.retain(|(id, _), _| *id != demand);
        self.starving.retain(|(id, _), _| *id != demand);
    }
}

/// Whether an ask may have got another answer since the last pass. While no worker can load, one that waits goes on waiting as
/// long as its reason holds, unless a worker that has its models has a place.
pub(super) fn is_worth_a_look(
    world: &World<'_>,
    open: Option<&OpenModels<'_>>,
    class: Class,
    ask: Ask,
) -> bool {
    let Some(OpenModels(open)) = open.filter(|_| class != Class::Critical) else {
        return true;
    };
    let Some(reason) = world.waits.reason(ask) else {
        return true;
    };
    if !still_holds(world, ask, reason) {
        return true;
    }
    let waits_for_place = matches!(reason, WaitReason::PlacesTaken { .. });
    let is_in_open = |need: &ModelNeed| {
        // Where it has a place beside others it may wait to be loaded, which it may not for ever.
        open.contains(&need.model) || waits_for_place && world.fleet.holders(&need.model).is_empty()
    };
    let demand = world.demands.get(ask.0);
    !open.is_empty()
        && demand.is_some_and(|demand| demand.models.is_empty() || demand.models.iter().any(is_in_open))
}

/// Whether the reason for which an ask waits is true still, as long as no worker can load.
fn still_holds(world: &World<'_>, ask: Ask, reason: &WaitReason) -> bool {
    let fleet = &*world.fleet;
    let find = |name: &str| fleet.worker(fleet.find(name)?);
    match reason {
        WaitReason::PlacesTaken { .. } => true,
        WaitReason::WorkerMovesModels { worker } => {
            find(worker).is_some_and(|worker| worker.pending.is_some())
        }
        WaitReason::ModelLoads { worker, model } => {
            let pending = find(worker).and_then(|worker| worker.pending.as_ref());
            pending.is_some_and(|pending| pending.model == *model)
        }
        WaitReason::Reserved { worker } => {
            find(worker).is_some_and(|worker| fleet.is_reserved_for_another(worker, ask.0, false))
        }
        WaitReason::LoadWaitsForRuns { .. } | WaitReason::MemoryInUse { .. } => {
            let starving = world.waits.starving.get(&ask);
            starving.is_some_and(|starving| {
                let worker = fleet.worker(starving.worker);
                starving.due > world.now && worker.is_some_and(|worker| !worker.runs.is_empty())
            })
        }
        _ => false,
    }
}
