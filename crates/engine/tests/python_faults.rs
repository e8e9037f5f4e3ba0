//! The supervisor's faults with the Python worker: each ends in the right outcome for the job, with the cause told. The
//! faults are those of `python/tests/faulty_worker.py`. Runs where `CALOTYPE_PYTHON` names a Python with the worker's
//! packages, as `cargo xtask test` sets it; says aloud that it was skipped elsewhere.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use calotype_engine::inference::GenerateRequest;
use calotype_engine::processing::{JobState, JobView};
use calotype_engine::worker::{
    ExitCause, MemoryKillCounters, Timing, WorkerConfig, WorkerEvent, WorkerEventKind, WorkerHandle,
    WorkerName, start,
};
use calotype_engine::{Code, Config, Engine, SubmitOptions, WorkerView};
use calotype_protocol::{
    Attempt, BlobRef, Down, Dtype, Frame, Generate, Load, LoadPlan, Mode, ModelFormat, ModelSpec,
    NoiseSource, Phase, Run, Sampler, Schedule, Up, VaePlan, Work, WorkerDevice,
};
use support::{PATIENCE, repository};
use tokio::sync::mpsc;

/// Faults of the whole worker, one at a time: two cores have no room for more PyTorch.
static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

struct Seen {
    view: JobView,
    worker: WorkerView,
}

/// What becomes of a job whose worker has a fault, each time or once.
async fn with(fault: &str, once: bool) -> Option<Seen> {
    let dir = tempfile::tempdir().unwrap();
    let worker = repository().join("python/tests/faulty_worker.py");
    let mut args = vec![worker.display().to_string(), fault.into()];
    if once {
        args.extend(["--once".into(), dir.path().join("mark").display().to_string()]);
    }
    let runtime = support::python(args, Vec::new())?;
    let _alone = ONE.lock().await;
    let mut config = Config::new(dir.path().join("data"), vec![runtime]);
    config.model_dirs = vec![repository().join("models")];
    config.timing = Timing {
        heartbeat_every: Duration::from_millis(100),
        // Imports hold Python's lock for seconds on a busy machine.
        silence: Duration::from_secs(15),
        // Longer, so that silence is what is noticed first.
        step_first: Duration::from_secs(120),
        step_least: Duration::from_secs(60),
        backoff_first: Duration::from_millis(10),
        backoff_most: Duration::from_millis(80),
        ..Timing::default()
    };
    let engine = Engine::start(config).await.unwrap();
    let request = GenerateRequest {
        prompt: "a red apple".into(),
        preset: Some("quality".into()),
        seed: Some(7),
        width: Some(64),
        height: Some(64),
        steps: Some(6),
        ..GenerateRequest::default()
    };
    let job = engine
        .submit(request, SubmitOptions::default())
        .await
        .unwrap()
        .job
        .id;
    let view = tokio::time::timeout(PATIENCE, engine.wait(&job))
        .await
        .unwrap()
        .unwrap();
    let worker = engine.devices().await.unwrap().remove(0).workers.remove(0);
    engine.shutdown(Duration::ZERO).await;
    Some(Seen { view, worker })
}

fn picture(seen: &Seen) -> String {
    assert_eq!(seen.view.state, JobState::Succeeded, "{:?}", seen.view.error);
    seen.view.result.as_ref().unwrap().images[0].artifact.0.clone()
}

/// The same picture as without a fault, by a later process.
async fn is_drawn_by_the_next_process(fault: &str, cause: &str) {
    let (Some(plain), Some(seen)) = (with("none", false).await, with(fault, true).await) else {
        return;
    };
    assert_eq!(picture(&plain), picture(&seen));
    assert_eq!((seen.view.attempts, seen.worker.incarnation), (2, 2));
    let last = seen.worker.last_exit.unwrap();
    assert!(last.contains(cause), "{last}");
}

#[tokio::test]
async fn a_worker_that_is_killed_in_a_step_is_replaced_and_draws_the_same() {
    is_drawn_by_the_next_process("kill", "signal 9").await;
}

