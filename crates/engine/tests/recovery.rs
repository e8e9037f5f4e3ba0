//! The engine against workers that fail: each fault of `fake_worker` ends in the right outcome for the job, with the
//! cause told, and the worker kept or replaced.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use calotype_engine::inference::{GenerateRequest, LoraRequest};
use calotype_engine::processing::{JobState, JobView};
use calotype_engine::worker::Timing;
use calotype_engine::{
    Code, Config, Engine, Event, EventKind, Runtime, StartOnCpu, SubmitOptions, Subscription, WorkerChange,
    WorkerView,
};
use calotype_protocol::JobId;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

struct Bench {
    engine: Engine,
    dir: tempfile::TempDir,
}

fn config(dir: &Path, fault: &str) -> Config {
    let runtime = Runtime {
        name: "fake".into(),
        program: PathBuf::from(env!("CARGO_BIN_EXE_fake_worker")),
        args: vec![fault.to_owned()],
        env: vec![
            ("FAKE_MARKER".to_owned(), dir.join("marker").display().to_string()),
            ("FAKE_STEP_MS".to_owned(), "5".to_owned()),
        ],
        device_kinds: vec!["cpu".into()],
        on_cpu: StartOnCpu::AtOnce,
    };
    let mut config = Config::new(dir.join("data"), vec![runtime]);
    config.model_dirs = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models")];
    config.timing = Timing {
        heartbeat_every: Duration::from_millis(20),
        silence: Duration::from_millis(400),
        step_first: Duration::from_millis(400),
        step_least: Duration::from_millis(400),
        term_grace: Duration::from_millis(200),
        backoff_first: Duration::from_millis(10),
        backoff_most: Duration::from_millis(80),
        ..Timing::default()
    };
    config
}

impl Bench {
    async fn start(fault: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::start(config(dir.path(), fault)).await.unwrap();
        Self { engine, dir }
    }

    fn request(&self, steps: u32) -> GenerateRequest {
        GenerateRequest {
            prompt: "a".into(),
            preset: Some("quality".into()),
            seed: Some(7),
            width: Some(64),
            height: Some(64),
            steps: Some(steps),
            ..GenerateRequest::default()
        }
    }

    async fn submit(&self, steps: u32) -> JobId {
        let submitted = self
            .engine
            .submit(self.request(steps), SubmitOptions::default())
            .await;
        submitted.unwrap().job.id
    }

    async fn ended(&self, job: &JobId) -> JobView {
        in_time(self.engine.wait(job)).await.unwrap()
    }

    /// Submits a job, and waits for its end.
    async fn ends(&self) -> JobView {
        let job = self.submit(4).await;
        self.ended(&job).await
    }

    async fn worker(&self) -> WorkerView {
        let mut devices = self.engine.devices().await.unwrap();
        devices.remove(0).workers.remove(0)
    }
}

async fn in_time<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, wait).await.unwrap()
}

/// The first event that is meant.
async fn event<T>(events: &mut Subscription, meant: impl Fn(&Event) -> Option<T>) -> T {
    loop {
        let event = in_time(events.next()).await.unwrap();
        if let Some(found) = meant(&event) {
            return found;
        }
    }
}

fn why_gone(event: &Event) -> Option<String> {
    match &event.kind {
        EventKind::Worker {
            state: WorkerChange::Gone,
            reason,
            ..
        } => reason.clone(),
        _ => None,
    }
}

fn failed_with(view: &JobView) -> (Code, String) {
    assert_eq!(view.state, JobState::Failed);
    let error = view.error.clone().unwrap();
    (error.code, error.message)
}

#[tokio::test]
async fn a_job_without_memory_is_tried_once_more_and_alone() {
    let bench = Bench::start("out_of_memory_once").await;
    let view = bench.ends().await;
    assert_eq!((view.state, view.attempts), (JobState::Succeeded, 2));
    assert_eq!(bench.worker().await.incarnation, 1, "the worker is kept");
}

