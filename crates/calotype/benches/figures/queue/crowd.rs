//! How long somebody waits for an answer who comes while 32 clients submit.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use super::{GROUP, Queue, SEEDS};
use crate::http::Connection;
use crate::row::{Figure, Times, held_to, told};
use crate::server::{id_of, request};

const CLIENTS: u64 = 32;
/// What the clients ask for together; a server that is slower gets as many as it answers.
const SUBMITS_PER_S: u32 = 400;
const LASTS: Duration = Duration::from_secs(6);
/// Between two questions of those who are measured.
const PAUSE: Duration = Duration::from_millis(20);
const TARGET: Duration = Duration::from_millis(20);

pub fn measure(queue: &mut Queue<'_>) {
    let server = &queue.server;
    let over = AtomicBool::new(false);
    let over = &over;
    let began = Instant::now();
    let (submits, health, critical) = thread::scope(|scope| {
        let clients =
            (0..CLIENTS).map(|client| scope.spawn(move || submit(server.connection(), client, over)));
        let clients: Vec<_> = clients.collect();
        let health = scope.spawn(|| {
            asked(server.connection(), over, |connection, _| {
                let (answer, took) = connection.timed("GET", "/health", "");
                assert!(matches!(answer.status, 200 | 503), "/health: {}", answer.status);
                (took, ())
            })
        });
        let critical = scope.spawn(|| {
            asked(server.connection(), over, |connection, number| {
                let body = request(3 * SEEDS + number, 1);
                let (answer, took) = connection.timed("POST", "/api/jobs?class=critical", &body);
                assert_eq!(answer.status, 202, "{}", String::from_utf8_lossy(&answer.body));
                (took, id_of(&answer.json()))
            })
        });
        sleep(LASTS);
        over.store(true, Ordering::Relaxed);
        let submits: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
        (submits, health.join().unwrap(), critical.join().unwrap())
    });
    let rate = submits as f64 / began.elapsed().as_secs_f64();
    let asked_for = format!("submits meanwhile, of {SUBMITS_PER_S} a second that 32 clients ask for");
    told(GROUP, &asked_for, Figure::Rate(rate));
    let (health, _): (Vec<_>, Vec<()>) = health.into_iter().unzip();
    let health = Times::new(health);
    told(GROUP, "`/health` meanwhile, p50", health.median());
    held_to(GROUP, "`/health` meanwhile, p99", health.percentile(99), TARGET);
    let (times, jobs): (Vec<_>, Vec<_>) = critical.into_iter().unzip();
    let times = Times::new(times);
    told(GROUP, "a critical submit's answer meanwhile, p50", times.median());
    held_to(
        GROUP,
        "a critical submit's answer meanwhile, p99",
        times.percentile(99),
        TARGET,
    );
    queue.waiting += submits;
    let mut connection = server.connection();
    for job in jobs {
        // It may have run.
        connection.post(&format!("/api/jobs/{job}/cancel"), "");
    }
}

/// Submits at its share of the rate, or as fast as it gets answers.
fn submit(mut connection: Connection, client: u64, over: &AtomicBool) -> usize {
    let every = Duration::from_secs(1) * CLIENTS as u32 / SUBMITS_PER_S;
    let began = Instant::now() + every * client as u32 / CLIENTS as u32;
    let mut submits = 0;
    while !over.load(Ordering::Relaxed) {
        sleep((began + every * submits).saturating_duration_since(Instant::now()));
        let seed = 2 * SEEDS + client * 10_000 + u64::from(submits);
        let answer = connection.post("/api/jobs", &request(seed, 1));
        assert_eq!(answer.status, 202, "{}", String::from_utf8_lossy(&answer.body));
        submits += 1;
    }
    submits as usize
}

/// Asks again and again, with a pause between.
fn asked<T>(
    mut connection: Connection,
    over: &AtomicBool,
    mut ask: impl FnMut(&mut Connection, u64) -> T,
) -> Vec<T> {
    let mut answers = Vec::new();
    while !over.load(Ordering::Relaxed) {
        answers.push(ask(&mut connection, answers.len() as u64));
        sleep(PAUSE);
    }
    answers
}
