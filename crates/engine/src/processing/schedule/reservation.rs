//! Workers kept free for those that have waited long enough for others to give something up. Pure.

use std::time::Duration;

use super::demand::DemandId;
use super::estimates::Estimates;
use super::fleet::{Fleet, WorkerId};
use super::lanes::Lanes;
use super::worker::Reservation;
use crate::inference::ModelNeed;

/// A wait earns a reservation after so many times what the switch to it costs …
pub(super) const SWITCHES_WAITED: f64 = 4.0;
/// … within these bounds.
const RESERVE_AFTER_LEAST: Duration = Duration::from_secs(1);
const RESERVE_AFTER_MOST: Duration = Duration::from_secs(30);

/// How long an ask waits before a worker is reserved for it: a multiple of what the switch to it costs, so that switching
/// to and fro never takes more than a fixed share of the time.
pub(super) fn reserve_after(
    fleet: &Fleet,
    estimates: &Estimates,
    id: WorkerId,
    models: &[ModelNeed],
) -> Duration {
    let Some(worker) = fleet.worker(id) else {
        return RESERVE_AFTER_LEAST;
    };
    let missing = models
        .iter()
        .filter(|need| !worker.resident.contains_key(&need.model));
    let load_ms: f64 = missing
        .map(|need| estimates.load_ms(&worker.spec.kind, need.weights_bytes(worker.precision)))
        .sum();
    Duration::from_secs_f64((SWITCHES_WAITED * load_ms / 1e3).min(RESERVE_AFTER_MOST.as_secs_f64()))
        .max(RESERVE_AFTER_LEAST)
}

/// Keeps a worker free for a demand, unless it is kept free for another or the demand has one already. Says whether it is
/// from now on.
pub(super) fn reserve(fleet: &mut Fleet, id: WorkerId, demand: DemandId, is_critical: bool) -> bool {
    if fleet.workers.iter().any(|worker| worker.is_reserved_for(demand)) {
        return false;
    }
    let is_taken = fleet
        .worker(id)
        .is_none_or(|worker| fleet.is_reserved_for_another(worker, demand, false));
    if let Some(worker) = fleet.worker_mut(id)
        && !is_taken
    {
        worker.reserved_for = Some(Reservation { demand, is_critical });
        return true;
    }
    false
}

/// Keeps the worker that makes room for a critical step free for it, whatever it was kept free for before: what was paused
/// there must not go on in its stead.
pub(super) fn keep_for(fleet: &mut Fleet, id: WorkerId, demand: DemandId) {
    unreserve(fleet, demand);
    if let Some(worker) = fleet.worker_mut(id) {
        worker.reserved_for = Some(Reservation {
            demand,
            is_critical: true,
        });
    }
}

/// What was reserved for a demand is open to all again. Says whether anything was.
pub(crate) fn unreserve(fleet: &mut Fleet, demand: DemandId) -> bool {
    unreserve_where(fleet, |of| of == demand)
}

/// Nothing is kept free for demands of which no step waits any more: they started elsewhere, ended, or are paused. Says
/// whether anything was.
pub(crate) fn unreserve_unwanted(fleet: &mut Fleet, lanes: &Lanes) -> bool {
    unreserve_where(fleet, |demand| lanes.waiting_with(demand) == 0)
}

fn unreserve_where(fleet: &mut Fleet, is_given_up: impl Fn(DemandId) -> bool) -> bool {
    let mut was_reserved = false;
    for worker in &mut fleet.workers {
        let given_up = worker.reserved_for.take_if(|of| is_given_up(of.demand));
        was_reserved |= given_up.is_some();
    }
    was_reserved
}
