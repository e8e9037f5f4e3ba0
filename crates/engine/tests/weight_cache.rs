//! Weights in host memory, with the Python worker: what it takes from there, and what becomes of a copy that is damaged.
//! Runs where `CALOTYPE_PYTHON` names a Python with the worker's packages, as `cargo xtask test` sets it; says aloud that
//! it was skipped elsewhere.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;
use std::time::Duration;

use calotype_engine::inference::GenerateRequest;
use calotype_engine::processing::JobState;
use calotype_engine::{
    CacheView, Config, Engine, Event, EventKind, SegmentChange, SubmitOptions, Subscription, WorkerChange,
};
use rustix::process::{Pid, Signal, kill_process};
use support::{PATIENCE, repository};

/// UNet, VAE and text encoder.
const COMPONENTS: usize = 3;

struct Bench {
    engine: Engine,
    events: Subscription,
    _dir: tempfile::TempDir,
}

async fn in_time<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, wait).await.unwrap()
}

impl Bench {
    async fn start() -> Option<Self> {
        let package = repository().join("python").display().to_string();
        let args = vec!["-m".into(), "calotype_worker".into()];
        let runtime = support::python(args, vec![("PYTHONPATH".into(), package)])?;
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(dir.path().join("data"), vec![runtime]);
        config.model_dirs = vec![repository().join("models")];
        config.weight_cache_on_cpu = true;
        config.timing.backoff_first = Duration::from_millis(10);
        let engine = Engine::start(config).await.unwrap();
        let events = engine.events(None, None);
        Some(Self {
            engine,
            events,
            _dir: dir,
        })
    }

    /// One whose weights are in memory after its first picture, and that picture's hash.
    async fn filled() -> Option<(Self, String)> {
        let mut bench = Self::start().await?;
        let first = bench.draw().await;
        bench
            .hear(COMPONENTS, |event| is_segment(event, SegmentChange::Ready))
            .await;
        Some((bench, first))
    }

    /// A picture's hash.
    async fn draw(&self) -> String {
        let request = GenerateRequest {
            prompt: "a red apple".into(),
            seed: Some(7),
            width: Some(64),
            height: Some(64),
            steps: Some(2),
            ..GenerateRequest::default()
        };
        let submitted = self.engine.submit(request, SubmitOptions::default()).await;
        let view = in_time(self.engine.wait(&submitted.unwrap().job.id))
            .await
            .unwrap();
        assert_eq!(view.state, JobState::Succeeded, "{:?}", view.error);
        view.result.unwrap().images.remove(0).artifact.0
    }

    /// Reads events until so many are meant.
    async fn hear(&mut self, count: usize, meant: impl Fn(&Event) -> bool) {
        let mut heard = 0;
        while heard < count {
            let event = in_time(self.events.next()).await.unwrap();
            heard += usize::from(meant(&event));
        }
    }

    async fn kill_worker(&mut self) {
        let worker = self.engine.devices().await.unwrap().remove(0).workers.remove(0);
        let pid = Pid::from_raw(worker.pid.unwrap().cast_signed()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        self.hear(1, |event| {
            matches!(
                &event.kind,
                EventKind::Worker {
                    state: WorkerChange::Gone,
                    ..
                }
            )
        })
        .await;
    }

    async fn cache(&self) -> CacheView {
        self.engine.memory().await.unwrap().remove(0).cache.unwrap()
    }
}

fn is_segment(event: &Event, wanted: SegmentChange) -> bool {
    matches!(&event.kind, EventKind::Segment { state, .. } if *state == wanted)
}

#[tokio::test]
async fn weights_come_from_files_once_and_from_memory_afterwards_and_none_stay_when_the_engine_stops() {
    let Some((mut bench, first)) = Bench::filled().await else {
        return;
    };
    let cache = bench.cache().await;
    assert_eq!(
        (cache.hits, cache.misses, cache.segments.len()),
        (0, 3, COMPONENTS)
    );
    assert!(cache.segments.iter().all(|segment| segment.mapped_by.is_empty()));

    bench.kill_worker().await;
    assert_eq!(bench.draw().await, first);
    let cache = bench.cache().await;
    assert_eq!((cache.hits, cache.misses), (3, 3));
    assert!(
        cache
            .segments
            .iter()
            .all(|segment| segment.mapped_by == ["cpu0-python"])
    );
    assert!(cache.used_bytes <= cache.budget_bytes);

    // The worker that mapped them dies: nobody does.
    bench.kill_worker().await;
    let cache = bench.cache().await;
    assert!(cache.segments.iter().all(|segment| segment.mapped_by.is_empty()));
    bench.engine.shutdown(Duration::ZERO).await;
    assert!(!Path::new(&cache.folder).exists());
}

#[tokio::test]
async fn a_damaged_copy_costs_one_try_and_is_neither_kept_nor_made_again() {
    let Some((mut bench, first)) = Bench::filled().await else {
        return;
    };
    for segment in &bench.cache().await.segments {
        std::fs::write(
            Path::new(&bench.cache().await.folder).join(&segment.id),
            "damaged",
        )
        .unwrap();
    }
    bench.kill_worker().await;
    assert_eq!(bench.draw().await, first);
    bench
        .hear(COMPONENTS, |event| is_segment(event, SegmentChange::Freed))
        .await;
    assert_eq!(bench.cache().await.segments, []);
    bench.engine.shutdown(Duration::ZERO).await;
}
