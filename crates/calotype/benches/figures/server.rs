//! A server of the given program, its figures as the system counts them, and the questions that every group asks.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http::{Connection, Stream};

/// Between two looks at something that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A server whose workers report steps has an event within this time.
const EVENT_WITHIN: Duration = Duration::from_secs(10);
/// Units of `/proc/PID/stat` in a second, the same on every Linux (USER_HZ).
const TICKS_PER_S: f64 = 100.0;

/// A server that is killed with its guard.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    /// When the program was started.
    pub started: Instant,
    /// From then to the line that says where it listens.
    pub listening: Duration,
    /// Kept open: the server writes to it.
    _stdout: BufReader<ChildStdout>,
}

/// What a stretch of time cost the server's process; its workers are processes of their own.
#[derive(Clone, Copy)]
pub struct Spent {
    pub wall: Duration,
    pub cpu: Duration,
}

impl Spent {
    /// Of one core.
    pub fn share(self) -> f64 {
        self.cpu.as_secs_f64() / self.wall.as_secs_f64()
    }
}

impl Server {
    /// Starts one on a data directory, and waits until it listens.
    pub fn start(program: &Path, data_dir: &Path, options: &[String]) -> Self {
        let started = Instant::now();
        let mut child = Command::new(program)
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(data_dir)
            .args(options)
            // Workers are killed here by the dozen, which is worth a warning each.
            .env("RUST_LOG", "error")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let listening = started.elapsed();
        let address = line
            .split_whitespace()
            .find_map(|word| word.strip_prefix("http://"))
            .unwrap_or_else(|| panic!("{} does not say where it listens", program.display()));
        Self {
            address: address.trim_end_matches(',').parse().unwrap(),
            child,
            started,
            listening,
            _stdout: stdout,
        }
    }

    /// Kills it as a power failure would, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// A new connection.
    pub fn connection(&self) -> Connection {
        Connection::open(self.address)
    }

    /// JSON of a GET.
    pub fn get(&self, path: &str) -> Value {
        self.connection().get(path).json()
    }

    /// Submits a job and gives its id.
    pub fn submit(&self, connection: &mut Connection, body: &str) -> String {
        let answer = connection.post("/api/jobs", body);
        assert_eq!(answer.status, 202, "{}", String::from_utf8_lossy(&answer.body));
        id_of(&answer.json())
    }

    /// Processor time of its process so far.
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // Behind the name, which may hold anything, come the state and 10 more fields, then user and system time.
        let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
        let ticks: f64 = fields
            .skip(11)
            .take(2)
            .map(|field| field.parse::<f64>().unwrap())
            .sum();
        Duration::from_secs_f64(ticks / TICKS_PER_S)
    }

    /// What it spends while something goes on.
    pub fn spent<T>(&self, during: impl FnOnce() -> T) -> (T, Spent) {
        let (began, before) = (Instant::now(), self.cpu());
        let value = during();
        let cpu = self.cpu().saturating_sub(before);
        let wall = began.elapsed();
        (value, Spent { wall, cpu })
    }

    /// Memory of its process that is in memory.
    pub fn resident_bytes(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let kib = status.lines().find_map(|line| {
            let value = line.strip_prefix("VmRSS:")?;
            value.split_whitespace().next()?.parse::<f64>().ok()
        });
        kib.unwrap() * 1024.0
    }

    /// Jobs that have ended since its start, however they ended. Asking costs the dispatcher nothing.
    pub fn ended(&self, connection: &mut Connection) -> u64 {
        let text = connection.get("/metrics").body;
        let text = String::from_utf8_lossy(&text);
        let counts = text
            .lines()
            .filter(|line| line.starts_with("calotype_jobs_ended_total"));
        let counts = counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        counts.sum::<f64>() as u64
    }

    /// Processes that it has started and that have not been reaped. The server itself is not asked.
    pub fn children(&self) -> Vec<i32> {
        // Each process belongs to the thread that started it.
        let threads = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let lists = threads
            .flatten()
            .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
        lists
            .flat_map(|list| {
                list.split_whitespace()
                    .map(|pid| pid.parse().unwrap())
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// The number of the next event. The dispatcher is not asked, which may be too busy to answer.
    pub fn next_event(&self) -> Option<u64> {
        Stream::open(self.address, "/api/events", EVENT_WITHIN)?.first_id(EVENT_WITHIN)
    }

    /// Its workers, whatever their state.
    pub fn workers(&self) -> Vec<Value> {
        let devices = self.get("/api/devices");
        let devices = devices.as_array().unwrap();
        let workers = devices.iter().flat_map(|one| one["workers"].as_array().unwrap());
        workers.cloned().collect()
    }

    /// Waits until `so`; false when it does not come to that in time.
    pub fn until(&self, within: Duration, mut so: impl FnMut() -> bool) -> bool {
        let deadline = Instant::now() + within;
        while !so() {
            if Instant::now() > deadline {
                return false;
            }
            sleep(LOOK_EVERY);
        }
        true
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The request for a small picture of so many steps. Each seed is another picture.
pub fn request(seed: u64, steps: u32) -> String {
    json!({ "prompt": "a", "seed": seed, "width": 64, "height": 64, "steps": steps, "preset": "quality" })
        .to_string()
}

/// The id of a job in the answer to its submit.
pub fn id_of(submitted: &Value) -> String {
    submitted["job"]["id"].as_str().unwrap().to_owned()
}

/// Ids of the jobs that a worker runs.
pub fn jobs_of(worker: &Value) -> Vec<String> {
    let jobs = worker["jobs"].as_array().unwrap();
    jobs.iter()
        .filter_map(|job| Some(job.as_str()?.to_owned()))
        .collect()
}