#[tokio::test]
async fn a_worker_that_stops_in_a_step_is_replaced_and_draws_the_same() {
    is_drawn_by_the_next_process("stop", "it fell silent").await;
}

#[tokio::test]
async fn a_worker_that_hangs_in_c_with_the_lock_held_is_replaced_and_draws_the_same() {
    is_drawn_by_the_next_process("hang", "it fell silent").await;
}

#[tokio::test]
async fn a_worker_that_loses_its_device_says_so_and_the_next_draws_the_same() {
    is_drawn_by_the_next_process("device_fault", "illegal memory access").await;
}

#[tokio::test]
async fn a_worker_that_cannot_import_torch_is_started_again_with_the_reason_told() {
    let Some(seen) = with("import_error", true).await else {
        return;
    };
    picture(&seen);
    assert_eq!((seen.view.attempts, seen.worker.incarnation), (1, 2));
    let last = seen.worker.last_exit.unwrap();
    assert!(last.contains("libcudart"), "{last}");
}

#[tokio::test]
async fn noise_on_stdout_from_everywhere_harms_nothing() {
    let (Some(plain), Some(seen)) = (with("none", false).await, with("stdout_noise", false).await) else {
        return;
    };
    assert_eq!(picture(&plain), picture(&seen));
    assert_eq!((seen.view.attempts, seen.worker.incarnation), (1, 1));
}

#[tokio::test]
async fn a_job_without_memory_is_tried_once_more_in_the_same_process() {
    let Some(seen) = with("oom", true).await else {
        return;
    };
    picture(&seen);
    assert_eq!((seen.view.attempts, seen.worker.incarnation), (2, 1));
}

#[tokio::test]
async fn a_job_that_never_has_memory_fails_with_the_numbers() {
    let Some(seen) = with("oom", false).await else {
        return;
    };
    let error = seen.view.error.unwrap();
    assert_eq!(
        (seen.view.state, error.code),
        (JobState::Failed, Code::OutOfMemory)
    );
    assert!(error.message.contains("bytes are free"), "{}", error.message);
    assert_eq!((seen.view.attempts, seen.worker.incarnation), (2, 1));
}

/// The worker alone, without an engine: what becomes of a job beside the second load of a worker with this fault.
struct Alone {
    handle: WorkerHandle,
    events: mpsc::Receiver<WorkerEvent>,
    _scratch: tempfile::TempDir,
}

impl Alone {
    /// With a model and a job of many steps that has begun; the second load is on its way.
    async fn loading_beside_a_job(fault: &str, load_least: Duration) -> Option<Alone> {
        let worker = repository().join("python/tests/faulty_worker.py");
        let args = vec![worker.display().to_string(), fault.into()];
        let runtime = support::python(args, Vec::new())?;
        let scratch = tempfile::tempdir().unwrap();
        let (tell, events) = mpsc::channel(64);
        let config = WorkerConfig {
            name: WorkerName("python".into()),
            program: runtime.program,
            args: runtime.args,
            env: runtime.env,
            device: WorkerDevice {
                kind: "cpu".into(),
                index: 0,
                uuid: None,
            },
            scratch: scratch.path().to_owned(),
            threads: 1,
            timing: Timing {
                silence: Duration::from_secs(15),
                // Of a step, and far less than the load takes.
                step_least: Duration::from_secs(3),
                load_least,
                load_bytes_per_s: 1_000_000_000,
                ..Timing::default()
            },
            memory_kills: MemoryKillCounters::of_this_system(),
        };
        let mut alone = Alone {
            handle: start(config, tell),
            events,
            _scratch: scratch,
        };
        while !matches!(alone.next().await, WorkerEventKind::Ready { .. }) {}
        // The first load imports diffusers, which makes no progress for long.
        alone.load("first", 120);
        alone.until(|message| matches!(message, Up::Loaded(_))).await;
        alone.run();
        let begun =
            |message: &Up| matches!(message, Up::Progress(progress) if progress.phase == Phase::Denoise);
        alone.until(begun).await;
        alone.load("second", 0);
        Some(alone)
    }

