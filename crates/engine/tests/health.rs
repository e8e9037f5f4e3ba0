//! What the engine says of itself, against what is: health from something tried, figures that were read, errors instead of
//! empty lists.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use calotype_engine::inference::GenerateRequest;
use calotype_engine::processing::JobState;
use calotype_engine::{Code, Config, Domain, Engine, Health, Runtime, StartOnCpu, SubmitOptions};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

async fn engine(dir: &Path, fault: &str) -> Engine {
    let runtime = Runtime {
        name: "fake".into(),
        program: PathBuf::from(env!("CARGO_BIN_EXE_fake_worker")),
        args: vec![fault.to_owned()],
        env: vec![("FAKE_STEP_MS".to_owned(), "0".to_owned())],
        device_kinds: vec!["cpu".into()],
        on_cpu: StartOnCpu::AtOnce,
    };
    let mut config = Config::new(dir.join("data"), vec![runtime]);
    config.model_dirs = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models")];
    config.declared = vec!["xpu0=16GiB".parse().unwrap()];
    Engine::start(config).await.unwrap()
}

fn request(seed: u64) -> GenerateRequest {
    GenerateRequest {
        prompt: "a".into(),
        preset: Some("quality".into()),
        seed: Some(seed),
        width: Some(64),
        height: Some(64),
        steps: Some(2),
        ..GenerateRequest::default()
    }
}

async fn ends(engine: &Engine, seed: u64) -> JobState {
    let submitted = engine
        .submit(request(seed), SubmitOptions::default())
        .await
        .unwrap();
    let ended = tokio::time::timeout(PATIENCE, engine.wait(&submitted.job.id)).await;
    ended.unwrap().unwrap().state
}

fn link(health: &Health, domain: Domain) -> (bool, String) {
    let mut chain = health.chain.iter();
    let link = chain.find(|link| link.domain == domain).unwrap();
    (link.healthy, link.detail.clone())
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

#[tokio::test]
async fn the_health_says_what_was_tried_and_a_run_is_only_called_tried_once_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), "good").await;
    let before = engine.health().await;
    let (_, inference) = link(&before, Domain::Inference);
    assert!(
        inference.contains("no run has succeeded since the start"),
        "{inference}"
    );
    assert_eq!(ends(&engine, 1).await, JobState::Succeeded);
    let after = engine.health().await;
    assert_eq!(after.status, "ok", "{:?}", after.chain);
    assert!(after.serves());
    let (healthy, inference) = link(&after, Domain::Inference);
    assert!(
        healthy && inference.contains("the last run that succeeded ended"),
        "{inference}"
    );
    let (_, postprocessing) = link(&after, Domain::Postprocessing);
    assert!(postprocessing.contains("decoded again"), "{postprocessing}");
    let (_, processing) = link(&after, Domain::Processing);
    assert!(processing.contains("the journal takes writes"), "{processing}");
    let (_, memory) = link(&after, Domain::Memory);
    assert!(
        memory.contains("no driver tells what is free on xpu0"),
        "{memory}"
    );
    let (_, model) = link(&after, Domain::Model);
    assert!(model.contains("1 model") && model.contains("lora"), "{model}");
    let tried = after.chain.iter().filter(|link| link.tried_ms_ago.is_some());
    assert!(tried.count() >= 4, "{:?}", after.chain);
}

#[tokio::test]
async fn workers_that_fail_every_run_make_inference_ill() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), "out_of_memory").await;
    for seed in 0..3 {
        assert_eq!(ends(&engine, seed).await, JobState::Failed);
    }
    let health = engine.health().await;
    let (healthy, inference) = link(&health, Domain::Inference);
    assert!(
        !healthy && inference.contains("3 runs failed since one succeeded"),
        "{inference}"
    );
    assert!(health.status == "degraded" && !health.serves());
}

