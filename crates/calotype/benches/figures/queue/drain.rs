//! How fast short jobs run while thousands wait behind them: what a decision costs.

use std::time::{Duration, Instant};

use super::{GROUP, Queue};
use crate::row::{Figure, held_to};
use crate::server::jobs_of;

/// As many as end before it begins, so that all workers take part.
const BEFORE: u64 = 256;
const JOBS: u64 = 3000;
const WITHIN: Duration = Duration::from_secs(8);
const GONE_WITHIN: Duration = Duration::from_secs(60);
const BEGINS_WITHIN: Duration = Duration::from_secs(60);

pub fn measure(queue: &mut Queue<'_>) {
    let server = &queue.server;
    let mut connection = server.connection();
    // Those that wait first: none of them starts in the place of one that ran.
    for job in queue.long.iter().rev() {
        // It may have ended.
        connection.post(&format!("/api/jobs/{job}/cancel"), "");
    }
    let gone = || {
        let workers = server.workers();
        let mut running = workers.iter().flat_map(jobs_of);
        !running.any(|job| queue.long.contains(&job))
    };
    assert!(server.until(GONE_WITHIN, gone), "the long jobs did not end");
    queue.fleet.replace(server, 0);
    let first = server.ended(&mut connection);
    let begun = server.until(BEGINS_WITHIN, || server.ended(&mut connection) >= first + BEFORE);
    assert!(begun, "the short jobs do not run");
    let (jobs, spent) = server.spent(|| {
        let (began, first) = (Instant::now(), server.ended(&mut connection));
        server.until(WITHIN, || server.ended(&mut connection) >= first + JOBS);
        let jobs = (server.ended(&mut connection) - first) as f64;
        (jobs, began.elapsed())
    });
    let (jobs, took) = jobs;
    held_to(
        GROUP,
        "jobs of one step through 64 fast workers, thousands waiting behind them",
        Figure::Rate(jobs / took.as_secs_f64()),
        Figure::Rate(2000.0),
    );
    held_to(
        GROUP,
        "meanwhile: the server's processor time for a job, decision, journal and picture together",
        spent.cpu.div_f64(jobs.max(1.0)),
        Duration::from_millis(1),
    );
}
