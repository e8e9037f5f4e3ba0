//! What a message costs that changes nothing: 64 workers that report a step every 50 ms.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{GROUP, Queue, WORKERS, streams};
use crate::http::Connection;
use crate::row::{Figure, held_to, say, shown, told};
use crate::server::{Server, Spent};

const STEP_MS: u32 = 50;
const LASTS: Duration = Duration::from_secs(5);
const SETTLES: Duration = Duration::from_secs(2);
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// Messages that a worker sends beside its steps.
const BEATS_PER_S: f64 = WORKERS as f64;

pub fn measure(queue: &Queue<'_>) {
    queue.fleet.replace(&queue.server, STEP_MS);
    // They load their models and get their jobs; a server that cannot tell any more when that is done is given no longer.
    sleep(SETTLES);
    let (rate, spent) = events(&queue.server);
    let sent = WORKERS as f64 * 1000.0 / f64::from(STEP_MS);
    told(
        GROUP,
        &format!("64 workers report steps: events of at most {sent:.0} a second"),
        Figure::Rate(rate),
    );
    told(
        GROUP,
        "64 workers report steps: share of a core",
        Figure::Share(spent.share()),
    );
    held_to(
        GROUP,
        "the whole server's processor time for a message that changes nothing",
        Duration::from_secs_f64(spent.share() / (rate + BEATS_PER_S)),
        Duration::from_micros(20),
    );
    let answered = Connection::open(queue.server.address).answers("/health", ANSWERS_WITHIN);
    let answered = answered.map_or_else(|| format!("none in {} s", ANSWERS_WITHIN.as_secs()), shown);
    say(
        GROUP,
        "64 workers report steps: one answer of `/health`",
        &answered,
    );
    let (rate, spent) = streams::open(queue, || events(&queue.server));
    told(
        GROUP,
        "64 workers report steps, with these streams open: events",
        Figure::Rate(rate),
    );
    told(
        GROUP,
        "64 workers report steps, with these streams open: share of a core",
        Figure::Share(spent.share()),
    );
}

/// Events a second, all but a few of which are steps, and what the server spent meanwhile.
fn events(server: &Server) -> (f64, Spent) {
    let ((first, last, took), spent) = server.spent(|| {
        let began = Instant::now();
        let first = server.next_event();
        let from = began.elapsed();
        sleep(LASTS);
        let last = server.next_event();
        (first, last, began.elapsed() - from)
    });
    let events = first.zip(last).map_or(0, |(first, last)| last - first);
    (events as f64 / took.as_secs_f64(), spent)
}
