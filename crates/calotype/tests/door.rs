//! The HTTP door with real processes: what a client may rely on around its pictures. The worker is `fake_worker`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "the other tests use the rest")]
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use serde_json::{Value, json};
use support::Server;

/// A server whose worker takes `step_ms` a step.
fn serve(dir: &Path, step_ms: u32, options: &[&str]) -> Server {
    Server::with_fake_worker(dir, step_ms, options)
}

fn request(steps: u32) -> Value {
    json!({ "prompt": "a", "preset": "quality", "seed": 1, "width": 64, "height": 64, "steps": steps })
}

#[test]
fn the_format_is_what_the_client_accepts() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), 0, &[]);
    let body = request(1).to_string();
    for (accept, begins) in [
        ("image/png", &b"\x89PNG"[..]),
        ("image/jpeg", b"\xFF\xD8\xFF"),
        ("image/avif, image/webp", b"RIFF"),
        ("image/*", b"\x89PNG"),
        ("*/*", b"{"),
    ] {
        let (status, bytes) = server.post_for_bytes("/api/inference/generate", &[("Accept", accept)], &body);
        assert!(status == 200 && bytes.starts_with(begins), "{accept}: {status}");
    }
    let (status, refused) = server.post("/api/inference/generate", &[("Accept", "text/html")], &body);
    assert_eq!((status, &refused["error"]["field"]), (422, &json!("Accept")));
}

#[test]
fn a_client_that_leaves_cancels_its_job() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), 20, &[]);
    let address = server.url.strip_prefix("http://").unwrap();
    let body = request(150).to_string();
    let mut client = TcpStream::connect(address).unwrap();
    write!(
        client,
        "POST /api/inference/generate HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let job = server.first_event(|event| event["event"] == "progress")["job"]
        .as_str()
        .unwrap()
        .to_owned();
    drop(client);
    assert_eq!(server.ended(&job)["state"], "cancelled");
}

#[test]
fn the_same_key_gives_the_same_job_on_both_ways_in() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), 0, &[]);
    let key = [("Idempotency-Key", "k")];
    let body = request(2).to_string();
    let (status, first) = server.post("/api/inference/generate", &key, &body);
    assert_eq!(status, 200);
    let (_, again) = server.post("/api/inference/generate", &key, &body);
    assert_eq!(again["id"], first["id"]);
    let (status, listed) = server.post("/api/jobs", &key, &body);
    assert_eq!((status, &listed["job"]["id"]), (200, &first["id"]));
    let (status, other) = server.post("/api/inference/generate", &key, &request(3).to_string());
    assert_eq!(
        (status, &other["error"]["code"]),
        (409, &json!("IDEMPOTENCY_KEY_REUSED"))
    );
}

#[test]
fn a_full_queue_says_when_to_come_back_and_keeps_what_it_took() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), 20, &["--queue", "2"]);
    let jobs: Vec<String> = (0..2).map(|_| server.submit(&request(100))).collect();
    let (status, headers, refused) = server.post_for_headers("/api/jobs", &request(1).to_string());
    assert_eq!(
        (status, &refused["error"]["code"]),
        (429, &json!("QUEUE_FULL")),
        "{refused}"
    );
    assert!(refused["error"]["retryable"].as_bool().unwrap());
    let after_s: u64 = headers
        .get("retry-after")
        .unwrap()
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(after_s >= 1);
    for job in &jobs {
        server.post(&format!("/api/jobs/{job}/cancel"), &[], "");
        assert_eq!(server.ended(job)["state"], "cancelled");
    }
    // There is room again.
    server.picture(&server.submit(&request(1)));
}

