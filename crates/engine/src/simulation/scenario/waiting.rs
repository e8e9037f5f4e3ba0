//! How long jobs wait that need what others have.

use std::sync::Arc;
use std::time::Duration;

use super::{MODEL_BYTES, PLACES, check, models, seconds};
use crate::processing::Class;
use crate::simulation::workload::{DeviceSpec, Job, ms};
use crate::simulation::world::World;
use crate::simulation::{Extent, Report};

const GROUP: &str = "Waiting";

/// A large picture needs nearly all the memory, while small ones come all the time.
pub(super) fn large_beside_small(extent: Extent, report: &mut Report) {
    let time = match extent {
        Extent::Quick => Duration::from_secs(60),
        Extent::Full => Duration::from_secs(1_000),
    };
    // Room for one large picture, or for small ones in all places.
    let device = DeviceSpec::with_room(1, MODEL_BYTES, 1, 1024);
    let device = DeviceSpec {
        places: PLACES,
        ..device
    };
    let models = models(1);
    let small: Arc<str> = "small".into();
    let small_job = Job::of(0).sized(384, 20).by(&small);
    let large_job = Job::of(0).sized(1024, 20).by(&"large".into());
    let small_ms = small_job.work_ms(&models[0]);
    let mut world = World::new(vec![device], models);
    world.submit((0..16).map(|_| small_job.clone()));
    world.submit_in(Duration::from_secs(10), large_job.clone());
    world.run_with([], time, |facts, _| {
        if facts.job.client == small {
            Some((Duration::ZERO, small_job.clone()))
        } else {
            Some((Duration::from_secs(10), large_job.clone()))
        }
    });
    let what = "a large job beside a stream of small ones, one device";
    check(report, what, &world);
    let large: Vec<Duration> = world
        .jobs
        .iter()
        .filter(|facts| facts.job.client != small)
        .map(|facts| facts.waited(world.now()))
        .collect();
    let most = large.iter().copied().max().unwrap_or(Duration::MAX);
    // It is reserved for after a second, and then the runs in it end.
    let bound = ms(1_000.0 + f64::from(PLACES) * small_ms + 100.0);
    report.law(
        GROUP,
        what,
        format!("waits at most {} ({} of them)", seconds(most), large.len()),
        format!("≤ {}", seconds(bound)),
        most <= bound,
    );
}

/// A critical job waits for one step of a run that makes room, and that run goes on afterwards.
pub(super) fn critical_pre_empts(extent: Extent, report: &mut Report) {
    let count = match extent {
        Extent::Quick => 5,
        Extent::Full => 100,
    };
    let device = super::device(1);
    let models = models(1);
    let long = Job::of(0).sized(640, 60).in_class(Class::Batch);
    let step_ms = long.work_ms(&models[0]) / 60.0 * f64::from(PLACES) / device.capacity();
    let mut world = World::new(vec![device], models);
    world.submit((0..PLACES as usize * 2).map(|_| long.clone()));
    let arrivals = (1..=count).map(|index| {
        let job = Job::of(0).in_class(Class::Critical);
        (ms(30_000.0 + 7_000.0 * f64::from(index)), job)
    });
    let end = ms(30_000.0 + 7_000.0 * f64::from(count));
    let arrivals: Vec<_> = arrivals.collect();
    world.run_with(arrivals, Duration::MAX, |facts, now| {
        (facts.job.class == Class::Batch && now < end).then(|| (Duration::ZERO, long.clone()))
    });
    let what = "a critical job on a device that is full";
    check(report, what, &world);
    super::check_ends(report, what, &world);
    let critical = world
        .jobs
        .iter()
        .filter(|facts| facts.job.class == Class::Critical);
    let most = critical
        .map(|facts| facts.waited(world.now()))
        .max()
        .unwrap_or(Duration::MAX);
    let bound = ms(step_ms + 10.0);
    report.law(
        GROUP,
        what,
        format!("waits at most {}", seconds(most)),
        format!("≤ {}, one step", seconds(bound)),
        most <= bound,
    );
    let paused: Vec<_> = world.jobs.iter().filter(|facts| facts.pauses > 0).collect();
    let went_on = paused
        .iter()
        .filter(|facts| facts.ended_at.is_some() && facts.attempts == 1)
        .count();
    report.law(
        GROUP,
        "… jobs that made room and went on where they were",
        format!("{went_on} of {}", paused.len()),
        "all, and at least one",
        went_on == paused.len() && went_on > 0,
    );
}
