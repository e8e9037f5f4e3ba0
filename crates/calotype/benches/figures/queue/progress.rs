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
/// A look at the jobs takes no longer.
const LOOKS_WITHIN: Duration = Duration::from_secs(3);
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
    let (rate, spent) = streams::open(queue, || steps(&queue.server));
    told(
        GROUP,
        "steps that arrive with these streams open",
        Figure::Rate(rate),
    );
    told(
        GROUP,
        "meanwhile, with these streams: share of a core",
        Figure::Share(spent.share()),
    );
    // What the streams have asked for is answered first.
    queue.server.settled();
}

/// Steps a second that have come through to the views of running jobs, and what the server spent meanwhile.
fn steps(server: &Server) -> (f64, Spent) {
    let mut connection = server.connection();
    let jobs: Vec<String> = server.workers().iter().flat_map(jobs_of).collect();
    let ((before, after), spent) = server.spent(|| {
        let before = looked(&mut connection, &jobs);
        sleep(LASTS);
        let after = looked(&mut connection, &jobs[..before.len()]);
        (before, after)
    });
    // A server that is slow to answer was asked for a part of them: the others are like these.
    let rates = before.iter().zip(&after);
    let rates = rates.map(|(from, to)| (to.steps - from.steps).max(0.0) / (to.at - from.at).as_secs_f64());
    let rate = rates.sum::<f64>() / after.len() as f64 * jobs.len() as f64;
    (rate, spent)
}

struct Seen {
    at: Instant,
    steps: f64,
}

/// The steps that jobs have taken, of as many as can be asked for in time.
fn looked(connection: &mut Connection, jobs: &[String]) -> Vec<Seen> {
    let began = Instant::now();
    let mut seen = Vec::new();
    for job in jobs {
        let view = connection.get(&format!("/api/jobs/{job}")).json();
        // One that ended in between has taken them all.
        let steps = match view["progress"]["done"].as_f64() {
            None if view["result"].is_object() => view["plan"]["steps"].as_f64(),
            done => done,
        };
        seen.push(Seen {
            at: Instant::now(),
            steps: steps.unwrap_or(0.0),
        });
        if began.elapsed() > LOOKS_WITHIN {
            break;
        }
    }
    seen
}