    fn load(&self, id: &str, budget_gb: u64) {
        let root = repository().join("models/calotype-tiny");
        let load = Load {
            load: id.into(),
            model: ModelSpec {
                id: id.into(),
                family: "sd".into(),
                format: ModelFormat::Diffusers,
                components: BTreeMap::from([("root".to_owned(), root.display().to_string())]),
                segments: BTreeMap::new(),
            },
            dtype: Dtype::F32,
            budget_bytes: budget_gb * 1_000_000_000,
            plan: LoadPlan::default(),
        };
        self.handle.send(Down::Load(load).into());
    }

    fn run(&self) {
        let shape = vec![1, 4, 8, 8];
        let numbers = calotype_protocol::noise::normal(7, calotype_protocol::noise::INITIAL, 4 * 8 * 8);
        let work = Work::Generate(Generate {
            model: "first".into(),
            mode: Mode::TextToImage,
            prompt: Vec::new(),
            negative_prompt: Vec::new(),
            width: 64,
            height: 64,
            steps: 100,
            guidance: 1.0,
            sampler: Sampler::Euler,
            schedule: Schedule::Default,
            seeds: vec![7],
            noise: NoiseSource::Philox,
            initial_noise: BlobRef {
                blob: 0,
                dtype: Dtype::F32,
                shape,
            },
            init_image: None,
            mask: None,
            strength: 1.0,
            adapters: Vec::new(),
            control: Vec::new(),
            refiner: None,
            hires: None,
            clip_skip: 0,
            preview_every: 0,
        });
        let run = Run {
            job: "job".into(),
            attempt: Attempt(1),
            step: "generate".into(),
            priority: 0,
            deadline_ms: None,
            vae: VaePlan::Whole,
            work,
        };
        self.handle.send(Frame {
            message: Down::Run(Box::new(run)),
            blobs: vec![numbers.iter().flat_map(|number| number.to_le_bytes()).collect()],
        });
    }

    async fn next(&mut self) -> WorkerEventKind {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        event.unwrap().unwrap().kind
    }

    async fn until(&mut self, wanted: impl Fn(&Up) -> bool) {
        loop {
            match self.next().await {
                WorkerEventKind::Message(frame) if wanted(&frame.message) => return,
                WorkerEventKind::Message(frame) => {
                    let bad = matches!(
                        frame.message,
                        Up::LoadFailed { .. } | Up::Failed { .. } | Up::Cancelled { .. }
                    );
                    assert!(!bad, "{:?}", frame.message);
                }
                WorkerEventKind::Gone(report) => panic!("{report:?}"),
                WorkerEventKind::Starting { .. } | WorkerEventKind::Ready { .. } => {}
            }
        }
    }
}

#[tokio::test]
async fn a_slow_load_costs_the_job_beside_it_nothing() {
    let _alone = ONE.lock().await;
    let Some(mut worker) = Alone::loading_beside_a_job("slow_load", Duration::from_secs(60)).await else {
        return;
    };
    worker.until(|message| matches!(message, Up::Loaded(_))).await;
    worker
        .until(|message| matches!(message, Up::Result(result) if result.batch_sizes.len() == 100))
        .await;
    worker.handle.stop(PATIENCE).await;
}

#[tokio::test]
async fn a_load_that_hangs_ends_the_worker_and_the_job_beside_it_is_not_blamed() {
    let _alone = ONE.lock().await;
    let Some(mut worker) = Alone::loading_beside_a_job("hung_load", Duration::from_secs(5)).await else {
        return;
    };
    let cause = loop {
        if let WorkerEventKind::Gone(report) = worker.next().await {
            break report.cause;
        }
    };
    assert_eq!(cause, ExitCause::LoadDeadline);
    assert!(!cause.may_be_of(&"job".into()));
    worker.handle.stop(Duration::ZERO).await;
}