#[test]
fn events_go_on_behind_the_last_one_seen() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), 1, &[]);
    let job = server.submit(&request(20));
    server.ended(&job);
    let all = server.events(&job, &[("Last-Event-ID", "0")]);
    let ids: Vec<u64> = all.iter().map(|(id, _)| *id).collect();
    assert!(
        ids.len() > 5 && ids.windows(2).all(|pair| pair[0] < pair[1]),
        "{ids:?}"
    );
    let middle = ids[ids.len() / 2];
    let rest = server.events(&job, &[("Last-Event-ID", &middle.to_string())]);
    assert_eq!(rest, all[ids.len() / 2 + 1..], "nothing twice, nothing lost");
    assert_eq!(all.last().unwrap().1["state"], "succeeded");
    let (status, _) = server.bytes(&format!("/api/jobs/{job}/events"), &[("Last-Event-ID", "x")]);
    assert_eq!(status, 422);
}

#[test]
fn streams_of_events_pass_proxies_at_once_and_are_not_kept_by_caches() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), 0, &[]);
    let job = server.submit(&request(1));
    for path in ["/api/events", &format!("/api/jobs/{job}/events")] {
        let (status, headers) = server.head(path, &[]);
        assert_eq!(status, 200, "{path}");
        for (name, value) in [
            ("content-type", "text/event-stream"),
            ("cache-control", "no-store"),
            ("x-accel-buffering", "no"),
        ] {
            assert_eq!(headers[name], value, "{path}: {name}");
        }
    }
}

#[test]
fn a_client_that_knows_the_end_of_its_job_is_told_not_to_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), 0, &[]);
    let job = server.submit(&request(1));
    server.ended(&job);
    let path = format!("/api/jobs/{job}/events");
    let (last, end) = server.events(&job, &[("Last-Event-ID", "0")]).pop().unwrap();
    assert_eq!(end["state"], "succeeded");
    // Another job's events do not change that.
    server.ended(&server.submit(&request(1)));
    for known in [last, last + 1] {
        assert_eq!(
            server.head(&path, &[("Last-Event-ID", &known.to_string())]).0,
            204
        );
        assert_eq!(server.head(&format!("{path}?after={known}"), &[]).0, 204);
    }
    let rest = server.events(&job, &[("Last-Event-ID", &(last - 1).to_string())]);
    assert_eq!(rest, [(last, end)], "one that does not know it is told");
    // One that was shown the job as it stands has seen its end, too.
    let shown = server.events(&job, &[]);
    assert_eq!(shown.len(), 1);
    assert_eq!(
        server
            .head(&path, &[("Last-Event-ID", &shown[0].0.to_string())])
            .0,
        204
    );
    assert_eq!(
        server
            .head("/api/jobs/job_none/events", &[("Last-Event-ID", "1")])
            .0,
        404
    );
}

#[test]
fn a_stream_that_goes_on_over_a_restart_says_what_it_missed() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = serve(dir.path(), 0, &[]);
    let job = server.submit(&request(1));
    server.ended(&job);
    let first = server.events(&job, &[("Last-Event-ID", "0")])[0].0;
    server.terminate();
    let server = serve(dir.path(), 0, &[]);
    let known = first.to_string();
    let known = [("Last-Event-ID", known.as_str())];
    let (id, gap) = server.stream("/api/events", &known).next().unwrap();
    assert_eq!(
        (id, &gap["event"], &gap["missed_from"]),
        (first, &json!("gap"), &json!(first + 1))
    );
    let of_job = server.events(&job, &known);
    let kinds: Vec<&Value> = of_job.iter().map(|(_, event)| &event["event"]).collect();
    assert_eq!(kinds, ["gap", "job"]);
    assert_eq!(of_job[0].1["missed_from"], first + 1);
    assert_eq!(of_job[1].0, of_job[0].1["missed_to"]);
    assert_eq!(of_job[1].1["view"]["state"], "succeeded");
    let told = of_job[1].0.to_string();
    let again = server.head(&format!("/api/jobs/{job}/events"), &[("Last-Event-ID", &told)]);
    assert_eq!(again.0, 204);
}

