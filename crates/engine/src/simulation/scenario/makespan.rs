//! How long a fleet takes for work, beside the least that it could take.

use std::sync::Arc;
use std::time::Duration;

use super::{MODEL_BYTES, MOST, check_ends, device, judge, judge_by, models, seconds};
use crate::processing::Class;
use crate::simulation::workload::{Dice, Job, ms};
use crate::simulation::world::World;
use crate::simulation::{Extent, Report, bound};

/// A burst of one model on 1 to 1 024 equal devices.
pub(super) fn one_model(extent: Extent, report: &mut Report) {
    let fleets: &[(usize, usize)] = match extent {
        Extent::Quick => &[(1, 100), (2, 100), (8, 400)],
        Extent::Full => &[(1, 400), (2, 400), (8, 1_600), (64, 12_800), (1_024, 1_000_000)],
    };
    for (count, jobs) in fleets {
        let devices = vec![device(1); *count];
        let jobs = vec![Job::of(0); *jobs];
        let bound = bound::burst(&devices, &models(1), &jobs);
        let mut world = World::new(devices, models(1));
        let what = format!("{} jobs of one model on {count} devices", jobs.len());
        world.submit(jobs);
        world.run();
        check_ends(report, &what, &world);
        judge(report, what, &world, bound);
    }
}

/// The bound knows one load a device; a short run is mostly loads, of which each model needs some.
const MOST_OF_SHORT: f64 = 1.4;

/// A job of any of `kinds` models, the popular ones more often, in three sizes.
fn mixed_job(dice: &mut Dice, kinds: usize) -> Job {
    let edge = [384, 512, 640][dice.below(3)];
    let steps = 15 + dice.below(16) as u32;
    let class = [Class::Interactive, Class::Batch][dice.below(2)];
    let client: Arc<str> = format!("client-{}", dice.below(50)).into();
    Job::of(dice.zipf(kinds))
        .sized(edge, steps)
        .in_class(class)
        .by(&client)
}

fn most_of(extent: Extent) -> f64 {
    match extent {
        Extent::Quick => MOST_OF_SHORT,
        Extent::Full => MOST,
    }
}

/// Models by Zipf's law, room for two each.
pub(super) fn mixed_models(extent: Extent, report: &mut Report) {
    let (count, kinds, jobs) = match extent {
        Extent::Quick => (8, 8, 1_500),
        Extent::Full => (64, 20, 64_000),
    };
    let mut dice = Dice::new(1);
    let devices = vec![device(2); count];
    let jobs: Vec<Job> = (0..jobs).map(|_| mixed_job(&mut dice, kinds)).collect();
    let bound = bound::burst(&devices, &models(kinds), &jobs);
    let mut world = World::new(devices, models(kinds));
    let what = format!("{} jobs of {kinds} models on {count} devices, burst", jobs.len());
    world.submit(jobs);
    world.run();
    check_ends(report, &what, &world);
    judge_by(report, what, &world, bound, most_of(extent));
}

/// Devices of four speeds.
pub(super) fn mixed_speeds(extent: Extent, report: &mut Report) {
    let (count, jobs) = match extent {
        Extent::Quick => (8, 600),
        Extent::Full => (64, 6_400),
    };
    let mut devices = vec![device(1); count];
    for (index, device) in devices.iter_mut().enumerate() {
        device.speed = [1.0, 1.5, 2.0, 4.0][index % 4];
    }
    let jobs = vec![Job::of(0); jobs];
    let bound = bound::burst(&devices, &models(1), &jobs);
    let mut world = World::new(devices, models(1));
    let what = format!(
        "{} jobs on {count} devices, the fastest 4 × the slowest",
        jobs.len()
    );
    world.submit(jobs);
    world.run();
    check_ends(report, &what, &world);
    judge(report, what, &world, bound);
}