#[tokio::test]
async fn figures_are_those_of_now_and_a_declared_device_has_none() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), "good").await;
    let read = async || {
        let devices = engine.devices().await.unwrap();
        let host = devices.iter().find(|view| view.device.id == "cpu0").unwrap();
        let declared = devices.iter().find(|view| view.device.id == "xpu0").unwrap();
        assert_eq!(
            (declared.device.free_bytes, declared.device.read_at_ms),
            (None, None)
        );
        let memory = engine.memory().await.unwrap();
        let of = |id: &str| memory.iter().find(|view| view.device == id).unwrap();
        assert_eq!(of("xpu0").free_bytes, None);
        assert!(of("cpu0").free_bytes.is_some());
        let at_ms = host.device.read_at_ms.unwrap();
        assert!(now_ms() - at_ms <= 2000, "it is {} ms old", now_ms() - at_ms);
        (at_ms, host.device.free_bytes)
    };
    let first = read().await;
    // Something that every program on this machine changes all the time.
    let changed = async {
        let mut due = tokio::time::interval(Duration::from_millis(100));
        loop {
            due.tick().await;
            let (at_ms, free_bytes) = read().await;
            if at_ms > first.0 && free_bytes != first.1 {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, changed).await.unwrap();
}

#[tokio::test]
async fn a_drain_refuses_new_jobs_at_once_and_everything_else_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), "good").await;
    assert_eq!(ends(&engine, 1).await, JobState::Succeeded);
    engine.begin_drain(Duration::from_secs(20));
    let refused = engine
        .submit(request(2), SubmitOptions::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::ShuttingDown);
    let after_ms = refused.retry_after_ms.unwrap();
    assert!((15_000..=21_000).contains(&after_ms), "{after_ms}");
    let health = engine.health().await;
    assert!(health.status == "draining" && !health.serves());
    let page = engine.jobs(Default::default()).await.unwrap();
    assert_eq!(page.jobs.len(), 1);
    let result = page.jobs[0].result.as_ref().unwrap();
    assert!(engine.artifact(&result.images[0].artifact.0).await.is_ok());
    assert!(engine.devices().await.is_ok() && engine.validate(request(3)).await.is_ok());
}

#[tokio::test]
async fn a_dispatcher_that_has_ended_is_an_error_and_no_empty_list() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), "good").await;
    engine.shutdown(Duration::ZERO).await;
    assert_eq!(engine.devices().await.unwrap_err().code, Code::ShuttingDown);
    assert_eq!(engine.memory().await.unwrap_err().code, Code::ShuttingDown);
    let health = engine.health().await;
    assert!(health.status == "draining" && !health.serves());
    assert_eq!(health.chain.len(), 6);
}

#[tokio::test]
async fn a_picture_that_was_just_made_is_answered_without_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), "good").await;
    assert_eq!(ends(&engine, 1).await, JobState::Succeeded);
    let page = engine.jobs(Default::default()).await.unwrap();
    let image = &page.jobs[0].result.as_ref().unwrap().images[0];
    let hash = &image.artifact.0;
    let file = dir.path().join("data/artifacts").join(&hash[..2]).join(hash);
    std::fs::rename(&file, dir.path().join("elsewhere")).unwrap();
    let picture = engine.artifact(hash).await.unwrap();
    assert_eq!(picture.bytes.len() as u64, image.size_bytes);
}

#[tokio::test]
async fn a_picture_that_was_just_read_is_answered_without_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), "good").await;
    assert_eq!(ends(&engine, 1).await, JobState::Succeeded);
    let page = engine.jobs(Default::default()).await.unwrap();
    let hash = page.jobs[0].result.as_ref().unwrap().images[0].artifact.0.clone();
    let first = engine.artifact(&hash).await.unwrap();
    let file = dir.path().join("data/artifacts").join(&hash[..2]).join(&hash);
    std::fs::rename(&file, dir.path().join("elsewhere")).unwrap();
    let second = engine.artifact(&hash).await.unwrap();
    assert_eq!(second.bytes.as_ptr(), first.bytes.as_ptr(), "the same memory");
    assert_eq!(second.media_type, first.media_type);
}
