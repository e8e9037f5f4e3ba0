//! What it costs that three hundred clients watch their own running job: the same jobs with and without them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::Programs;
use super::fleet::Fleet;
use super::http::Stream;
use super::row::{Figure, held_to, told};
use super::server::{Server, Spent, request};

const GROUP: &str = "watch: 300 jobs run, 60 workers";
const WORKERS: usize = 60;
const PLACES: &str = "5";
const WATCHERS: usize = 300;
/// Four for each place.
const JOBS: usize = 1200;
const STEPS: u32 = 10;
const STEP_MS: u32 = 100;
const SUBMITTERS: usize = 32;
/// Each way so many times, in turn; the median is told.
const ROUNDS: usize = 3;
const WITHIN: Duration = Duration::from_secs(60);

/// All rows.
pub fn measure(programs: &Programs) {
    // On the disk of the build, not on a /tmp that may be memory.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let fleet = Fleet::new(dir.path(), &programs.fake_worker, WORKERS, STEP_MS);
    let options = fleet.options(&["--max-concurrency", PLACES]);
    let server = Server::start(&programs.calotype, &dir.path().join("data"), &options);
    fleet.ready(&server);
    // Until every worker has loaded the model.
    round(&server, 0, Watched::No);
    let (mut alone, mut watched) = (Vec::new(), Vec::new());
    for number in 1..=ROUNDS {
        alone.push(round(&server, 2 * number, Watched::No));
        watched.push(round(&server, 2 * number + 1, Watched::Yes));
    }
    let (alone, watched) = (median(alone), median(watched));
    told(
        GROUP,
        "jobs of ten steps of 0.1 s, watched by nobody",
        Figure::Rate(alone.0),
    );
    told(
        GROUP,
        "meanwhile: share of a core",
        Figure::Share(alone.1.share()),
    );
    told(
        GROUP,
        "the same, each job that runs watched by a client of its own",
        Figure::Rate(watched.0),
    );
    told(
        GROUP,
        "meanwhile, watched: share of a core",
        Figure::Share(watched.1.share()),
    );
    held_to(
        GROUP,
        "throughput that watching costs",
        Figure::Share((1.0 - watched.0 / alone.0).max(0.0)),
        Figure::Share(0.1),
    );
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Watched {
    Yes,
    No,
}

/// Jobs a second of one round, and what the server spent.
fn round(server: &Server, number: usize, watched: Watched) -> (f64, Spent) {
    let mut connection = server.connection();
    let before = server.ended(&mut connection);
    let ids: Vec<Mutex<Option<String>>> = (0..JOBS).map(|_| Mutex::new(None)).collect();
    let next = AtomicUsize::new(0);
    let submit = || {
        let mut connection = server.connection();
        loop {
            let job = next.fetch_add(1, Ordering::Relaxed);
            let Some(id) = ids.get(job) else { break };
            let submitted = server.submit(&mut connection, &request((number * JOBS + job) as u64, STEPS));
            *id.lock().unwrap() = Some(submitted);
        }
    };
    let began = Instant::now();
    let (took, spent) = server.spent(|| {
        thread::scope(|scope| {
            let submitters: Vec<_> = (0..SUBMITTERS).map(|_| scope.spawn(submit)).collect();
            submitters
                .into_iter()
                .for_each(|submitter| submitter.join().unwrap());
            if watched == Watched::Yes {
                for watcher in 0..WATCHERS {
                    let ids = &ids;
                    scope.spawn(move || {
                        // One job after the other, as the places run them.
                        for id in ids.iter().skip(watcher).step_by(WATCHERS) {
                            let id = id.lock().unwrap().clone().unwrap();
                            let path = format!("/api/jobs/{id}/events");
                            let mut stream = Stream::open(server.address, &path, WITHIN).unwrap();
                            stream.drain();
                        }
                    });
                }
            }
            let all = server.until(WITHIN, || server.ended(&mut connection) >= before + JOBS as u64);
            assert!(all, "the jobs did not end within {WITHIN:?}");
            began.elapsed()
        })
    });
    (JOBS as f64 / took.as_secs_f64(), spent)
}

fn median(mut rounds: Vec<(f64, Spent)>) -> (f64, Spent) {
    rounds.sort_by(|one, other| one.0.total_cmp(&other.0));
    rounds.swap_remove(rounds.len() / 2)
}