/// Each client has one job.
pub(super) fn many_clients(extent: Extent, report: &mut Report) {
    let (count, clients) = match extent {
        Extent::Quick => (8, 500),
        Extent::Full => (64, 10_000),
    };
    let devices = vec![device(1); count];
    let job = |index: usize| Job::of(0).by(&format!("client-{index}").into());
    let jobs: Vec<Job> = (0..clients).map(job).collect();
    let bound = bound::burst(&devices, &models(1), &jobs);
    let mut world = World::new(devices, models(1));
    let what = format!("{clients} clients with one job each on {count} devices");
    world.submit(jobs);
    world.run();
    check_ends(report, &what, &world);
    judge(report, what, &world, bound);
}

/// Jobs whose worker crashed must be alone; the others go on beside them.
pub(super) fn suspects(extent: Extent, report: &mut Report) {
    let (count, jobs) = match extent {
        Extent::Quick => (4, 400),
        Extent::Full => (16, 4_000),
    };
    let mut devices = vec![device(1); count];
    for device in &mut devices {
        // A lone run would lose the gain of batching, which is not the scheduler's doing.
        device.batching_gain = 0.0;
    }
    let jobs: Vec<Job> = (0..jobs)
        .map(|index| Job {
            is_suspect: index % 50 == 25,
            ..Job::of(0)
        })
        .collect();
    let bound = bound::burst(&devices, &models(1), &jobs);
    let mut world = World::new(devices, models(1));
    let what = format!("{} jobs on {count} devices, one in 50 must be alone", jobs.len());
    world.submit(jobs);
    world.run();
    check_ends(report, &what, &world);
    judge(report, what, &world, bound);
}

/// Work that arrives over time: Poisson at 95 % of what the fleet can do, and in bursts.
pub(super) fn steady_and_in_bursts(extent: Extent, report: &mut Report) {
    let (count, kinds, jobs) = match extent {
        Extent::Quick => (8, 8, 1_500),
        Extent::Full => (64, 20, 20_000),
    };
    let most = most_of(extent);
    arriving(
        report,
        (count, kinds, jobs),
        ("steady at 95 % of capacity", 1),
        most,
    );
    arriving(
        report,
        (count, kinds, jobs),
        ("bursts of 1 000 at 95 %", 1_000),
        most,
    );
    if extent == Extent::Full {
        arriving(
            report,
            (256, 20, 100_000),
            ("bursts of 10 000 at 95 %", 10_000),
            most,
        );
    }
}

fn arriving(
    report: &mut Report,
    (count, kinds, jobs): (usize, usize, usize),
    (how, burst): (&str, usize),
    most: f64,
) {
    let devices = vec![device(2); count];
    let models = models(kinds);
    let mut dice = Dice::new(2);
    let jobs: Vec<Job> = (0..jobs).map(|_| mixed_job(&mut dice, kinds)).collect();
    let mean_ms = bound::work_ms(&models, &jobs) / jobs.len() as f64;
    let capacity: f64 = devices.iter().map(|device| device.capacity()).sum();
    let pause_ms = mean_ms / (capacity * 0.95) * burst as f64;
    let mut at = Duration::ZERO;
    let mut arrivals = Vec::with_capacity(jobs.len());
    for (index, job) in jobs.into_iter().enumerate() {
        if index % burst == 0 && index > 0 {
            at += ms(dice.pause_ms(pause_ms));
        }
        arrivals.push((at, job));
    }
    let bound = bound::arrivals(&devices, &models, &arrivals);
    let what = format!(
        "{} jobs of {kinds} models on {count} devices, {how}",
        arrivals.len()
    );
    let mut world = World::new(devices, models);
    world.run_with(arrivals, Duration::MAX, |_, _| None);
    check_ends(report, &what, &world);
    let mut waits: Vec<Duration> = world.jobs.iter().map(|facts| facts.waited(world.now())).collect();
    waits.sort_unstable();
    let part = |part: f64| {
        waits
            .get((waits.len() as f64 * part) as usize)
            .copied()
            .unwrap_or_default()
    };
    judge_by(report, what, &world, bound, most);
    report.figure(
        "Makespan",
        format!(
            "… waiting there, p50, p99 and most ({} GiB a model)",
            MODEL_BYTES >> 30
        ),
        format!(
            "{}, {}, {}",
            seconds(part(0.5)),
            seconds(part(0.99)),
            seconds(waits.last().copied().unwrap_or_default())
        ),
    );
}