#[tokio::test]
async fn a_job_that_never_has_memory_fails_with_the_numbers_and_the_worker_stays() {
    let bench = Bench::start("out_of_memory").await;
    let view = bench.ends().await;
    let (code, message) = failed_with(&view);
    assert_eq!((code, view.attempts), (Code::OutOfMemory, 2));
    assert!(message.contains("4000 bytes asked for, 1000 free"), "{message}");
    assert_eq!(bench.worker().await.incarnation, 1);
}

#[tokio::test]
async fn a_job_that_fails_is_tried_once_more_and_the_worker_stays() {
    let bench = Bench::start("fails").await;
    let view = bench.ends().await;
    assert_eq!((failed_with(&view).0, view.attempts), (Code::WorkerFailed, 2));
    assert_eq!(bench.worker().await.incarnation, 1);
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_is_marked_with_file_and_tensor() {
    let bench = Bench::start("model_load").await;
    for _ in 0..2 {
        let view = bench.ends().await;
        let (code, message) = failed_with(&view);
        assert_eq!((code, view.attempts), (Code::ModelUnusable, 0));
        assert!(message.contains("unet.safetensors: conv_in.weight"), "{message}");
    }
    assert_eq!(bench.worker().await.incarnation, 1);
}

#[tokio::test]
async fn a_job_whose_worker_was_killed_is_done_by_the_next_one() {
    let bench = Bench::start("killed_once").await;
    let mut events = bench.engine.events(None, None);
    let view = bench.ends().await;
    assert_eq!((view.state, view.attempts), (JobState::Succeeded, 2));
    assert!(event(&mut events, why_gone).await.contains("signal 9"));
    assert!(bench.dir.path().join("marker").exists());
    assert_eq!(bench.worker().await.incarnation, 2);
}

#[tokio::test]
async fn a_job_that_kills_two_workers_is_quarantined_with_the_cause() {
    for (fault, cause) in [
        ("killed_mid_step", "signal 9"),
        ("loses_its_device", "an illegal address was accessed"),
        ("never_finishes", "made no progress"),
    ] {
        let bench = Bench::start(fault).await;
        let view = bench.ends().await;
        let (code, message) = failed_with(&view);
        assert_eq!((code, view.attempts), (Code::Quarantined, 2), "{fault}");
        assert!(message.contains(cause), "{fault}: {message}");
    }
}

#[tokio::test]
async fn a_job_that_stalls_fails_at_its_deadline_and_the_worker_stays() {
    let bench = Bench::start("stalls").await;
    assert_eq!(failed_with(&bench.ends().await).0, Code::DeadlineMissed);
    assert_eq!(bench.worker().await.incarnation, 1);
}

#[tokio::test]
async fn a_cancel_that_is_ignored_is_true_once_the_process_is_dead() {
    let bench = Bench::start("ignores_cancel").await;
    let mut events = bench.engine.events(None, None);
    // 150 steps of 5 ms: longer than the worker gets to heed the cancel.
    let job = bench.submit(150).await;
    event(&mut events, |event| {
        matches!(event.kind, EventKind::Progress { .. }).then_some(())
    })
    .await;
    let asked = bench.engine.cancel(&job).await.unwrap();
    assert_eq!(asked.state, JobState::Running, "not said before it is true");
    assert_eq!(bench.ended(&job).await.state, JobState::Cancelled);
    let gone = event(&mut events, why_gone).await;
    assert!(gone.contains("could not be cancelled"), "{gone}");
}

#[tokio::test]
async fn while_no_worker_gets_ready_a_job_waits_and_says_why() {
    for (fault, cause) in [
        ("exits_before_ready", "left before it was ready (exit status 3)"),
        ("dies_at_import", "left before it was ready (exit status 1)"),
        ("wrong_major", "it speaks protocol"),
    ] {
        let bench = Bench::start(fault).await;
        let mut events = bench.engine.events(None, None);
        let job = bench.submit(4).await;
        let gone = event(&mut events, why_gone).await;
        assert!(gone.contains(cause), "{fault}: {gone}");
        // The next one dies as well: by then the dispatcher has looked at the job again.
        event(&mut events, why_gone).await;
        let view = bench.engine.job(&job).await.unwrap();
        assert_eq!((view.state, view.attempts), (JobState::Queued, 0), "{fault}");
        let reason = view.reason.unwrap();
        assert!(reason.contains(cause), "{fault}: {reason}");
        let health = bench.engine.health().await;
        assert_ne!(health.status, "ok", "{fault}");
        // What waits can be taken back at once.
        bench.engine.cancel(&job).await.unwrap();
        assert_eq!(bench.ended(&job).await.state, JobState::Cancelled, "{fault}");
    }
}

#[tokio::test]
async fn a_worker_that_breaks_the_protocol_is_replaced_with_the_cause_told() {
    for (fault, cause) in [
        ("prints_to_stdout", "Loading weights"),
        ("half_a_line", "inside a frame"),
        ("oversize_frame", "a blob of 314572800 bytes announced"),
        ("silent", "it fell silent"),
        ("leaves_a_grandchild", "without being asked (exit status 0)"),
    ] {
        let bench = Bench::start(fault).await;
        let mut events = bench.engine.events(None, None);
        for _ in 0..2 {
            let gone = event(&mut events, why_gone).await;
            assert!(gone.contains(cause), "{fault}: {gone}");
        }
    }
}

#[tokio::test]
async fn logs_and_lines_of_an_old_attempt_change_nothing() {
    for fault in ["flood_of_logs", "stale_attempt", "good"] {
        let bench = Bench::start(fault).await;
        let view = bench.ends().await;
        assert_eq!((view.state, view.attempts), (JobState::Succeeded, 1), "{fault}");
        assert_eq!(bench.worker().await.incarnation, 1, "{fault}");
    }
}

#[tokio::test]
async fn memory_is_leased_while_it_is_held_and_not_longer() {
    let bench = Bench::start("killed_mid_step").await;
    bench.ends().await;
    // Reaped twice: what the job and its model held is given back, and no lease is older than its process.
    let memory = bench.engine.memory().await.unwrap().remove(0);
    assert!(
        memory.leases.iter().all(|lease| lease.kind == "weights"),
        "{memory:?}"
    );
    assert!(memory.high_water_bytes > 0);
    bench.engine.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn what_a_lora_changes_is_leased_once_as_long_as_a_job_uses_it() {
    let bench = Bench::start("good").await;
    let mut events = bench.engine.events(None, None);
    let styled = GenerateRequest {
        loras: Some(vec![LoraRequest {
            name: "pixel".into(),
            weight: Some(0.5),
        }]),
        ..bench.request(150)
    };
    let adapters = async || -> Vec<u64> {
        let memory = bench.engine.memory().await.unwrap().remove(0);
        let leases = memory.leases.into_iter().filter(|lease| lease.kind == "adapters");
        leases.map(|lease| lease.bytes).collect()
    };
    let mut jobs = Vec::new();
    for _ in 0..2 {
        let submitted = bench
            .engine
            .submit(styled.clone(), SubmitOptions::default())
            .await;
        let job = submitted.unwrap().job.id;
        let is_in = |event: &Event| match &event.kind {
            EventKind::Progress { job: of, .. } if *of == job => Some(()),
            _ => None,
        };
        event(&mut events, is_in).await;
        jobs.push(job);
    }
    let [bytes] = adapters().await[..] else {
        panic!("there is not one lease for both");
    };
    let models = bench.engine.models().await;
    let pixel = models.iter().find(|model| model.name == "pixel").unwrap();
    assert!(pixel.lora_elements > 0);
    assert_eq!(bytes, pixel.lora_elements * 4);
    for (job, left) in jobs.iter().zip([vec![bytes], Vec::new()]) {
        bench.engine.cancel(job).await.unwrap();
        assert_eq!(bench.ended(job).await.state, JobState::Cancelled);
        assert_eq!(adapters().await, left);
    }
}

#[tokio::test]
async fn a_device_that_is_declared_is_served_and_a_job_too_large_for_it_is_done_in_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), "good");
    config.runtimes[0].device_kinds.push("mps".into());
    config.declared = vec!["mps0=1GB".parse().unwrap()];
    let engine = Engine::start(config).await.unwrap();
    let bench = Bench { engine, dir };
    let memory = bench.engine.memory().await.unwrap();
    let budget = |device: &str| memory.iter().find(|view| view.device == device).unwrap();
    assert_eq!(budget("mps0").budget_bytes, 800_000_000);
    // Both are the host's memory: what the one may take the other may not.
    let host = budget("cpu0");
    let whole = (host.total_bytes as f64 * 0.8) as u64;
    assert!(host.budget_bytes <= whole - 800_000_000, "{host:?}");
    let mut events = bench.engine.events(None, None);
    let all_ready = async || {
        let devices = bench.engine.devices().await.unwrap();
        let mut workers = devices.iter().flat_map(|device| &device.workers);
        workers.all(|worker| worker.state == "ready")
    };
    while !all_ready().await {
        in_time(events.next()).await.unwrap();
    }
    let small = bench.submit(4).await;
    let view = bench.ended(&small).await;
    assert_eq!(view.result.unwrap().worker, "mps0-fake");
    // Attention is not fused there: its scores for 4096 tokens take a gigabyte.
    let large = GenerateRequest {
        width: Some(512),
        height: Some(512),
        ..bench.request(4)
    };
    let forecast = bench.engine.validate(large.clone()).await.unwrap();
    assert_eq!(forecast.memory_plan, ["attention_slicing"], "{forecast:?}");
    assert_eq!(forecast.worker.as_deref(), Some("mps0-fake"));
    let submitted = bench
        .engine
        .submit(large, SubmitOptions::default())
        .await
        .unwrap();
    let view = bench.ended(&submitted.job.id).await;
    assert_eq!(view.result.unwrap().worker, "mps0-fake");
}