#[test]
fn a_server_that_stops_ends_its_streams_and_keeps_its_jobs() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = serve(dir.path(), 20, &[]);
    let job = server.submit(&request(100));
    server.follow(&job, |event| event["event"] == "progress");
    let url = format!("{}/api/jobs/{job}/events", server.url);
    let stream = std::thread::spawn(move || {
        let response = ureq::get(&url).call().unwrap();
        let mut text = String::new();
        // An end, not a cut: reading comes to it without an error.
        response
            .into_body()
            .into_reader()
            .read_to_string(&mut text)
            .map(|_| text)
    });
    // It listens before the server is told to stop.
    server.first_event(|event| event["event"] == "progress");
    server.terminate();
    assert!(stream.join().unwrap().unwrap().contains("progress"));
    let server = serve(dir.path(), 0, &[]);
    server.picture(&job);
}

#[test]
fn strange_paths_and_bodies_get_the_envelope() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), 0, &[]);
    for path in [
        "/api/jobs/%ff%fe",
        "/api/models/%ff",
        "/api/artifacts/..%2f..%2fetc",
        "/api/jobs/%00",
    ] {
        let (status, bytes) = server.bytes(path, &[]);
        let answer: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(
            (status, &answer["error"]["code"]),
            (404, &json!("NOT_FOUND")),
            "{path}"
        );
    }
    let (status, answer) = server.post("/api/jobs", &[], "{}");
    assert_eq!((status, &answer["error"]["field"]), (422, &json!("prompt")));
    let (status, answer) = server.post("/api/jobs?priority=high", &[], &request(1).to_string());
    assert_eq!((status, &answer["error"]["code"]), (422, &json!("INVALID_INPUT")));
}

#[test]
fn a_parameter_that_a_route_does_not_take_is_refused_with_those_that_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), 0, &[]);
    for (path, field, advice) in [
        ("/api/jobs?colour=red", "colour", "state, limit, cursor"),
        ("/api/jobs?limit=3&Limit=4", "Limit", "state, limit, cursor"),
        ("/api/models?kind=lora", "kind", "no parameters"),
        ("/api/devices/cpu0?full=1", "full", "no parameters"),
        ("/api/events?since=3", "since", "after"),
        ("/health?verbose", "verbose", "no parameters"),
        ("/api/jobs?state=asleep", "state", "openapi.json"),
        ("/api/jobs?limit=many", "limit", "openapi.json"),
    ] {
        let (status, bytes) = server.bytes(path, &[]);
        let answer: Value = serde_json::from_slice(&bytes).unwrap();
        let error = &answer["error"];
        assert_eq!((status, &error["code"]), (422, &json!("INVALID_INPUT")), "{path}");
        assert_eq!(error["field"], field, "{path} {error}");
        assert!(
            error["advice"].as_str().unwrap().contains(advice),
            "{path} {error}"
        );
    }
    let (status, answer) = server.post("/api/jobs?clas=batch", &[], &request(1).to_string());
    assert_eq!((status, &answer["error"]["field"]), (422, &json!("clas")));
    for path in ["/api/jobs?", "/api/jobs?limit=3", "/api/models?"] {
        assert_eq!(server.bytes(path, &[]).0, 200, "{path}");
    }
}

#[test]
fn whatever_is_listed_is_found_by_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), 0, &["--device", "xpu0=16GiB"]);
    for route in ["/api/models", "/api/devices"] {
        let listed = server.get(route);
        let listed = listed.as_array().unwrap();
        assert!(listed.len() > 1, "{route}");
        for record in listed {
            let id = record["id"]
                .as_str()
                .or_else(|| record["device"]["id"].as_str())
                .unwrap();
            assert_eq!(server.bytes(&format!("{route}/{id}"), &[]).0, 200, "{route}/{id}");
        }
    }
    // What no driver tells is not guessed, and the rest says when it was read.
    let devices = server.get("/api/devices");
    let devices = devices.as_array().unwrap();
    let of = |id: &str| devices.iter().find(|view| view["device"]["id"] == id).unwrap();
    assert!(of("xpu0")["device"]["free_bytes"].is_null());
    assert!(of("cpu0")["device"]["free_bytes"].is_u64() && of("cpu0")["device"]["read_at_ms"].is_u64());
}

