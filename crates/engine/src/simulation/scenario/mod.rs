//! The scenarios, each with its own bound and its verdict.

mod fairness;
mod makespan;
mod models;
mod waiting;

use std::time::Duration;

use super::workload::{DeviceSpec, Model};
use super::world::{Watch, World};
use super::{Extent, Report};

/// Writes its figures down.
type Scenario = fn(Extent, &mut Report);

/// By name, in the order of the table.
pub(super) const ALL: &[(&str, Scenario)] = &[
    ("one_model", makespan::one_model),
    ("mixed_models", makespan::mixed_models),
    ("mixed_speeds", makespan::mixed_speeds),
    ("many_clients", makespan::many_clients),
    ("suspects", makespan::suspects),
    ("steady_and_in_bursts", makespan::steady_and_in_bursts),
    ("two_in_turn_on_two_devices", models::two_in_turn_on_two_devices),
    ("copied_to_an_idle_device", models::copied_to_an_idle_device),
    ("second_beside_a_stream", models::second_beside_a_stream),
    ("three_classes", fairness::three_classes),
    ("clients_of_different_rates", fairness::clients_of_different_rates),
    ("large_beside_small", waiting::large_beside_small),
    ("critical_pre_empts", waiting::critical_pre_empts),
];

/// The most that a makespan may be above its bound.
const MOST: f64 = 1.1;
/// A model of the usual size, and the usual places.
const MODEL_BYTES: u64 = 4 << 30;
const PLACES: u32 = 4;

/// A device with room for `rooms` models of the usual size.
fn device(rooms: u64) -> DeviceSpec {
    DeviceSpec::with_room(rooms, MODEL_BYTES, PLACES, 640)
}

fn models(count: usize) -> Vec<Model> {
    // Slower and faster than the scheduler's first guess.
    let unit_ms = |index: usize| [60.0, 25.0, 100.0, 12.0][index % 4];
    (0..count)
        .map(|index| Model::new(&format!("model-{index}"), MODEL_BYTES, unit_ms(index)))
        .collect()
}

fn seconds(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 10.0 {
        format!("{seconds:.2} s")
    } else {
        format!("{seconds:.0} s")
    }
}

/// The verdict on a makespan.
fn judge<W: Watch>(report: &mut Report, what: String, world: &World<W>, bound: Duration) {
    judge_by(report, what, world, bound, MOST);
}

/// The same with another target.
fn judge_by<W: Watch>(report: &mut Report, what: String, world: &World<W>, bound: Duration, most: f64) {
    check(report, &what, world);
    let ratio = world.makespan().as_secs_f64() / bound.as_secs_f64();
    report.law(
        "Makespan",
        what.clone(),
        format!(
            "{ratio:.3} × bound ({} against {}, {} loads)",
            seconds(world.makespan()),
            seconds(bound),
            world.loads()
        ),
        format!("≤ {most}"),
        ratio <= most,
    );
    report.ratios.push((what, ratio));
}

/// Nothing was lost, and no rule of the protocol was broken. Only what is wrong is written down.
fn check<W: Watch>(report: &mut Report, what: &str, world: &World<W>) {
    let mut faults = world.faults();
    if let Some(first) = faults.first_mut() {
        let first = std::mem::take(first);
        report.law(
            "Faults",
            what,
            format!("{} faults: {first}", faults.len()),
            "none",
            false,
        );
    }
}

/// Every job has ended.
fn check_ends<W: Watch>(report: &mut Report, what: &str, world: &World<W>) {
    let (ended, all) = (world.ended, world.jobs.len());
    if ended != all {
        report.law(
            "Faults",
            what,
            format!("{ended} of {all} jobs have ended"),
            "all",
            false,
        );
    }
}
