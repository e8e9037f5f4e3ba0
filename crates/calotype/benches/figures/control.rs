//! What the server costs around the work: jobs that do nothing, with everything else as it is: HTTP, validation,
//! journal, dispatcher, a worker process, PNG, artifact, journal again.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Programs;
use super::http::Connection;
use super::row::{Figure, Times, held_to, told};
use super::server::{Server, request};

const GROUP: &str = "control";
const ALONE: usize = 1000;
const CLIENTS: u64 = 32;
const LASTS: Duration = Duration::from_secs(5);

/// All rows.
pub fn measure(programs: &Programs) {
    // On the disk of the build, not on a /tmp that may be memory.
    // Left to `cargo xtask bench`, which removes it after the last round: for half a minute ext4 steps over inodes that were
    // just deleted, so tens of thousands of deleted pictures would slow down whoever is measured next.
    let dir = tempfile::Builder::new()
        .prefix("control-")
        .disable_cleanup(true)
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
        .unwrap();
    told(GROUP, "the disk's own fsync of 4 KiB, p50", fsync(dir.path()));
    let fake_worker = programs.fake_worker.display().to_string();
    let options = ["--worker-program", &fake_worker, "--worker-arg", "good"].map(str::to_owned);
    let server = Server::start(&programs.calotype, &dir.path().join("data"), &options);
    let mut connection = server.connection();
    let mut seed = 0;
    let mut next = || {
        seed += 1;
        no_op(&mut connection, seed)
    };
    // Caches and the resident model.
    for _ in 0..50 {
        next();
    }
    let times = Times::new((0..ALONE).map(|_| next()).collect());
    held_to(
        GROUP,
        "no-op job HTTP → worker → HTTP, 1 client, p50",
        times.median(),
        Duration::from_millis(1),
    );
    held_to(
        GROUP,
        "no-op job HTTP → worker → HTTP, 1 client, p99",
        times.percentile(99),
        Duration::from_millis(5),
    );
    let what = format!("durable no-op jobs, {CLIENTS} clients on the same cores");
    held_to(GROUP, &what, Figure::Rate(crowd(&server)), Figure::Rate(2000.0));
}

fn no_op(connection: &mut Connection, seed: u64) -> Duration {
    let (answer, took) = connection.timed("POST", "/api/inference/generate", &request(seed, 1));
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    took
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
                    let mut connection = server.connection();
                    let mut done = 0;
                    while !over.load(Ordering::Relaxed) {
                        done += 1;
                        no_op(&mut connection, (client + 1) << 32 | done);
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
