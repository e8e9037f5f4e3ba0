//! The supervisor's faults with the Python worker: each ends in the right outcome for the job, with the cause told. The
//! faults are those of `python/tests/faulty_worker.py`. Runs where `CALOTYPE_PYTHON` names a Python with the worker's
//! packages, as `cargo xtask test` sets it; says aloud that it was skipped elsewhere.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use calotype_engine::inference::GenerateRequest;
use calotype_engine::processing::{JobState, JobView};
use calotype_engine::worker::Timing;
use calotype_engine::{Code, Config, Engine, SubmitOptions, WorkerView};
use support::{PATIENCE, repository};

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
    is_drawn_by_the_next_process("kill", "signal: 9").await;
}

#[tokio::test]
async fn a_worker_that_stops_in_a_step_is_replaced_and_draws_the_same() {
    is_drawn_by_the_next_process("stop", "Silent").await;
}

#[tokio::test]
async fn a_worker_that_hangs_in_c_with_the_lock_held_is_replaced_and_draws_the_same() {
    is_drawn_by_the_next_process("hang", "Silent").await;
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
