//! What the server costs around the work: jobs that do nothing, with everything else as it is: HTTP, validation,
//! journal, dispatcher, a worker process, PNG, artifact, journal again.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::row::{Times, at_most, say, told};
use super::support::Server;

const GROUP: &str = "control";
const ALONE: usize = 1000;
const CLIENTS: u64 = 32;
const LASTS: Duration = Duration::from_secs(10);

/// All rows.
pub fn measure(fake_worker: &Path) {
    // On the disk of the build, not on a /tmp that may be memory.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    told(GROUP, "the disk's own fsync of 4 KiB, p50", fsync(dir.path()));
    let fake_worker = fake_worker.display().to_string();
    let server = Server::start_with(
        &dir.path().join("data"),
        &["--worker-program", &fake_worker, "--worker-arg", "good"],
    );
    let mut seed = 0;
    let mut next = || {
        seed += 1;
        let began = Instant::now();
        no_op(&server, seed);
        began.elapsed()
    };
    // Connections, caches and the resident model.
    for _ in 0..50 {
        next();
    }
    let times = Times::new((0..ALONE).map(|_| next()).collect());
    at_most(
        GROUP,
        "no-op job HTTP → worker → HTTP, 1 client, p50",
        times.median(),
        Duration::from_millis(1),
    );
    at_most(
        GROUP,
        "no-op job HTTP → worker → HTTP, 1 client, p99",
        times.percentile(99),
        Duration::from_millis(5),
    );
    let per_second = crowd(&server);
    say(
        GROUP,
        &format!("durable no-op jobs, {CLIENTS} clients on the same cores"),
        &format!("{per_second:.0}/s"),
        "≥ 1200/s on 2 cores",
        Some(per_second >= 1200.0),
    );
}

fn no_op(server: &Server, seed: u64) {
    let body =
        json!({ "prompt": "a", "seed": seed, "width": 64, "height": 64, "steps": 1, "preset": "quality" });
    let (status, job) = server.post("/api/inference/generate", &[], &body.to_string());
    assert_eq!(status, 200, "{job}");
}

fn fsync(dir: &Path) -> Duration {
    let mut file = File::create(dir.join("fsync")).unwrap();
    let mut times = Vec::new();
    for _ in 0..300 {
        file.write_all(&[7; 4096]).unwrap();
        let began = Instant::now();
        file.sync_data().unwrap();
        times.push(began.elapsed());
    }
    Times::new(times).median()
}

/// Jobs a second with every client asking again as soon as it has its answer.
fn crowd(server: &Server) -> f64 {
    let over = AtomicBool::new(false);
    let began = Instant::now();
    let done: u64 = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let over = &over;
                scope.spawn(move || {
                    let mut done = 0;
                    while !over.load(Ordering::Relaxed) {
                        done += 1;
                        no_op(server, (client + 1) << 32 | done);
                    }
                    done
                })
            })
            .collect();
        std::thread::sleep(LASTS);
        over.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    done as f64 / began.elapsed().as_secs_f64()
}