#[tokio::test]
async fn weights_that_will_wait_on_the_host_are_in_memory_before_their_model_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), "good");
    config.runtimes[0].device_kinds = vec!["xpu".into()];
    config.runtimes[0].env.push(("FAKE_OFFLOADS".into(), "1".into()));
    config.declared = vec!["xpu0=235MB".parse().unwrap()];
    let engine = Engine::start(config).await.unwrap();
    let bench = Bench { engine, dir };
    let mut events = bench.engine.events(None, None);
    let ready = |event: &Event| match &event.kind {
        EventKind::Worker {
            state: WorkerChange::Ready,
            ..
        } => Some(()),
        _ => None,
    };
    event(&mut events, ready).await;
    let forecast = bench.engine.validate(bench.request(4)).await.unwrap();
    assert_eq!(forecast.memory_plan, ["offload_model"], "{forecast:?}");
    assert_eq!(bench.ends().await.state, JobState::Succeeded);
    let memory = bench.engine.memory().await.unwrap();
    let cache = memory.into_iter().find_map(|view| view.cache).unwrap();
    // UNet, VAE and text encoder.
    assert_eq!((cache.hits, cache.misses), (3, 0));
    assert!(
        cache
            .segments
            .iter()
            .all(|segment| segment.mapped_by == ["xpu0-fake"])
    );
}

#[tokio::test]
async fn jobs_beside_each_other_do_not_tell_what_one_of_them_takes() {
    let bench = Bench::start("good").await;
    let is_measured = async || {
        let request = bench.request(4);
        bench.engine.validate(request).await.unwrap().measured
    };
    let mut events = bench.engine.events(None, None);
    let long = bench.submit(60).await;
    let is_in = |event: &Event| match &event.kind {
        EventKind::Progress { job, .. } if *job == long => Some(()),
        _ => None,
    };
    event(&mut events, is_in).await;
    let short = bench.submit(4).await;
    for job in [&short, &long] {
        assert_eq!(bench.ended(job).await.state, JobState::Succeeded);
    }
    assert!(!is_measured().await);
    // Alone, one tells it, once the worker was seen idle.
    in_time(async {
        while !is_measured().await {
            bench.ends().await;
        }
    })
    .await;
}
