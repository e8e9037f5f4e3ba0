//! What ten thousand waiting jobs cost: a server of 64 busy fake workers, on cores that server, workers and clients share.
//!
//! One server goes through all of it, since filling the queue takes the longest; each file measures one thing and leaves
//! behind what it found: workers busy with long jobs, and (about) ten thousand short ones that wait.

mod crowd;
mod drain;
mod fill;
mod progress;
mod reads;
mod restart;
mod streams;

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Programs;
use super::fleet::Fleet;
use super::row::{Figure, told};
use super::server::{Server, request};

const GROUP: &str = "queue: 10 000 waiting, 64 workers";
const WORKERS: usize = 64;
/// A step that hardly ever ends, so the server has no more to do than with idle workers.
const SLOW_MS: u32 = 5000;
/// Long jobs, of the most steps that a job may have. More than there are workers: while a model is resident in a few of
/// them only, a scheduler may rather let jobs wait.
const LONG: u64 = 256;
const LONG_STEPS: u32 = 150;
/// Seeds of the jobs of one kind begin here, those of the next a million behind it.
const SEEDS: u64 = 1_000_000;

/// All that the parts share.
struct Queue<'a> {
    programs: &'a Programs,
    data: PathBuf,
    fleet: Fleet,
    server: Server,
    /// Ids of the long jobs, some of which run.
    long: Vec<String>,
    /// Ids of some that wait, evenly from the whole queue.
    sample: Vec<String>,
    /// Jobs that wait.
    waiting: usize,
}

/// All rows.
pub fn measure(programs: &Programs) {
    // On the disk of the build, not on a /tmp that may be memory.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut queue = Queue::start(programs, dir.path());
    fill::measure(&mut queue);
    reads::measure(&queue);
    crowd::measure(&mut queue);
    progress::measure(&queue);
    restart::measure(&mut queue);
    drain::measure(&mut queue);
}

impl<'a> Queue<'a> {
    fn start(programs: &'a Programs, dir: &Path) -> Self {
        let fleet = Fleet::new(dir, &programs.fake_worker, WORKERS, SLOW_MS);
        let data = dir.join("data");
        let server = serve(programs, &fleet, &data);
        fleet.ready(&server);
        let mut connection = server.connection();
        let long = (0..LONG).map(|seed| server.submit(&mut connection, &request(seed, LONG_STEPS)));
        let long = long.collect();
        fleet.busy(&server);
        told(
            GROUP,
            "memory of the server (RSS) with nothing but the long jobs",
            Figure::Bytes(server.resident_bytes()),
        );
        Self {
            programs,
            data,
            fleet,
            server,
            long,
            sample: Vec::new(),
            waiting: 0,
        }
    }

    /// Live jobs, by what `/health` counts.
    fn live(&self) -> u64 {
        let health = self.server.get("/health");
        let counts = health["jobs"].as_object().unwrap().values();
        counts.filter_map(serde_json::Value::as_u64).sum()
    }
}

/// A server whose workers have one place each.
fn serve(programs: &Programs, fleet: &Fleet, data: &Path) -> Server {
    let options = fleet.options(&["--max-concurrency", "1", "--queue", "50000"]);
    Server::start(&programs.calotype, data, &options)
}

/// Answers one after the other, for so long or so many.
fn repeated(most: usize, within: Duration, mut ask: impl FnMut(usize) -> Duration) -> super::row::Times {
    let began = std::time::Instant::now();
    let mut times = Vec::new();
    while times.is_empty() || times.len() < most && began.elapsed() < within {
        times.push(ask(times.len()));
    }
    super::row::Times::new(times)
}
