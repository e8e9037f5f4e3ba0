//! What no scheduler could beat. Each bound leaves out what it need not: journal, preparation and storage take no time in
//! it, and work can be cut into any pieces, but for the longest job.

use std::time::Duration;

use super::workload::{DeviceSpec, Job, Model, ms};

/// Of jobs that are all there at the start, on devices that are empty: each device that works must load one model first,
/// and the longest job runs on one device.
pub(super) fn burst(devices: &[DeviceSpec], models: &[Model], jobs: &[Job]) -> Duration {
    let least_bytes = jobs.iter().map(|job| models[job.model].bytes).min().unwrap_or(0);
    let loads_ms: Vec<f64> = devices.iter().map(|device| device.load_ms(least_bytes)).collect();
    let first_ms = loads_ms.iter().copied().reduce(f64::min).unwrap_or(0.0);
    let spread = spread_ms(devices, &loads_ms, work_ms(models, jobs));
    let fastest = devices.iter().map(|device| device.speed).fold(0.0, f64::max);
    let longest = jobs
        .iter()
        .map(|job| job.work_ms(&models[job.model]))
        .fold(0.0, f64::max);
    ms(spread.max(first_ms + longest / fastest))
}

/// Of jobs that arrive over time: what has come at or after each moment is still to be done after it.
pub(super) fn arrivals(devices: &[DeviceSpec], models: &[Model], jobs: &[(Duration, Job)]) -> Duration {
    let capacity: f64 = devices.iter().map(DeviceSpec::capacity).sum();
    let (mut later_ms, mut bound_ms) = (0.0, 0.0_f64);
    for (at, job) in jobs.iter().rev() {
        later_ms += job.work_ms(&models[job.model]);
        bound_ms = bound_ms.max(at.as_secs_f64() * 1e3 + later_ms / capacity);
    }
    let all: Vec<Job> = jobs.iter().map(|(_, job)| job.clone()).collect();
    ms(bound_ms).max(burst(devices, models, &all))
}

/// Equal jobs that cannot be cut, on equal devices of which the first `warm` have the model: the least time in which the
/// devices together end so many of them.
pub(super) fn whole_jobs(
    device: &DeviceSpec,
    (count, warm): (usize, usize),
    jobs: usize,
    job_ms: f64,
    load_ms: f64,
) -> Duration {
    let done_by = |until_ms: f64| -> usize {
        let of =
            |begins_ms: f64| (((until_ms - begins_ms) * device.capacity() / job_ms) + 1e-9).max(0.0) as usize;
        warm.min(count) * of(0.0) + count.saturating_sub(warm) * of(load_ms)
    };
    let (mut least, mut most) = (0.0, load_ms + jobs as f64 * job_ms / device.speed);
    for _ in 0..80 {
        let middle = (least + most) / 2.0;
        if done_by(middle) >= jobs {
            most = middle;
        } else {
            least = middle;
        }
    }
    ms(most)
}

pub(super) fn work_ms(models: &[Model], jobs: &[Job]) -> f64 {
    jobs.iter().map(|job| job.work_ms(&models[job.model])).sum()
}

/// The time by which devices that begin after their loads have done so much work together.
fn spread_ms(devices: &[DeviceSpec], loads_ms: &[f64], work_ms: f64) -> f64 {
    let done_by = |until_ms: f64| -> f64 {
        let pairs = devices.iter().zip(loads_ms);
        pairs
            .map(|(device, load_ms)| device.capacity() * (until_ms - load_ms).max(0.0))
            .sum()
    };
    let (mut least, mut most) = (0.0, 1.0);
    while done_by(most) < work_ms {
        most *= 2.0;
    }
    for _ in 0..80 {
        let middle = (least + most) / 2.0;
        if done_by(middle) >= work_ms {
            most = middle;
        } else {
            least = middle;
        }
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_counts_the_load_the_work_and_the_longest_job() {
        let mut device = DeviceSpec::with_room(1, 1_000_000_000, 1, 512);
        device.batching_gain = 0.0;
        let models = [Model::new("a", 1_000_000_000, 100.0)];
        let job = Job::of(0);
        let (load_ms, job_ms) = (1050.0, job.work_ms(&models[0]));
        let jobs = vec![job.clone(); 8];
        let two = burst(&[device.clone(), device.clone()], &models, &jobs);
        assert!((two.as_secs_f64() * 1e3 - (load_ms + 4.0 * job_ms)).abs() < 0.01);
        let many = burst(&vec![device.clone(); 100], &models, &jobs);
        assert!((many.as_secs_f64() * 1e3 - (load_ms + job_ms)).abs() < 0.01);
        let late = arrivals(&[device.clone()], &models, &[(Duration::from_secs(60), job)]);
        assert!((late.as_secs_f64() * 1e3 - (60_000.0 + job_ms)).abs() < 0.01);
        let whole = whole_jobs(&device, (2, 1), 3, 1000.0, 500.0);
        assert!((whole.as_secs_f64() - 2.0).abs() < 0.001, "{whole:?}");
    }
}
