//! The whole program: real processes, the real native worker, the embedded model.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "the other tests use the rest")]
mod support;

use std::io::{BufRead, BufReader};

use base64::Engine as _;
use calotype_imaging::{DecodeLimits, decode_rgb, distance, perceptual_hash, psnr, read_metadata};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::json;
use support::Server;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn encoded(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[test]
fn a_prompt_becomes_the_reference_picture_and_every_mode_works() {
    let dir = folder();
    let server = Server::start(dir.path());
    let limits = DecodeLimits::default();
    let request = json!({ "prompt": "a red apple on the beach, 3d", "seed": 1 });
    let first = server.picture(&server.submit(&request));
    let (status, png) = server.bytes(&format!("/api/artifacts/{first}"), &[]);
    assert_eq!(status, 200);
    let metadata = read_metadata(&png).unwrap().unwrap();
    assert_eq!(
        (metadata.seed, metadata.prompt.as_str()),
        (1, "a red apple on the beach, 3d")
    );
    // What diffusers draws from the same noise.
    let reference = concat!(env!("CARGO_MANIFEST_DIR"), "/../worker/tests/fixtures/fast.png");
    let reference = decode_rgb(&std::fs::read(reference).unwrap(), &limits).unwrap();
    let picture = decode_rgb(&png, &limits).unwrap();
    let apart = distance(perceptual_hash(&picture), perceptual_hash(&reference));
    assert!(apart <= 4, "{apart} bits apart");
    // Same seed, same picture; a LoRA changes it, and leaves no trace.
    let styled =
        json!({ "prompt": "a red apple on the beach, 3d", "seed": 1, "loras": [{ "name": "pixel" }] });
    assert_ne!(server.picture(&server.submit(&styled)), first);
    assert_eq!(server.picture(&server.submit(&request)), first);
    // From the picture, and a part of it anew.
    let again = json!({ "prompt": "a lemon on the beach, 3d", "seed": 2, "init_image": encoded(&png), "strength": 0.75 });
    assert_ne!(server.picture(&server.submit(&again)), first);
    let mut mask = vec![0; 256 * 256 * 3];
    mask[..256 * 128 * 3].fill(255);
    let mask = calotype_imaging::Rgb::new(256, 256, mask).unwrap();
    let mask = calotype_imaging::encode(&mask, calotype_imaging::Format::Png, 0, None).unwrap();
    let part = json!({ "prompt": "a night sky", "seed": 2, "init_image": format!("artifact:{first}"), "mask": encoded(&mask) });
    let part = server.picture(&server.submit(&part));
    let part = decode_rgb(&server.bytes(&format!("/api/artifacts/{part}"), &[]).1, &limits).unwrap();
    let below = 256 * 160 * 3;
    assert_eq!(
        part.pixels[below..],
        picture.pixels[below..],
        "what the mask keeps is kept"
    );
    assert!(
        psnr(&part, &picture) < 40.0,
        "what it does not keep is drawn anew"
    );
    // A part of a file, and the file that the client has.
    assert_eq!(
        server.bytes(&format!("/api/artifacts/{first}"), &[("Range", "bytes=0-7")]),
        (206, png[..8].to_vec())
    );
    assert_eq!(
        server
            .bytes(
                &format!("/api/artifacts/{first}"),
                &[("If-None-Match", &format!("\"{first}\""))]
            )
            .0,
        304
    );
}

#[test]
fn a_job_is_paused_resumed_and_cancelled_at_a_step_and_its_pixels_do_not_change() {
    let dir = folder();
    let server = Server::start(dir.path());
    let request = json!({ "prompt": "an owl", "seed": 5, "preset": "quality", "steps": 20, "sampler": "euler_ancestral" });
    let straight = server.picture(&server.submit(&request));
    let job = server.submit(&request);
    server.follow(&job, |event| {
        event["event"] == "progress" && event["progress"]["phase"] == "denoise"
    });
    server.post(&format!("/api/jobs/{job}/pause"), &[], "");
    server.follow(&job, |event| event["state"] == "paused");
    let (status, _) = server.post(&format!("/api/jobs/{job}/resume"), &[], "");
    assert_eq!(status, 200);
    assert_eq!(server.picture(&job), straight);
    let long = server.submit(&json!({ "prompt": "an owl", "preset": "quality", "steps": 150 }));
    server.follow(&long, |event| {
        event["event"] == "progress" && event["progress"]["phase"] == "denoise"
    });
    server.post(&format!("/api/jobs/{long}/cancel"), &[], "");
    assert_eq!(server.ended(&long)["state"], "cancelled");
    let (status, refused) = server.post(&format!("/api/jobs/{long}/pause"), &[], "");
    assert_eq!(
        (status, refused["error"]["code"].as_str()),
        (409, Some("CONFLICT"))
    );
    // The device is free for the next one.
    server.picture(&server.submit(&json!({ "prompt": "a dog", "seed": 1 })));
}

#[test]
fn nothing_accepted_is_lost_when_worker_and_server_are_killed() {
    let dir = folder();
    let mut server = Server::start(dir.path());
    let request = json!({ "prompt": "a castle", "seed": 3, "preset": "quality" });
    let straight = server.picture(&server.submit(&request));
    // The worker first.
    let job = server.submit(&request);
    server.follow(&job, |event| {
        event["event"] == "progress" && event["progress"]["phase"] == "denoise"
    });
    let pid = Pid::from_raw(server.worker_pids()[0]).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    assert_eq!(server.picture(&job), straight);
    assert_eq!(server.get(&format!("/api/jobs/{job}"))["attempts"], 2);
    // Then the server, with jobs waiting.
    let keyed = [("Idempotency-Key", "order-17")];
    let (status, accepted) = server.post("/api/jobs", &keyed, &request.to_string());
    assert_eq!(status, 202);
    let interrupted = accepted["job"]["id"].as_str().unwrap().to_owned();
    let waiting: Vec<String> = (0..4)
        .map(|seed| server.submit(&json!({ "prompt": "a cat", "seed": seed })))
        .collect();
    server.follow(&interrupted, |event| {
        event["event"] == "progress" && event["progress"]["phase"] == "denoise"
    });
    let orphans = server.worker_pids();
    server.kill();
    let server = Server::start(dir.path());
    assert_eq!(server.picture(&interrupted), straight);
    for job in &waiting {
        server.picture(job);
    }
    for pid in orphans {
        assert!(
            test_kill_process(Pid::from_raw(pid).unwrap()).is_err(),
            "worker {pid} outlived its server"
        );
    }
    let (status, same) = server.post("/api/jobs", &keyed, &request.to_string());
    assert_eq!(
        (status, same["job"]["id"].as_str()),
        (200, Some(interrupted.as_str()))
    );
    let (status, other) = server.post("/api/jobs", &keyed, r#"{"prompt":"another"}"#);
    assert_eq!(
        (status, other["error"]["code"].as_str()),
        (409, Some("IDEMPOTENCY_KEY_REUSED"))
    );
    assert_eq!(server.get("/api/jobs")["jobs"].as_array().unwrap().len(), 7);
}

#[test]
fn bad_input_is_refused_by_field_and_changes_nothing() {
    let dir = folder();
    let server = Server::start(dir.path());
    // From here on the worker has said what it can do.
    let first = server.submit(&json!({ "prompt": "a", "seed": 1 }));
    server.picture(&first);
    assert_eq!(server.delete(&format!("/api/jobs/{first}")), 204);
    let bomb = encoded(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\x01\x86\xa0\0\x01\x86\xa0\x08\x02\0\0\0\0\0\0\0");
    let long = "x".repeat(32_001);
    for (body, status, code, field) in [
        (
            r#"{"prompt":"a","width":100}"#.to_owned(),
            422,
            "INVALID_INPUT",
            "width",
        ),
        (
            r#"{"prompt":"a","width":264}"#.to_owned(),
            422,
            "INVALID_INPUT",
            "width",
        ),
        (
            r#"{"prompt":"a","guidance":1e999}"#.to_owned(),
            400,
            "MALFORMED_BODY",
            "",
        ),
        (
            r#"{"prompt":"a","guidance":NaN}"#.to_owned(),
            400,
            "MALFORMED_BODY",
            "",
        ),
        (
            r#"{"prompt":"a","sampler":"eulr"}"#.to_owned(),
            422,
            "INVALID_INPUT",
            "sampler",
        ),
        (
            r#"{"prompt":"a","model":"calotype-tny"}"#.to_owned(),
            422,
            "UNKNOWN_MODEL",
            "model",
        ),
        (
            r#"{"prompt":"a","colour":"red"}"#.to_owned(),
            422,
            "INVALID_INPUT",
            "colour",
        ),
        (
            r#"{"prompt":"a","control":[{"model":"canny","image":"x"}]}"#.to_owned(),
            422,
            "NOT_SUPPORTED",
            "control",
        ),
        (
            format!(r#"{{"prompt":"{long}"}}"#),
            422,
            "INVALID_INPUT",
            "prompt",
        ),
        (
            format!(r#"{{"prompt":"a","init_image":"{bomb}"}}"#),
            422,
            "IMAGE_REFUSED",
            "init_image",
        ),
        ("not json".to_owned(), 400, "MALFORMED_BODY", ""),
    ] {
        for route in ["/api/jobs", "/api/inference/generate", "/api/inference/validate"] {
            let (got, answer) = server.post(route, &[], &body);
            let error = &answer["error"];
            let shown: String = body.chars().take(60).collect();
            assert_eq!(
                (got, error["code"].as_str()),
                (status, Some(code)),
                "{route} {shown} {answer}"
            );
            if !field.is_empty() {
                assert_eq!(error["field"], field, "{route} {shown}");
            }
            assert!(error["request_id"].is_string());
        }
    }
    assert!(server.get("/api/jobs")["jobs"].as_array().unwrap().is_empty());
    assert_eq!(server.bytes("/api/jobs/job_none", &[]).0, 404);
    assert_eq!(server.get("/nowhere")["error"]["code"], "NOT_FOUND");
    assert_eq!(
        server.get("/api/inference/generate")["error"]["code"],
        "METHOD_NOT_ALLOWED"
    );
}

#[test]
fn the_command_line_makes_a_picture_with_nothing_running() {
    let dir = folder();
    let ended = std::process::Command::new(env!("CARGO_BIN_EXE_calotype"))
        .args(["generate", "a red apple, 3d", "--runtime", "rten", "--seed", "1"])
        .env_remove("CALOTYPE_SERVER")
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(
        ended.status.success(),
        "{}",
        String::from_utf8_lossy(&ended.stderr)
    );
    let png = std::fs::read(dir.path().join("a-red-apple-3d.png")).unwrap();
    assert_eq!(read_metadata(&png).unwrap().unwrap().seed, 1);
    let refused = std::process::Command::new(env!("CARGO_BIN_EXE_calotype"))
        .args(["generate", "a", "--size", "100x100"])
        .env_remove("CALOTYPE_SERVER")
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("help:"));
}

#[test]
fn the_first_interrupt_cancels_the_job_and_the_exit_code_says_so() {
    let dir = folder();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_calotype"))
        .args([
            "generate",
            "an owl",
            "--runtime",
            "rten",
            "--preset",
            "quality",
            "--steps",
            "150",
        ])
        .env_remove("CALOTYPE_SERVER")
        .current_dir(dir.path())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(
        lines
            .by_ref()
            .any(|line| line.unwrap().starts_with("denoise 1/150"))
    );
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), Signal::INT).unwrap();
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(rest.iter().any(|line| line == "cancelled"), "{rest:?}");
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        0,
        "no picture, and nothing else"
    );
}
