//! What a message costs that changes nothing: 64 workers that report a step every 50 ms.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{GROUP, Queue, WORKERS, streams};
use crate::http::Connection;
use crate::row::{Figure, held_to, told};
use crate::server::{Server, Spent, jobs_of};

const STEP_MS: u32 = 50;
/// Shorter than the 7.5 s that a long job of such steps lasts.
const LASTS: Duration = Duration::from_secs(5);
/// Messages that a worker sends beside its steps.
const BEATS_PER_S: f64 = WORKERS as f64;

pub fn measure(queue: &Queue<'_>) {
    queue.fleet.replace(&queue.server, STEP_MS);
    queue.fleet.busy(&queue.server);
    let (rate, spent) = steps(&queue.server);
    let sent = WORKERS as f64 * 1000.0 / f64::from(STEP_MS);
    told(
        GROUP,
        &format!("steps that arrive of {sent:.0} a second that the workers take"),
        Figure::Rate(rate),
    );
    told(GROUP, "meanwhile: share of a core", Figure::Share(spent.share()));
    held_to(
        GROUP,
        "the whole server's processor time for a message that changes nothing",
        Duration::from_secs_f64(spent.share() / (rate + BEATS_PER_S)),
        Duration::from_micros(20),
    );
    let (((rate, spent), _), grown_bytes) = streams::open(queue, steps);
    told(
        GROUP,
        "steps that arrive with 300 streams open, half of them unread",
        Figure::Rate(rate),
    );
    told(
        GROUP,
        "meanwhile, with streams: share of a core",
        Figure::Share(spent.share()),
    );
    told(
        GROUP,
        "memory (RSS) that the streams take meanwhile",
        Figure::Bytes(grown_bytes),
    );
}

/// Steps a second that have come through to the views of running jobs, and what the server spent meanwhile.
fn steps(server: &Server) -> (f64, Spent) {
    let mut connection = server.connection();
    let jobs: Vec<String> = server.workers().iter().flat_map(jobs_of).collect();
    let looked = |connection: &mut Connection| -> Vec<(Instant, f64)> {
        let steps = jobs.iter().map(|job| {
            let view = connection.get(&format!("/api/jobs/{job}")).json();
            // One that ended in between has taken them all.
            let done = match view["progress"]["done"].as_f64() {
                None if view["result"].is_object() => view["plan"]["steps"].as_f64(),
                done => done,
            };
            (Instant::now(), done.unwrap_or(0.0))
        });
        steps.collect()
    };
    let ((before, after), spent) = server.spent(|| {
        let before = looked(&mut connection);
        sleep(LASTS);
        (before, looked(&mut connection))
    });
    let rates = before.iter().zip(&after);
    let rate = rates
        .map(|((began, from), (ended, to))| (to - from).max(0.0) / (*ended - *began).as_secs_f64())
        .sum();
    (rate, spent)
}
