//! A real server process, for whole-program tests and for the benchmark.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use calotype_imaging::{DecodeLimits, Rgb, decode_rgb};
use serde_json::Value;

/// The Python to test with, which `CALOTYPE_PYTHON` names; says aloud where there is none.
pub fn python() -> Option<PathBuf> {
    let named = std::env::var_os("CALOTYPE_PYTHON").map(PathBuf::from);
    match &named {
        None => eprintln!("skipped: CALOTYPE_PYTHON names no Python with the worker's packages"),
        Some(python) => assert!(python.is_file(), "{} is no file", python.display()),
    }
    named
}

/// A server that is killed with its guard.
pub struct Server {
    pub child: Child,
    pub url: String,
    agent: ureq::Agent,
}

impl Server {
    /// Starts one on a data directory, and waits until it listens.
    pub fn start(data_dir: &Path) -> Self {
        Self::start_with(data_dir, &["--runtime", "rten"])
    }

    /// The same with other options.
    pub fn start_with(data_dir: &Path, options: &[&str]) -> Self {
        Self::start_in(data_dir, options, &[])
    }

    /// The same in another environment.
    pub fn start_in(data_dir: &Path, options: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_calotype"))
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(data_dir)
            .args(options)
            .env("RUST_LOG", "warn")
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let url = line
            .split_whitespace()
            .find(|word| word.starts_with("http://"))
            .unwrap();
        Self {
            url: url.trim_end_matches(',').to_owned(),
            child,
            agent: agent(),
        }
    }

    /// One whose worker is `fake_worker` and takes `step_ms` a step.
    pub fn with_fake_worker(data_dir: &Path, step_ms: u32, options: &[&str]) -> Self {
        let fake_worker = Path::new(env!("CARGO_BIN_EXE_calotype")).with_file_name("fake_worker");
        assert!(fake_worker.is_file(), "`cargo xtask test` builds it");
        let fake_worker = fake_worker.display().to_string();
        let mut all = vec!["--worker-program", &fake_worker, "--worker-arg", "good"];
        all.extend(options);
        Self::start_in(data_dir, &all, &[("FAKE_STEP_MS", &step_ms.to_string())])
    }

    /// Kills it as a power failure would, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops it as a service manager would, and waits until it is gone.
    pub fn terminate(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }

    /// Status and JSON of a POST.
    pub fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
        let (status, bytes) = self.post_for_bytes(path, headers, body);
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    /// Status and bytes of a POST.
    pub fn post_for_bytes(&self, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, Vec<u8>) {
        let mut request = self
            .agent
            .post(format!("{}{path}", self.url))
            .header("Content-Type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = request.send(body).unwrap();
        (
            response.status().as_u16(),
            response.body_mut().read_to_vec().unwrap(),
        )
    }

    /// Status, headers and JSON of a POST.
    pub fn post_for_headers(&self, path: &str, body: &str) -> (u16, ureq::http::HeaderMap, Value) {
        let request = self.agent.post(format!("{}{path}", self.url));
        let response = request.header("Content-Type", "application/json").send(body);
        let (head, mut body) = response.unwrap().into_parts();
        (head.status.as_u16(), head.headers, body.read_json().unwrap())
    }

    /// Status and bytes of a GET.
    pub fn bytes(&self, path: &str, headers: &[(&str, &str)]) -> (u16, Vec<u8>) {
        let mut request = self.agent.get(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = request.call().unwrap();
        (
            response.status().as_u16(),
            response.body_mut().read_to_vec().unwrap(),
        )
    }

    /// The answer to any method. Its body is not read: it may have no end.
    pub fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl ureq::AsSendBody,
    ) -> ureq::http::Response<ureq::Body> {
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.agent.run(request.body(body).unwrap()).unwrap()
    }

    /// Status of a DELETE.
    pub fn delete(&self, path: &str) -> u16 {
        let response = self.agent.delete(format!("{}{path}", self.url)).call();
        response.unwrap().status().as_u16()
    }

    /// JSON of a GET.
    pub fn get(&self, path: &str) -> Value {
        serde_json::from_slice(&self.bytes(path, &[]).1).unwrap()
    }

    /// Submits a job and gives its id.
    pub fn submit(&self, body: &Value) -> String {
        let (status, submitted) = self.post("/api/jobs", &[], &body.to_string());
        assert_eq!(status, 202, "{submitted}");
        submitted["job"]["id"].as_str().unwrap().to_owned()
    }

    /// Reads a job's events until `enough`, and gives the last one that was read.
    pub fn follow(&self, job: &str, mut enough: impl FnMut(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        for (_, event) in self.stream(&format!("/api/jobs/{job}/events"), &[]) {
            last = event;
            if enough(&last) {
                break;
            }
        }
        last
    }

    /// The first event of any job that is meant.
    pub fn first_event(&self, meant: impl Fn(&Value) -> bool) -> Value {
        let mut events = self.stream("/api/events", &[]);
        events.find(|(_, event)| meant(event)).unwrap().1
    }

    /// All events of a job that has ended, with their numbers.
    pub fn events(&self, job: &str, headers: &[(&str, &str)]) -> Vec<(u64, Value)> {
        self.stream(&format!("/api/jobs/{job}/events"), headers).collect()
    }

    /// Status and headers of a GET whose body is not waited for.
    pub fn head(&self, path: &str, headers: &[(&str, &str)]) -> (u16, ureq::http::HeaderMap) {
        let mut request = self.agent.get(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, _) = request.call().unwrap().into_parts();
        (head.status.as_u16(), head.headers)
    }

    /// Events with their numbers, as they come.
    pub fn stream(&self, path: &str, headers: &[(&str, &str)]) -> impl Iterator<Item = (u64, Value)> + use<> {
        let mut request = self.agent.get(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.call().unwrap();
        let reader: Box<dyn Read> =
            Box::new(response.into_body().into_with_config().limit(u64::MAX).reader());
        let mut id = 0;
        BufReader::new(reader).lines().filter_map(move |line| {
            let line = line.unwrap();
            if let Some(number) = line.strip_prefix("id: ") {
                id = number.parse().unwrap();
            }
            let data = line.strip_prefix("data: ")?;
            Some((id, serde_json::from_str(data).unwrap()))
        })
    }

    /// The job as it ended.
    pub fn ended(&self, job: &str) -> Value {
        self.follow(job, |_| false);
        self.get(&format!("/api/jobs/{job}"))
    }

    /// The address of a succeeded job's first picture.
    pub fn picture(&self, job: &str) -> String {
        let view = self.ended(job);
        assert_eq!(view["state"], "succeeded", "{view}");
        view["result"]["images"][0]["artifact"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// That picture.
    pub fn fetched(&self, job: &str) -> Rgb {
        let hash = self.picture(job);
        let (_, file) = self.bytes(&format!("/api/artifacts/{hash}"), &[]);
        decode_rgb(&file, &DecodeLimits::default()).unwrap()
    }

    /// Process ids of the workers.
    pub fn worker_pids(&self) -> Vec<i32> {
        let devices = self.get("/api/devices");
        devices
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|one| one["workers"].as_array().unwrap())
            .filter_map(|worker| Some(worker["pid"].as_u64()? as i32))
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn agent() -> ureq::Agent {
    // The deadline of every wait in these tests.
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_idle_connections_per_host(64)
        .timeout_global(Some(Duration::from_secs(120)))
        .build()
        .into()
}