#[test]
fn every_named_key_opens_and_no_other_does() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), 0, &["--api-key", "studio=one", "--api-key", "two"]);
    for (key, expected) in [
        ("one", 200),
        ("two", 200),
        ("studio=one", 401),
        ("on", 401),
        ("", 401),
    ] {
        let (status, _) = server.bytes("/api/jobs", &[("Authorization", &format!("Bearer {key}"))]);
        assert_eq!(status, expected, "{key}");
        assert_eq!(
            server.bytes("/api/jobs", &[("X-API-Key", key)]).0,
            expected,
            "{key}"
        );
    }
    assert_eq!(server.bytes("/api/jobs", &[]).0, 401);
    assert_ne!(server.bytes("/health", &[]).0, 401);
    // A client may be given the same words as the server.
    let listed = std::process::Command::new(env!("CARGO_BIN_EXE_calotype"))
        .args([
            "jobs",
            "--json",
            "--server",
            &server.url,
            "--api-key",
            "studio=one",
        ])
        .output()
        .unwrap();
    assert!(
        listed.status.success(),
        "{}",
        String::from_utf8_lossy(&listed.stderr)
    );
}

#[test]
fn jobs_that_a_start_takes_over_are_counted_as_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = serve(dir.path(), 20, &[]);
    let job = server.submit(&request(100));
    server.follow(&job, |event| event["event"] == "progress");
    server.kill();
    let server = serve(dir.path(), 0, &[]);
    server.picture(&job);
    let text = String::from_utf8(server.bytes("/metrics", &[]).1).unwrap();
    for line in [
        "calotype_jobs_accepted_total 1",
        "calotype_jobs_ended_total{state=\"succeeded\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[test]
fn a_server_that_drains_ends_what_runs_and_meanwhile_answers_everything_but_new_jobs() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = serve(dir.path(), 20, &["--drain", "60"]);
    let job = server.submit(&request(100));
    server.follow(&job, |event| event["event"] == "progress");
    let pid = rustix::process::Pid::from_raw(server.child.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    // Each of its events is answered by the server, so that nothing here waits for a time.
    server.follow(&job, |_| server.get("/health")["status"] == "draining");
    assert_eq!(server.bytes("/health", &[]).0, 503);
    let (status, headers, refused) = server.post_for_headers("/api/jobs", &request(1).to_string());
    assert_eq!(
        (status, &refused["error"]["code"]),
        (503, &json!("SHUTTING_DOWN"))
    );
    assert!(headers.contains_key("retry-after"));
    assert_eq!(server.bytes("/api/devices", &[]).0, 200);
    let last = server.follow(&job, |event| event["state"] == "succeeded");
    assert_eq!(last["state"], "succeeded");
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn a_second_signal_leaves_at_once_with_the_code_of_a_cancel() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = serve(dir.path(), 20, &["--drain", "600"]);
    let job = server.submit(&request(150));
    server.follow(&job, |event| event["event"] == "progress");
    let pid = rustix::process::Pid::from_raw(server.child.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    server.follow(&job, |_| server.get("/health")["status"] == "draining");
    let asked = std::time::Instant::now();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(server.child.wait().unwrap().code(), Some(130));
    assert!(asked.elapsed() < std::time::Duration::from_secs(2));
    let server = serve(dir.path(), 0, &[]);
    server.picture(&job);
}

#[test]
fn figures_for_prometheus_are_histograms() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), 0, &[]);
    server.picture(&server.submit(&request(1)));
    let (status, bytes) = server.bytes("/metrics", &[]);
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(status, 200);
    for line in [
        "calotype_jobs_accepted_total 1",
        "calotype_jobs_ended_total{state=\"succeeded\"} 1",
        "# TYPE calotype_job_seconds histogram",
        "calotype_job_seconds_bucket{le=\"+Inf\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
