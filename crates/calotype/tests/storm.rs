//! Two hundred mixed jobs while workers and servers are killed: nothing accepted is lost, doubled, orphaned or left behind.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "the other tests use the rest")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};
use support::Server;

const JOBS: u64 = 200;
/// Jobs between two kills.
const KILL_EVERY: u64 = 20;

fn serve(dir: &Path) -> Server {
    let fake_worker = Path::new(env!("CARGO_BIN_EXE_calotype")).with_file_name("fake_worker");
    assert!(fake_worker.is_file(), "`cargo xtask test` builds it");
    let fake_worker = fake_worker.display().to_string();
    let options = ["--worker-program", &fake_worker, "--worker-arg", "good"];
    Server::start_in(dir, &options, &[("FAKE_STEP_MS", "3")])
}

/// Sizes, steps, pictures and classes differ; some have a preview.
fn request(number: u64) -> (String, Value) {
    let class = ["critical", "interactive", "batch", "background"][(number % 4) as usize];
    let body = json!({
        "prompt": format!("picture {number}"),
        "preset": "quality",
        "seed": number,
        "width": 64 + 64 * (number % 2),
        "height": 64,
        "steps": 2 + number % 7,
        "count": 1 + number % 2,
    });
    (format!("/api/jobs?class={class}"), body)
}

/// Submits with a key; the same key names the same job whatever happened to the answer before.
fn submit(server: &Server, number: u64) -> String {
    let (path, body) = request(number);
    let key = format!("order-{number}");
    let (status, answer) = server.post(&path, &[("Idempotency-Key", &key)], &body.to_string());
    assert!(status == 202 || status == 200, "{status}: {answer}");
    answer["job"]["id"].as_str().unwrap().to_owned()
}

fn kill(pid: i32) {
    // It may be gone already: then another kill of this storm was first.
    let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
}

/// Names under a folder, if there is one.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect()
}

fn segments() -> BTreeSet<String> {
    names(Path::new("/dev/shm"))
        .into_iter()
        .filter(|name| name.contains("calotype-"))
        .collect()
}

#[test]
fn nothing_accepted_is_lost_doubled_or_orphaned_when_workers_and_servers_are_killed_under_mixed_jobs() {
    let dir = tempfile::tempdir().unwrap();
    let segments_before = segments();
    let mut server = serve(dir.path());
    let (mut jobs, mut cancelled) = (BTreeMap::new(), BTreeSet::new());
    let mut pids = BTreeSet::new();
    for number in 0..JOBS {
        let job = submit(&server, number);
        assert_eq!(submit(&server, number), job, "a key names one job");
        match number % 11 {
            3 => {
                let (status, _) = server.post(&format!("/api/jobs/{job}/pause"), &[], "");
                assert!(matches!(status, 200 | 409), "{status}");
                let (status, _) = server.post(&format!("/api/jobs/{job}/resume"), &[], "");
                assert!(matches!(status, 200 | 409), "{status}");
            }
            7 => {
                let (status, _) = server.post(&format!("/api/jobs/{job}/cancel"), &[], "");
                if status == 200 {
                    cancelled.insert(number);
                }
            }
            _ => {}
        }
        jobs.insert(number, job);
        pids.extend(server.worker_pids());
        if number % KILL_EVERY == KILL_EVERY - 1 {
            server.worker_pids().into_iter().for_each(kill);
        }
        if number % (3 * KILL_EVERY) == 3 * KILL_EVERY - 1 {
            server.kill();
            server = serve(dir.path());
        }
    }
    let mut ends = BTreeMap::<String, usize>::new();
    for (number, job) in &jobs {
        let view = server.ended(job);
        let state = view["state"].as_str().unwrap().to_owned();
        match state.as_str() {
            "succeeded" => {
                let (_, body) = request(*number);
                let images = view["result"]["images"].as_array().unwrap();
                assert_eq!(images.len() as u64, body["count"].as_u64().unwrap(), "{view}");
                for image in images {
                    let hash = image["artifact"].as_str().unwrap();
                    let (status, _) = server.bytes(&format!("/api/artifacts/{hash}"), &[]);
                    assert_eq!(status, 200, "{view}");
                }
            }
            // Two of its workers were killed while it ran in them.
            "failed" => assert_eq!(view["error"]["code"], "QUARANTINED", "{view}"),
            "cancelled" => assert!(cancelled.contains(number), "{view}"),
            _ => panic!("{view}"),
        }
        *ends.entry(state).or_insert(0) += 1;
        assert_eq!(submit(&server, *number), *job, "the key still names it");
        // Its end was told once.
        let finals = server.events(job, &[]);
        let finals = finals.iter().filter(|(_, event)| {
            matches!(
                event["state"].as_str(),
                Some("succeeded" | "failed" | "cancelled")
            )
        });
        assert_eq!(finals.count(), 1, "{job}");
    }
    assert!(
        ends["succeeded"] > ends.get("failed").copied().unwrap_or(0),
        "{ends:?}"
    );
    let mut listed = 0;
    let mut page = "/api/jobs?limit=500".to_owned();
    loop {
        let found = server.get(&page);
        listed += found["jobs"].as_array().unwrap().len() as u64;
        match found["cursor"].as_u64() {
            Some(cursor) => page = format!("/api/jobs?limit=500&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(listed, JOBS, "each accepted job once");
    let memory = server.get("/api/memory");
    let leases = memory
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|view| view["leases"].as_array().unwrap());
    let working_sets: Vec<&Value> = leases.filter(|lease| lease["kind"] == "working_set").collect();
    assert!(working_sets.is_empty(), "{working_sets:?}");
    pids.extend(server.worker_pids());
    server.terminate();
    for pid in pids {
        let lives = test_kill_process(Pid::from_raw(pid).unwrap()).is_ok();
        assert!(!lives, "worker {pid} outlived its server");
    }
    for worker in names(&dir.path().join("scratch")) {
        assert_eq!(
            names(Path::new(&worker)),
            Vec::<String>::new(),
            "scratch folders are removed"
        );
    }
    assert_eq!(segments().difference(&segments_before).count(), 0);
    // A clean stop leaves a journal that is a whole backup by itself.
    let log = dir.path().join("journal.sqlite-wal");
    assert!(
        std::fs::metadata(&log).map_or(0, |facts| facts.len()) == 0,
        "the log is folded in"
    );
}
