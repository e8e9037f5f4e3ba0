//! Pictures of the embedded model, by each runtime that is here.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::row::{Times, held_to, say, shown, told};
use super::support::Server;

const PROMPT: &str = "a red apple on the beach, 3d";

/// All rows.
pub fn measure() {
    for (runtime, target_ms) in [("rten", 800), ("onnxruntime", 400)] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let server = Server::start_with(dir.path(), &["--runtime", runtime]);
        let warm = server.ended(&server.submit(&json!({ "prompt": PROMPT })));
        let engine = warm["result"]["engine"].as_str().unwrap().to_owned();
        if !engine.starts_with(runtime) {
            eprintln!(
                "skipped: no library of {runtime} was found (pip install onnxruntime, or CALOTYPE_ONNXRUNTIME=FILE)"
            );
            continue;
        }
        one_by_one(&server, &engine, Duration::from_millis(target_ms));
        together(&server, &engine);
        cancelled(&server, &engine);
        drop(server);
        first(&engine, runtime);
    }
}

/// From the start of `generate`, server and all, to the file.
fn first(engine: &str, runtime: &str) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut times = Vec::new();
    for _ in 0..7 {
        let began = Instant::now();
        let ended = Command::new(env!("CARGO_BIN_EXE_calotype"))
            .args([
                "generate",
                PROMPT,
                "--runtime",
                runtime,
                "--seed",
                "1",
                "--output",
                "a.png",
            ])
            .env_remove("CALOTYPE_SERVER")
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(ended.unwrap().success());
        times.push(began.elapsed());
    }
    held_to(
        engine,
        "`generate` with nothing running: start → picture on disk, p50",
        Times::new(times).median(),
        Duration::from_millis(2500),
    );
}

fn one_by_one(server: &Server, engine: &str, target: Duration) {
    let mut times = Vec::new();
    for seed in 0..10 {
        let body = json!({ "prompt": PROMPT, "seed": seed }).to_string();
        let began = Instant::now();
        let (status, _) = server.post_for_bytes("/api/inference/generate", &[("Accept", "image/png")], &body);
        assert_eq!(status, 200);
        times.push(began.elapsed());
    }
    held_to(
        engine,
        "a picture in a running server, preset `fast` (4 steps), p50",
        Times::new(times).median(),
        target,
    );
    let (mut steps, mut decodes, mut wholes, mut overheads) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for seed in 0..5 {
        let began = Instant::now();
        let job = server.ended(&server.submit(&quality(seed)));
        let whole = began.elapsed();
        let phase = |name: &str| ms(&job["result"]["timings_ms"][name]);
        steps.push(phase("denoise") / 20);
        decodes.push(phase("decode"));
        overheads.push(whole.saturating_sub(phase("denoise") + phase("decode") + phase("encode")));
        wholes.push(whole);
    }
    told(
        engine,
        "a step with guidance, 256² (batch of 2)",
        Times::new(steps).median(),
    );
    told(engine, "VAE decode, 256²", Times::new(decodes).median());
    let whole = Times::new(wholes).median();
    told(
        engine,
        "a picture, preset `quality` (20 steps, guidance 3), p50",
        whole,
    );
    let overhead = Times::new(overheads).median();
    held_to(
        engine,
        "what that picture takes beside the model's work",
        overhead,
        (whole / 100).max(Duration::from_millis(10)),
    );
}

fn together(server: &Server, engine: &str) {
    let mut alone = None;
    for jobs in [1u64, 2, 4] {
        let began = Instant::now();
        let submitted: Vec<String> = (0..jobs).map(|seed| server.submit(&quality(seed))).collect();
        let ended: Vec<Value> = submitted.iter().map(|job| server.ended(job)).collect();
        let each = began.elapsed() / jobs as u32;
        let largest = ended
            .iter()
            .flat_map(|job| job["result"]["batch_sizes"].as_array().unwrap())
            .filter_map(Value::as_u64)
            .max();
        let first = *alone.get_or_insert(each);
        let ratio = first.as_secs_f64() / each.as_secs_f64();
        say(
            engine,
            &format!(
                "{jobs} jobs at once, preset `quality`: time a picture (largest batch {})",
                largest.unwrap_or(0)
            ),
            &format!("{} ({ratio:.2}×)", shown(each)),
        );
    }
}

fn cancelled(server: &Server, engine: &str) {
    let mut times = Vec::new();
    let mut longest_step = Duration::ZERO;
    for seed in 0..8 {
        let mut long = quality(seed);
        long["steps"] = json!(150);
        let job = server.submit(&long);
        server.follow(&job, |event| {
            if event["progress"]["phase"] == "denoise" {
                longest_step = longest_step.max(ms(&event["progress"]["step_ms"]));
                return true;
            }
            false
        });
        let began = Instant::now();
        server.post(&format!("/api/jobs/{job}/cancel"), &[], "");
        assert_eq!(server.ended(&job)["state"], "cancelled");
        times.push(began.elapsed());
    }
    held_to(
        engine,
        "cancel → the job is out and journaled, slowest of 8",
        Times::new(times).percentile(100),
        longest_step + Duration::from_millis(100),
    );
}

fn quality(seed: u64) -> Value {
    json!({ "prompt": PROMPT, "seed": seed, "preset": "quality" })
}

fn ms(value: &Value) -> Duration {
    Duration::from_secs_f64(value.as_f64().unwrap_or_default() / 1e3)
}
