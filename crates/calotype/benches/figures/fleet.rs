//! Many fake workers, one a declared device, whose speed can be changed: a worker reads it when it starts, and workers that
//! are killed are started again. One more is started for the processor, which is the last choice and may get no job.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::server::{Server, jobs_of};

/// Every worker of the fleet is ready, or at work, within this time.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Fake workers for one server.
pub struct Fleet {
    starter: PathBuf,
    step_ms: PathBuf,
    /// Those of the declared devices.
    pub workers: usize,
}

impl Fleet {
    /// Writes the program that starts a worker.
    pub fn new(dir: &Path, fake_worker: &Path, workers: usize, step_ms: u32) -> Self {
        let fleet = Self {
            starter: dir.join("worker"),
            step_ms: dir.join("step_ms"),
            workers,
        };
        fleet.set_step_ms(step_ms);
        let script = format!(
            "#!/bin/sh\nread -r FAKE_STEP_MS < '{}'\nexport FAKE_STEP_MS\nexec '{}' good\n",
            fleet.step_ms.display(),
            fake_worker.display()
        );
        fs::write(&fleet.starter, script).unwrap();
        fs::set_permissions(&fleet.starter, Permissions::from_mode(0o755)).unwrap();
        fleet
    }

    /// The time of a step in workers that start from now on.
    pub fn set_step_ms(&self, step_ms: u32) {
        fs::write(&self.step_ms, format!("{step_ms}\n")).unwrap();
    }

    /// What the server is started with. It takes the starter for a Python: that runtime serves declared devices in every
    /// commit, where `--worker-program` serves the processor alone.
    pub fn options(&self, more: &[&str]) -> Vec<String> {
        let starter = self.starter.display().to_string();
        let mut options: Vec<String> = ["--runtime", "python", "--python", &starter, "--weight-cache", "0"]
            .map(str::to_owned)
            .into();
        for index in 0..self.workers {
            options.extend(["--device".to_owned(), format!("xpu{index}=16GiB")]);
        }
        options.extend(more.iter().map(|option| (*option).to_owned()));
        options
    }

    /// Waits until every worker is ready.
    pub fn ready(&self, server: &Server) {
        let all = || {
            let workers = server.workers();
            workers.iter().filter(|worker| worker["state"] == "ready").count() == self.workers + 1
        };
        assert!(server.until(READY_WITHIN, all), "not all workers became ready");
    }

    /// Waits until as many workers as there are declared devices have a job.
    pub fn busy(&self, server: &Server) {
        let all = || {
            let workers = server.workers();
            workers
                .iter()
                .filter(|worker| !jobs_of(worker).is_empty())
                .count()
                == self.workers
        };
        assert!(server.until(READY_WITHIN, all), "not all workers got a job");
    }

    /// Kills all workers and waits until others are started in their place, with another time of a step. The server is not
    /// asked: it may be too busy with its workers to answer.
    pub fn replace(&self, server: &Server, step_ms: u32) {
        self.set_step_ms(step_ms);
        let before = server.children();
        for pid in &before {
            // It may have gone by itself.
            let _ = kill_process(Pid::from_raw(*pid).unwrap(), Signal::KILL);
        }
        let others = || {
            let new = server.children();
            new.iter().filter(|pid| !before.contains(pid)).count() == self.workers + 1
        };
        assert!(
            server.until(READY_WITHIN, others),
            "not all workers were replaced"
        );
    }
}
