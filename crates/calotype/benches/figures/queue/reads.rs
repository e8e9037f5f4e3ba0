//! What a server with a full queue takes to do nothing, and to be asked.

use std::thread::sleep;
use std::time::Duration;

use super::{GROUP, Queue, repeated};
use crate::row::{Figure, held_to, told};

const IDLE: Duration = Duration::from_secs(10);
const WITHIN: Duration = Duration::from_secs(6);

pub fn measure(queue: &Queue<'_>) {
    let server = &queue.server;
    let ((), idle) = server.spent(|| sleep(IDLE));
    held_to(
        GROUP,
        "idle: share of a core (64 beats and 13 steps a second)",
        Figure::Share(idle.share()),
        Figure::Share(0.01),
    );
    let mut connection = server.connection();
    let mut ask = |path: &str| {
        let (answer, took) = connection.timed("GET", path, "");
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        took
    };
    let pages = repeated(100, WITHIN, |_| ask("/api/jobs?limit=500"));
    told(GROUP, "`GET /api/jobs?limit=500`, p50", pages.median());
    told(GROUP, "`GET /api/jobs?limit=500`, p99", pages.percentile(99));
    let sample = &queue.sample;
    let jobs = repeated(500, WITHIN, |number| {
        ask(&format!("/api/jobs/{}", sample[number % sample.len()]))
    });
    told(GROUP, "`GET /api/jobs/{id}`, p50", jobs.median());
    told(GROUP, "`GET /api/jobs/{id}`, p99", jobs.percentile(99));
}
