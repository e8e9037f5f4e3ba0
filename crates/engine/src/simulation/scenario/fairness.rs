//! Who gets how much of the devices.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{check, device, models};
use crate::processing::Class;
use crate::simulation::workload::{Dice, Job, ms};
use crate::simulation::world::World;
use crate::simulation::{Extent, Report};

const GROUP: &str = "Shares";
/// How far a share may be from its weight.
const MOST_OFF: f64 = 0.1;

/// Three classes that always have work, with jobs of different sizes.
pub(super) fn three_classes(extent: Extent, report: &mut Report) {
    let (count, time) = match extent {
        Extent::Quick => (2, Duration::from_secs(300)),
        Extent::Full => (4, Duration::from_secs(1_200)),
    };
    let mut world = World::new(vec![device(2); count], models(2));
    let classes = [
        (Class::Interactive, "interactive", Job::of(0), 4.0),
        (Class::Batch, "batch", Job::of(1).sized(640, 30), 1.0),
        (Class::Background, "background", Job::of(0).sized(384, 15), 0.5),
    ];
    for (class, name, job, _) in &classes {
        let client: Arc<str> = (*name).into();
        let job = job.clone().in_class(*class).by(&client);
        world.submit((0..count * 16).map(|_| job.clone()));
    }
    report.shares = classes.iter().map(|(_, name, ..)| (*name, Vec::new())).collect();
    let had = |world: &World| -> Vec<f64> {
        let of = |class: Class| world.jobs.iter().filter(move |facts| facts.job.class == class);
        classes
            .iter()
            .map(|(class, ..)| of(*class).map(|facts| facts.device_ms).sum())
            .collect()
    };
    for step in 1..=60 {
        world.run_with([], time * step / 60, |facts, _| {
            Some((Duration::ZERO, facts.job.clone()))
        });
        let had = had(&world);
        let all: f64 = had.iter().sum();
        for ((_, points), had) in report.shares.iter_mut().zip(had) {
            points.push((world.now().as_secs_f64(), had / all.max(1.0)));
        }
    }
    check(report, "three classes", &world);
    let had = had(&world);
    let (all, weights): (f64, f64) = (had.iter().sum(), classes.iter().map(|(.., weight)| weight).sum());
    for ((_, name, _, weight), had) in classes.iter().zip(had) {
        let (share, due) = (had / all, weight / weights);
        report.law(
            GROUP,
            format!("{name}, three classes with work at all times on {count} devices"),
            format!("{:.1} % of the device time", share * 100.0),
            format!("{:.1} % ± a tenth", due * 100.0),
            (share / due - 1.0).abs() <= MOST_OFF,
        );
    }
}

/// 50 clients, the busiest of which submits 40 times as much as the least busy one; each asks for more than its share.
pub(super) fn clients_of_different_rates(extent: Extent, report: &mut Report) {
    const CLIENTS: usize = 50;
    let time = match extent {
        Extent::Quick => Duration::from_secs(400),
        Extent::Full => Duration::from_secs(2_000),
    };
    let models = models(1);
    let devices = vec![device(1); 4];
    let capacity: f64 = devices.iter().map(|device| device.capacity()).sum();
    let mut dice = Dice::new(3);
    let mut arrivals: Vec<(Duration, Job)> = Vec::new();
    for index in 0..CLIENTS {
        let client: Arc<str> = format!("client-{index}").into();
        let job = Job::of(0).sized([384, 512][index % 2], 20).by(&client);
        let wants = 1.3 * 40f64.powf(index as f64 / (CLIENTS - 1) as f64);
        let pause_ms = job.work_ms(&models[0]) / (capacity / CLIENTS as f64 * wants);
        // A few at once, so that nobody is ever without work.
        let mut at = Duration::ZERO;
        arrivals.extend((0..4).map(|_| (at, job.clone())));
        while at < time {
            at += ms(dice.pause_ms(pause_ms));
            arrivals.push((at, job.clone()));
        }
    }
    arrivals.sort_by_key(|(at, _)| *at);
    let mut world = World::new(devices, models);
    world.run_with(arrivals, time, |_, _| None);
    check(report, "50 clients", &world);
    let mut had: BTreeMap<&str, f64> = BTreeMap::new();
    for facts in &world.jobs {
        *had.entry(&facts.job.client).or_default() += facts.device_ms;
    }
    let mean = had.values().sum::<f64>() / CLIENTS as f64;
    let least = had.values().copied().fold(f64::INFINITY, f64::min) / mean;
    let most = had.values().copied().fold(0.0, f64::max) / mean;
    report.law(
        GROUP,
        "50 clients that submit 1.3 to 52 times their share",
        format!(
            "{:.0} % to {:.0} % of an equal share",
            least * 100.0,
            most * 100.0
        ),
        "90 % to 110 %",
        least >= 1.0 - MOST_OFF && most <= 1.0 + MOST_OFF,
    );
}
