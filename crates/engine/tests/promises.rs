//! What the engine promises of jobs, with a worker that does nothing but take its time: pauses, keys, queues, restarts and
//! drains.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use calotype_engine::device::Declared;
use calotype_engine::inference::GenerateRequest;
use calotype_engine::processing::{Class, JobState, JobView};
use calotype_engine::{
    Code, Config, Engine, Event, EventKind, JobQuery, Runtime, StartOnCpu, SubmitOptions, Subscription,
};
use calotype_protocol::JobId;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A worker whose steps take so long, with room for so many runs.
fn config(dir: &Path, step_ms: u32, places: u32) -> Config {
    let runtime = Runtime {
        name: "fake".into(),
        program: PathBuf::from(env!("CARGO_BIN_EXE_fake_worker")),
        args: vec!["good".to_owned()],
        env: vec![
            ("FAKE_STEP_MS".to_owned(), step_ms.to_string()),
            ("FAKE_MAX_BATCH".to_owned(), places.to_string()),
        ],
        device_kinds: vec!["cpu".into()],
        on_cpu: StartOnCpu::AtOnce,
    };
    let mut config = Config::new(dir.join("data"), vec![runtime]);
    config.model_dirs = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models")];
    config
}

fn request(steps: u32) -> GenerateRequest {
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

/// More steps than any test waits for.
fn endless() -> GenerateRequest {
    request(100)
}

async fn in_time<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, wait).await.unwrap()
}

async fn submit(engine: &Engine, request: GenerateRequest) -> JobId {
    let submitted = engine.submit(request, SubmitOptions::default()).await;
    submitted.unwrap().job.id
}

async fn ended(engine: &Engine, job: &JobId) -> JobView {
    in_time(engine.wait(job)).await.unwrap()
}

/// Waits until a job is in a state.
async fn reaches(engine: &Engine, job: &JobId, wanted: JobState) {
    let mut events = engine.events(Some(job.clone()), None);
    until(
        &mut events,
        |event| matches!(&event.kind, EventKind::Job { state, .. } if *state == wanted),
    )
    .await;
}

/// Waits until a job has made a step.
async fn steps(engine: &Engine, job: &JobId) {
    let mut events = engine.events(Some(job.clone()), None);
    until(&mut events, |event| {
        matches!(event.kind, EventKind::Progress { .. })
    })
    .await;
}

async fn until(events: &mut Subscription, meant: impl Fn(&Event) -> bool) {
    loop {
        if meant(&in_time(events.next()).await.unwrap()) {
            return;
        }
    }
}

