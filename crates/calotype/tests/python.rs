//! The Python worker through the whole program. Runs where `CALOTYPE_PYTHON` names a Python with the worker's packages,
//! as `cargo xtask test` sets it; says aloud that it was skipped elsewhere.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "the other tests use the rest")]
mod support;

use calotype_imaging::{Format, Rgb, encode, psnr};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{Server, python};

fn picture(server: &Server, request: &Value) -> Rgb {
    server.fetched(&server.submit(request))
}

#[test]
fn both_workers_draw_the_same_from_the_same_request() {
    if python().is_none() {
        return;
    }
    let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let native = Server::start(own.path());
    let python = Server::start_with(other.path(), &["--runtime", "python"]);
    for request in [
        json!({ "prompt": "a red apple on the beach, 3d", "seed": 1 }),
        json!({ "prompt": "an (owl:1.3) in the [forest], <lora:pixel:0.6>", "seed": 2, "preset": "quality" }),
        json!({ "prompt": "a castle BREAK at night", "seed": 3, "preset": "quality", "sampler": "euler_ancestral",
            "variation_seed": 9, "variation_strength": 0.4, "loras": [{ "name": "pixel", "weight": 0.5 }] }),
    ] {
        let (own, other) = (picture(&native, &request), picture(&python, &request));
        let apart = psnr(&own, &other);
        assert!(apart >= 45.0, "{request}: {apart} dB");
    }
    let devices = python.get("/api/devices");
    assert_eq!(devices[0]["workers"][0]["runtime"], "python");
}

#[test]
fn the_python_worker_sleeps_until_a_job_needs_what_only_it_can_do() {
    if python().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), &["--runtime", "auto"]);
    let worker = |name: &str| {
        let devices = server.get("/api/devices");
        let workers = devices[0]["workers"].as_array().unwrap().clone();
        workers.into_iter().find(|worker| worker["name"] == name).unwrap()
    };
    let plain = json!({ "prompt": "a dog", "seed": 1 });
    let job = server.submit(&plain);
    server.picture(&job);
    assert_eq!(
        server.get(&format!("/api/jobs/{job}"))["result"]["worker"],
        "cpu0-native"
    );
    assert_eq!(worker("cpu0-python")["state"], "asleep");
    // A sampler that the native worker does not have, and a second pass.
    let only_python = json!({ "prompt": "a dog", "seed": 1, "preset": "quality", "sampler": "lms", "steps": 4,
        "hires": { "width": 320, "height": 320, "steps": 2 } });
    let job = server.submit(&only_python);
    let drawn = server.fetched(&job);
    assert_eq!((drawn.width, drawn.height), (320, 320));
    assert_eq!(
        server.get(&format!("/api/jobs/{job}"))["result"]["worker"],
        "cpu0-python"
    );
    // Both hold the model now, each in its own right and by the ledger of their one device.
    let memory = server.get("/api/memory");
    let leases = memory[0]["leases"].as_array().unwrap();
    assert_eq!(
        leases.iter().filter(|lease| lease["kind"] == "weights").count(),
        2,
        "{memory}"
    );
}

#[test]
fn a_python_worker_that_is_killed_or_stopped_is_replaced_and_its_job_done() {
    if python().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), &["--runtime", "python"]);
    let request = json!({ "prompt": "a castle", "seed": 3, "preset": "quality" });
    let straight = picture(&server, &request);
    for signal in [Signal::KILL, Signal::STOP] {
        let job = server.submit(&request);
        server.follow(&job, |event| {
            event["event"] == "progress" && event["progress"]["phase"] == "denoise"
        });
        kill_process(Pid::from_raw(server.worker_pids()[0]).unwrap(), signal).unwrap();
        assert_eq!(server.fetched(&job).pixels, straight.pixels, "{signal:?}");
        assert_eq!(server.get(&format!("/api/jobs/{job}"))["attempts"], 2);
    }
}

#[test]
fn a_part_of_an_image_is_drawn_at_full_size_and_the_rest_is_kept() {
    if python().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), &["--runtime", "python"]);
    let image = Rgb::new(400, 300, vec![90; 400 * 300 * 3]).unwrap();
    let mut hole = vec![0; 400 * 300 * 3];
    for row in 100..180 {
        hole[(row * 400 + 150) * 3..(row * 400 + 250) * 3].fill(255);
    }
    let hole = Rgb::new(400, 300, hole).unwrap();
    let png = |picture: &Rgb| {
        use base64::Engine as _;
        let file = encode(picture, Format::Png, 0, None).unwrap();
        base64::engine::general_purpose::STANDARD.encode(file)
    };
    let request = json!({ "prompt": "a red apple", "seed": 4, "preset": "quality", "strength": 1.0,
        "init_image": png(&image), "mask": png(&hole), "mask_area": "masked", "mask_padding": 16 });
    let drawn = picture(&server, &request);
    assert_eq!((drawn.width, drawn.height), (400, 300));
    let at = |x: usize, y: usize| &drawn.pixels[(y * 400 + x) * 3..(y * 400 + x) * 3 + 3];
    assert_eq!(
        (at(0, 0), at(399, 299), at(120, 140)),
        (&[90; 3][..], &[90; 3][..], &[90; 3][..])
    );
    assert_ne!(at(200, 140), [90; 3]);
}

/// Of a picture that does not fit whole beside its model on the CPU's budget, which is made small.
#[test]
fn a_picture_too_large_for_the_budget_is_decoded_in_tiles_and_says_so_before_and_after() {
    let dir = tempfile::tempdir().unwrap();
    if python().is_none() {
        return;
    }
    let total_bytes = Server::start(dir.path()).get("/api/memory")[0]["total_bytes"]
        .as_f64()
        .unwrap();
    // By the estimate: 2.7 GB whole, 1.1 GB in tiles, and 0.3 GB of weights.
    let share = (2.2e9 / total_bytes).to_string();
    let server = Server::start_with(dir.path(), &["--runtime", "python", "--memory-share", &share]);
    let small = json!({ "prompt": "a red apple", "width": 256, "height": 256, "steps": 1, "seed": 1 });
    let picture = server.fetched(&server.submit(&small));
    assert_eq!((picture.width, picture.height), (256, 256));
    let large = json!({ "prompt": "a red apple", "width": 1024, "height": 1024, "steps": 1, "seed": 1 });
    let (status, forecast) = server.post("/api/inference/validate", &[], &large.to_string());
    assert_eq!(status, 200, "{forecast}");
    assert_eq!(forecast["memory_plan"], json!(["vae_tiling"]), "{forecast}");
    let ended = server.ended(&server.submit(&large));
    assert_eq!(ended["state"], "succeeded", "{ended}");
    assert_eq!(ended["result"]["plan"], json!(["vae_tiling"]), "{ended}");
    // The same model, which was not loaded again, draws the small one as before.
    let again = server.fetched(&server.submit(&small));
    assert!(again.pixels == picture.pixels);
}
