//! Ten thousand submits by 32 clients, each on a connection that is kept.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{GROUP, Queue, SEEDS};
use crate::row::{Figure, Times, held_to, told};
use crate::server::{id_of, request};

const JOBS: usize = 10_000;
const CLIENTS: usize = 32;
/// Of the first and the last of them the rate is told.
const END: usize = 1000;
/// One id of so many is kept.
const SAMPLED: usize = 20;
/// After this time no more are submitted.
const WITHIN: Duration = Duration::from_secs(150);

pub fn measure(queue: &mut Queue<'_>) {
    let server = &queue.server;
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    let client = || {
        let mut connection = server.connection();
        let (mut answered, mut ids) = (Vec::new(), Vec::new());
        while began.elapsed() < WITHIN {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= JOBS {
                break;
            }
            let body = request(SEEDS + number as u64, 1);
            let (answer, took) = connection.timed("POST", "/api/jobs", &body);
            assert_eq!(answer.status, 202, "{}", String::from_utf8_lossy(&answer.body));
            answered.push((began.elapsed(), took));
            if number.is_multiple_of(SAMPLED) {
                ids.push((number, id_of(&answer.json())));
            }
        }
        (answered, ids)
    };
    let (clients, spent) = server.spent(|| {
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
            let clients = clients.into_iter().map(|client| client.join().unwrap());
            clients.collect::<Vec<_>>()
        })
    });
    let (answered, ids): (Vec<_>, Vec<_>) = clients.into_iter().unzip();
    let mut answered: Vec<(Duration, Duration)> = answered.into_iter().flatten().collect();
    let mut ids: Vec<(usize, String)> = ids.into_iter().flatten().collect();
    answered.sort_unstable();
    ids.sort_unstable();
    queue.sample = ids.into_iter().map(|(_, id)| id).collect();
    queue.waiting = answered.len();
    tell(&answered, spent.cpu, server.resident_bytes());
}

fn tell(answered: &[(Duration, Duration)], cpu: Duration, resident_bytes: f64) {
    let count = answered.len();
    assert!(count >= 2 * END, "only {count} jobs were accepted in {WITHIN:?}");
    let (first, _) = answered[END - 1];
    let (last, _) = answered[count - 1];
    let (before_last, _) = answered[count - 1 - END];
    let rate = |time: Duration| Figure::Rate(END as f64 / time.as_secs_f64());
    told(
        GROUP,
        &format!("submits by {CLIENTS} clients, the first 1 000"),
        rate(first),
    );
    // Of fewer the last thousand would be another row.
    if count == JOBS {
        told(
            GROUP,
            &format!("submits by {CLIENTS} clients, the last 1 000"),
            rate(last - before_last),
        );
        held_to(GROUP, "all 10 000 submits", last, Duration::from_secs(1));
    } else {
        told(
            GROUP,
            &format!("submits, the last 1 000 of the {count} that were answered in {WITHIN:?}"),
            rate(last - before_last),
        );
    }
    let times = Times::new(answered.iter().map(|(_, took)| *took).collect());
    told(GROUP, "a submit's answer, p50", times.median());
    told(GROUP, "a submit's answer, p99", times.percentile(99));
    told(
        GROUP,
        "the server's processor time for 1 000 submits",
        cpu.div_f64(count as f64 / 1000.0),
    );
    told(
        GROUP,
        "memory of the server (RSS) with 10 000 waiting",
        Figure::Bytes(resident_bytes),
    );
}