#[tokio::test]
async fn paused_jobs_keep_no_place_from_others() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::start(config(dir.path(), 10, 4)).await.unwrap();
    let mut paused = Vec::new();
    for _ in 0..4 {
        let job = submit(&engine, endless()).await;
        steps(&engine, &job).await;
        engine.pause(&job).await.unwrap();
        reaches(&engine, &job, JobState::Paused).await;
        paused.push(job);
    }
    for class in [Class::Interactive, Class::Critical] {
        let options = SubmitOptions {
            class,
            ..SubmitOptions::default()
        };
        let job = engine.submit(request(2), options).await.unwrap().job.id;
        assert_eq!(ended(&engine, &job).await.state, JobState::Succeeded);
    }
    // What they had of the device's memory is free as well.
    let memory = engine.memory().await.unwrap();
    assert!(memory[0].leases.iter().all(|lease| lease.kind != "working_set"));
    for job in paused {
        engine.cancel(&job).await.unwrap();
        assert_eq!(ended(&engine, &job).await.state, JobState::Cancelled);
    }
    engine.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_pause_that_was_answered_holds_after_a_restart_whatever_the_worker_had_said_by_then() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::start(config(dir.path(), 300, 4)).await.unwrap();
    let job = submit(&engine, request(3)).await;
    reaches(&engine, &job, JobState::Running).await;
    let view = engine.pause(&job).await.unwrap();
    assert!(
        matches!(view.state, JobState::Pausing | JobState::Paused),
        "{:?}",
        view.state
    );
    engine.shutdown(Duration::ZERO).await;
    drop(engine);

    let engine = Engine::start(config(dir.path(), 1, 4)).await.unwrap();
    assert_eq!(engine.job(&job).await.unwrap().state, JobState::Paused);
    let other = submit(&engine, request(1)).await;
    ended(&engine, &other).await;
    assert_eq!(
        engine.job(&job).await.unwrap().state,
        JobState::Paused,
        "it does not run by itself"
    );
    engine.resume(&job).await.unwrap();
    assert_eq!(ended(&engine, &job).await.state, JobState::Succeeded);
    engine.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_resume_that_was_answered_holds_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::start(config(dir.path(), 300, 1)).await.unwrap();
    let first = submit(&engine, endless()).await;
    let job = submit(&engine, request(1)).await;
    engine.pause(&job).await.unwrap();
    engine.resume(&job).await.unwrap();
    engine.cancel(&first).await.unwrap();
    engine.shutdown(Duration::ZERO).await;
    drop(engine);

    let engine = Engine::start(config(dir.path(), 1, 1)).await.unwrap();
    assert_eq!(ended(&engine, &job).await.state, JobState::Succeeded);
    engine.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_known_key_is_answered_while_the_queue_is_full_and_after_its_model_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut full = config(dir.path(), 100, 1);
    full.queue_max_jobs = 1;
    let engine = Engine::start(full).await.unwrap();
    let with_key = || SubmitOptions {
        key: Some("order-17".into()),
        ..SubmitOptions::default()
    };
    let job = engine.submit(endless(), with_key()).await.unwrap().job.id;
    let refused = engine.submit(request(1), SubmitOptions::default()).await;
    assert_eq!(refused.unwrap_err().code, Code::QueueFull);
    let again = engine.submit(endless(), with_key()).await.unwrap();
    assert!(again.existing);
    assert_eq!(again.job.id, job);
    let other = engine.submit(request(1), with_key()).await.unwrap_err();
    assert_eq!(other.code, Code::KeyReused);
    engine.cancel(&job).await.unwrap();
    ended(&engine, &job).await;
    engine.shutdown(Duration::ZERO).await;
    drop(engine);

    let mut without_models = config(dir.path(), 1, 1);
    without_models.model_dirs.clear();
    let engine = Engine::start(without_models).await.unwrap();
    assert!(engine.submit(endless(), SubmitOptions::default()).await.is_err());
    let again = engine.submit(endless(), with_key()).await.unwrap();
    assert_eq!((again.existing, again.job.id), (true, job));
    engine.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_drain_ends_what_runs_and_leaves_the_rest_for_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::start(config(dir.path(), 50, 1)).await.unwrap();
    let runs = submit(&engine, request(4)).await;
    let waits = submit(&engine, request(4)).await;
    steps(&engine, &runs).await;
    in_time(engine.shutdown(PATIENCE)).await;
    assert_eq!(engine.job(&runs).await.unwrap().state, JobState::Succeeded);
    assert_eq!(engine.job(&waits).await.unwrap().state, JobState::Queued);
    drop(engine);

    let engine = Engine::start(config(dir.path(), 1, 1)).await.unwrap();
    assert_eq!(ended(&engine, &waits).await.state, JobState::Succeeded);
    assert_eq!(
        engine.job(&runs).await.unwrap().attempts,
        1,
        "it is not run twice"
    );
    engine.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn every_state_lists_the_jobs_that_are_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::start(config(dir.path(), 50, 1)).await.unwrap();
    let runs = submit(&engine, endless()).await;
    steps(&engine, &runs).await;
    let waits = submit(&engine, request(1)).await;
    let held = submit(&engine, request(1)).await;
    engine.pause(&held).await.unwrap();
    let listed = async |state| {
        let query = JobQuery {
            state: Some(state),
            ..JobQuery::default()
        };
        let page = engine.jobs(query).await.unwrap();
        assert!(page.jobs.iter().all(|job| job.state == state));
        page.jobs.into_iter().map(|job| job.id).collect::<Vec<_>>()
    };
    assert_eq!(listed(JobState::Running).await, std::slice::from_ref(&runs));
    assert_eq!(listed(JobState::Queued).await, std::slice::from_ref(&waits));
    assert_eq!(listed(JobState::Paused).await, std::slice::from_ref(&held));
    let view = engine.job(&waits).await.unwrap();
    assert_eq!(
        (view.position, view.reason_code.as_deref()),
        (Some(1), Some("places_taken"))
    );
    for job in [&held, &waits, &runs] {
        engine.cancel(job).await.unwrap();
        ended(&engine, job).await;
    }
    let mut cancelled = listed(JobState::Cancelled).await;
    cancelled.sort();
    let mut all = vec![runs, waits, held];
    all.sort();
    assert_eq!(cancelled, all);
    engine.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn the_phases_of_a_job_sum_to_the_time_from_its_acceptance_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut slow_load = config(dir.path(), 20, 1);
    slow_load.runtimes[0]
        .env
        .push(("FAKE_LOAD_MS".to_owned(), "200".to_owned()));
    let engine = Engine::start(slow_load).await.unwrap();
    let job = submit(&engine, request(5)).await;
    let view = ended(&engine, &job).await;
    let timings = view.result.unwrap().timings_ms;
    let sum_ms: f64 = timings.values().sum();
    let wall_ms = (view.finished_at_ms.unwrap() - view.created_at_ms) as f64;
    // Times of day are whole milliseconds, and the write of the end itself cannot be in what it writes.
    assert!(
        (sum_ms - wall_ms).abs() <= 25.0,
        "{sum_ms} of {wall_ms}: {timings:?}"
    );
    assert!(timings["load"] >= 200.0, "{timings:?}");
    engine.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn validate_names_the_worker_that_then_runs_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut two = config(dir.path(), 200, 1);
    two.runtimes[0].device_kinds = vec!["xpu".into()];
    two.declared = ["xpu0=2GiB", "xpu1=2GiB"]
        .map(|text| text.parse::<Declared>().unwrap())
        .to_vec();
    let engine = Engine::start(two).await.unwrap();
    let first = submit(&engine, request(1)).await;
    ended(&engine, &first).await;
    let busy = submit(&engine, endless()).await;
    steps(&engine, &busy).await;
    let named = engine.validate(request(2)).await.unwrap().worker.unwrap();
    let job = submit(&engine, request(2)).await;
    let view = ended(&engine, &job).await;
    assert_eq!(view.result.unwrap().worker, named);
    engine.cancel(&busy).await.unwrap();
    ended(&engine, &busy).await;
    engine.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn two_cards_share_a_burst_though_only_one_has_the_model_at_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut two = config(dir.path(), 40, 1);
    two.runtimes[0].device_kinds = vec!["xpu".into()];
    two.declared = ["xpu0=2GiB", "xpu1=2GiB"]
        .map(|text| text.parse::<Declared>().unwrap())
        .to_vec();
    let engine = Engine::start(two).await.unwrap();
    let first = submit(&engine, request(4)).await;
    ended(&engine, &first).await;
    let mut burst = Vec::new();
    for _ in 0..16 {
        burst.push(submit(&engine, request(4)).await);
    }
    let mut workers = std::collections::BTreeMap::new();
    for job in burst {
        let view = ended(&engine, &job).await;
        *workers.entry(view.result.unwrap().worker).or_insert(0) += 1;
    }
    assert!(
        workers.len() == 2 && workers.values().all(|count| *count >= 6),
        "{workers:?}"
    );
    engine.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_job_shows_who_submitted_it_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::start(config(dir.path(), 1000, 1)).await.unwrap();
    let options = SubmitOptions {
        client: "ada".into(),
        ..SubmitOptions::default()
    };
    let job = engine.submit(endless(), options).await.unwrap().job;
    assert_eq!(job.client, "ada");
    in_time(engine.shutdown(Duration::ZERO)).await;
    drop(engine);
    let engine = Engine::start(config(dir.path(), 1000, 1)).await.unwrap();
    assert_eq!(engine.job(&job.id).await.unwrap().client, "ada");
    let nobody = JobView {
        client: String::new(),
        ..job
    };
    assert!(serde_json::to_value(&nobody).unwrap().get("client").is_none());
    in_time(engine.shutdown(Duration::ZERO)).await;
}
