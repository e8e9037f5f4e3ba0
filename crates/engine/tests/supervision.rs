//! The supervisor against real processes: each fault of `fake_worker` ends in its own cause, and nothing is left over.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use calotype_engine::worker::{
    ExitCause, ExitReport, MemoryKillCounters, Timing, WorkerConfig, WorkerEvent, WorkerEventKind,
    WorkerHandle, WorkerName, start,
};
use calotype_protocol::{
    Attempt, Beat, BlobRef, Down, Dtype, Frame, Generate, JobId, Load, Mode, ModelFormat, ModelSpec,
    NoiseSource, Outcome, PROTOCOL, Run, RunResult, Sampler, Schedule, Up, VaePlan, Version, Work,
    WorkerDevice,
};
use tokio::sync::mpsc;
use tokio::time::timeout;

const FAKE_WORKER: &str = env!("CARGO_BIN_EXE_fake_worker");
/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

fn brisk() -> Timing {
    Timing {
        heartbeat_every: Duration::from_millis(20),
        term_grace: Duration::from_millis(300),
        backoff_first: Duration::from_millis(10),
        backoff_most: Duration::from_millis(80),
        ..Timing::default()
    }
}

struct Slot {
    handle: WorkerHandle,
    events: mpsc::Receiver<WorkerEvent>,
    scratch: tempfile::TempDir,
    /// The newest incarnation heard of, and whether its `Gone` came.
    newest: (u64, bool),
    pid: u32,
}

impl Slot {
    fn start(fault: &str) -> Slot {
        Slot::start_with(fault, brisk(), &[])
    }

    fn start_with(fault: &str, timing: Timing, env: &[(&str, String)]) -> Slot {
        let counters = MemoryKillCounters::of_this_system();
        Slot::start_program(FAKE_WORKER.into(), fault, timing, env, counters)
    }

    fn start_program(
        program: PathBuf,
        fault: &str,
        timing: Timing,
        env: &[(&str, String)],
        memory_kills: MemoryKillCounters,
    ) -> Slot {
        let scratch = tempfile::tempdir().unwrap();
        let (tell, events) = mpsc::channel(16);
        let config = WorkerConfig {
            name: WorkerName(format!("fake:{fault}")),
            program,
            args: vec![fault.to_owned()],
            env: env
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
            device: WorkerDevice {
                kind: "cpu".to_owned(),
                index: 0,
                uuid: None,
            },
            scratch: scratch.path().to_owned(),
            threads: 1,
            timing,
            memory_kills,
        };
        Slot {
            handle: start(config, tell),
            events,
            scratch,
            newest: (0, true),
            pid: 0,
        }
    }

    /// The next event; checks the order that every dispatcher relies on.
    async fn next(&mut self) -> WorkerEventKind {
        let event = timeout(PATIENCE, self.events.recv())
            .await
            .expect("an event in time")
            .expect("an event");
        let WorkerEvent {
            worker: _,
            incarnation,
            kind,
        } = event;
        let (newest, gone) = self.newest;
        if incarnation == newest {
            assert!(!gone, "{kind:?} after `Gone`");
        } else {
            assert!(gone, "incarnation {incarnation} before the end of {newest}");
            assert_eq!(incarnation, newest + 1);
        }
        self.newest = (incarnation, matches!(kind, WorkerEventKind::Gone(_)));
        if let WorkerEventKind::Starting { pid } = kind {
            self.pid = pid;
        }
        kind
    }

    async fn ready(&mut self) {
        loop {
            match self.next().await {
                WorkerEventKind::Ready { .. } => return,
                WorkerEventKind::Gone(report) => panic!("not ready but gone: {report:?}"),
                WorkerEventKind::Starting { .. } | WorkerEventKind::Message(_) => {}
            }
        }
    }

    async fn gone(&mut self) -> ExitReport {
        loop {
            if let WorkerEventKind::Gone(report) = self.next().await {
                return report;
            }
        }
    }

    async fn beat(&mut self) -> Beat {
        loop {
            if let WorkerEventKind::Message(frame) = self.next().await
                && let Up::Beat(beat) = frame.message
            {
                return beat;
            }
        }
    }

    /// The next message that is no beat.
    async fn message(&mut self) -> Frame<Up> {
        loop {
            match self.next().await {
                WorkerEventKind::Message(Frame {
                    message: Up::Beat(_),
                    blobs: _,
                }) => {}
                WorkerEventKind::Message(frame) => return frame,
                kind => panic!("{kind:?} instead of a message"),
            }
        }
    }

    /// The next message that is neither a beat nor progress.
    async fn answer(&mut self) -> Frame<Up> {
        loop {
            let frame = self.message().await;
            if !matches!(frame.message, Up::Progress(_) | Up::LoadProgress { .. }) {
                return frame;
            }
        }
    }

    fn run(&self, job: &str, steps: u32, seed: u64) {
        self.handle
            .send(Down::Run(Box::new(run(job, 1, steps, seed))).into());
    }
}

fn run(job: &str, attempt: u32, steps: u32, seed: u64) -> Run {
    let work = Work::Generate(Generate {
        model: "tiny".into(),
        mode: Mode::TextToImage,
        prompt: Vec::new(),
        negative_prompt: Vec::new(),
        width: 16,
        height: 8,
        steps,
        guidance: 1.0,
        sampler: Sampler::Euler,
        schedule: Schedule::Default,
        seeds: vec![seed],
        noise: NoiseSource::Philox,
        initial_noise: BlobRef {
            blob: 0,
            dtype: Dtype::F32,
            shape: vec![1, 4, 1, 2],
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
    Run {
        job: job.into(),
        attempt: Attempt(attempt),
        step: "generate".into(),
        priority: 0,
        deadline_ms: None,
        vae: VaePlan::Whole,
        work,
    }
}

fn load() -> Frame<Down> {
    let model = ModelSpec {
        id: "tiny".into(),
        family: "sd".into(),
        format: ModelFormat::Onnx,
        components: BTreeMap::new(),
        segments: BTreeMap::new(),
    };
    Down::Load(Load {
        load: "l".into(),
        model,
        dtype: Dtype::F32,
        budget_bytes: 1000,
        plan: calotype_protocol::LoadPlan::default(),
    })
    .into()
}

fn result(frame: Frame<Up>) -> (Box<RunResult>, Vec<Vec<u8>>) {
    match frame.message {
        Up::Result(result) => (result, frame.blobs),
        other => panic!("{other:?} instead of a result"),
    }
}

fn pause(job: &str, offload: bool) -> Frame<Down> {
    Down::Pause {
        job: job.into(),
        attempt: Attempt(1),
        offload,
    }
    .into()
}

fn resume(job: &str) -> Frame<Down> {
    Down::Resume {
        job: job.into(),
        attempt: Attempt(1),
    }
    .into()
}

fn cancel(job: &str) -> Frame<Down> {
    Down::Cancel {
        job: job.into(),
        attempt: Attempt(1),
    }
    .into()
}

/// Whether a process still executes; a zombie of somebody else's does not.
fn lives(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.rsplit(") ").next().unwrap_or("").starts_with(['Z', 'X']),
        Err(_) => false,
    }
}

#[tokio::test]
async fn a_good_worker_loads_runs_side_by_side_and_leaves_when_stopped() {
    let mut slot = Slot::start("good");
    slot.ready().await;
    let pid = slot.pid;
    slot.handle.send(load());
    assert!(matches!(slot.answer().await.message, Up::Loaded(loaded) if loaded.resident_bytes == 1000));
    slot.run("a", 3, 1);
    slot.run("b", 3, 2);
    let (first, first_blobs) = result(slot.answer().await);
    let (second, second_blobs) = result(slot.answer().await);
    assert_eq!((first.job, second.job), (JobId::from("a"), JobId::from("b")));
    assert_eq!(first_blobs[0].len(), 16 * 8 * 3);
    assert_ne!(first_blobs, second_blobs);
    slot.run("c", 1, 1);
    assert_eq!(result(slot.answer().await).1, first_blobs);
    slot.handle.stop(PATIENCE).await;
    assert!(!lives(pid));
    let report = slot.gone().await;
    assert_eq!(
        (report.cause, report.status.as_str()),
        (ExitCause::Stopped, "exit status 0")
    );
    assert_eq!((report.restart_in, report.pid), (None, pid));
    assert!(
        timeout(PATIENCE, slot.events.recv()).await.unwrap().is_none(),
        "the slot is no more"
    );
    slot.handle.stop(PATIENCE).await;
}

#[tokio::test]
async fn a_paused_job_waits_and_a_resumed_one_ends() {
    let mut slot = Slot::start_with("good", brisk(), &[("FAKE_STEP_MS", "5".to_owned())]);
    slot.ready().await;
    slot.run("a", 20, 1);
    slot.handle.send(
        Down::Pause {
            job: "a".into(),
            attempt: Attempt(1),
            offload: false,
        }
        .into(),
    );
    let Up::Paused { at_step, .. } = slot.answer().await.message else {
        panic!("not paused")
    };
    slot.handle.send(
        Down::Resume {
            job: "a".into(),
            attempt: Attempt(1),
        }
        .into(),
    );
    assert!(matches!(slot.answer().await.message, Up::Resumed { at_step: again, .. } if again == at_step));
    assert_eq!(result(slot.answer().await).0.batch_sizes.len(), 20);
    slot.run("b", 1_000_000, 1);
    slot.handle.send(cancel("b"));
    assert!(matches!(slot.answer().await.message, Up::Cancelled { .. }));
}

#[tokio::test]
async fn each_pause_and_each_resume_has_one_answer_in_order_until_the_job_has_ended() {
    let mut slot = Slot::start_with("good", brisk(), &[("FAKE_STEP_MS", "5".to_owned())]);
    slot.ready().await;
    slot.run("a", 1_000_000, 1);
    for line in [
        pause("a", true),
        resume("a"),
        resume("a"),
        pause("a", false),
        pause("a", true),
        cancel("a"),
        resume("a"),
        pause("a", true),
    ] {
        slot.handle.send(line);
    }
    slot.run("b", 1, 1);
    let mut words = Vec::new();
    loop {
        words.push(match slot.answer().await.message {
            Up::Paused { .. } => "paused",
            Up::Resumed { .. } => "resumed",
            Up::Cancelled { .. } => "cancelled",
            Up::Result(_) => break,
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(
        words,
        ["paused", "resumed", "resumed", "paused", "paused", "cancelled"]
    );
}

#[tokio::test]
async fn paused_jobs_take_no_place_and_an_unload_or_a_drain_ends_them() {
    let mut slot = Slot::start_with("good", brisk(), &[("FAKE_MAX_BATCH", "4".to_owned())]);
    slot.ready().await;
    let held = ["a", "b", "c", "d"];
    for job in held {
        slot.run(job, 1_000_000, 1);
        slot.handle.send(pause(job, true));
        assert!(matches!(slot.answer().await.message, Up::Paused { .. }));
    }
    slot.run("new", 3, 1);
    assert_eq!(result(slot.answer().await).0.batch_sizes, [1, 1, 1]);
    slot.handle.send(
        Down::Unload {
            unload: "u".into(),
            model: Some("tiny".into()),
        }
        .into(),
    );
    for job in held {
        let Up::Failed {
            job: failed, failure, ..
        } = slot.answer().await.message
        else {
            panic!("not failed")
        };
        assert_eq!((failed, failure.outcome), (JobId::from(job), Outcome::Failed));
    }
    assert!(matches!(slot.answer().await.message, Up::Unloaded { .. }));
    slot.run("held", 1_000_000, 1);
    slot.handle.send(pause("held", true));
    assert!(matches!(slot.answer().await.message, Up::Paused { .. }));
    slot.handle.stop(PATIENCE).await;
    assert!(matches!(slot.answer().await.message, Up::Failed { .. }));
    assert_eq!(slot.gone().await.cause, ExitCause::Stopped);
}

#[tokio::test]
async fn no_more_jobs_share_a_tick_than_the_worker_says() {
    let env = [
        ("FAKE_MAX_BATCH", "2".to_owned()),
        ("FAKE_STEP_MS", "5".to_owned()),
    ];
    let mut slot = Slot::start_with("good", brisk(), &env);
    slot.ready().await;
    for job in ["a", "b", "c"] {
        slot.run(job, 3, 1);
    }
    let mut results = Vec::new();
    for _ in 0..3 {
        results.push(*result(slot.answer().await).0);
    }
    assert_eq!(results[2].job, JobId::from("c"));
    assert!(
        results
            .iter()
            .all(|result| result.batch_sizes.iter().all(|samples| *samples <= 2))
    );
}

#[tokio::test]
async fn many_workers_drain_at_the_same_time() {
    const WORKERS: usize = 64;
    let mut slots: Vec<Slot> = (0..WORKERS)
        .map(|_| Slot::start_with("good", brisk(), &[("FAKE_STEP_MS", "1000".to_owned())]))
        .collect();
    for slot in &mut slots {
        slot.ready().await;
        slot.run("a", 1, 1);
    }
    // One after the other they would take a second each.
    let stops: Vec<_> = slots
        .iter()
        .map(|slot| {
            let handle = slot.handle.clone();
            tokio::spawn(async move { handle.stop(PATIENCE).await })
        })
        .collect();
    let all = async {
        for stop in stops {
            stop.await.unwrap();
        }
    };
    timeout(PATIENCE, all)
        .await
        .expect("all of them at the same time");
    for slot in &mut slots {
        assert!(!lives(slot.pid));
        result(slot.answer().await);
        assert_eq!(slot.gone().await.cause, ExitCause::Stopped);
    }
}

#[tokio::test]
async fn work_that_outlasts_the_grace_is_left_and_the_worker_leaves() {
    let mut slot = Slot::start_with("good", brisk(), &[("FAKE_STEP_MS", "5".to_owned())]);
    slot.ready().await;
    slot.run("a", 1_000_000, 1);
    slot.handle.stop(Duration::from_millis(100)).await;
    assert!(!lives(slot.pid));
    assert_eq!(slot.gone().await.cause, ExitCause::Stopped);
}

#[tokio::test]
async fn a_drained_worker_finishes_its_work_first() {
    let mut slot = Slot::start_with("good", brisk(), &[("FAKE_STEP_MS", "5".to_owned())]);
    slot.ready().await;
    slot.run("a", 10, 1);
    slot.handle.stop(PATIENCE).await;
    result(slot.answer().await);
    assert_eq!(slot.gone().await.cause, ExitCause::Stopped);
}

#[tokio::test]
async fn a_stop_without_grace_does_not_wait_for_work() {
    let mut slot = Slot::start("never_finishes");
    slot.ready().await;
    let pid = slot.pid;
    slot.run("a", 10, 1);
    slot.handle.stop(Duration::ZERO).await;
    assert!(!lives(pid));
    assert_eq!(slot.gone().await.cause, ExitCause::Stopped);
}

#[tokio::test]
async fn what_cannot_be_started_is_tried_again_with_growing_waits() {
    let counters = MemoryKillCounters::of_this_system();
    let mut slot = Slot::start_program("/nonexistent/worker".into(), "good", brisk(), &[], counters);
    let mut waits = Vec::new();
    for _ in 0..4 {
        let report = slot.gone().await;
        assert_eq!(report.cause, ExitCause::FailedToStart);
        assert!(report.status.contains("/nonexistent/worker"), "{}", report.status);
        waits.push(report.restart_in.unwrap().as_millis());
    }
    assert_eq!(waits, [10, 20, 40, 80]);
    slot.handle.stop(PATIENCE).await;
}

#[tokio::test]
async fn exits_before_ready() {
    let mut slot = Slot::start("exits_before_ready");
    let first = slot.gone().await;
    assert_eq!(first.cause, ExitCause::ExitedBeforeReady);
    assert_eq!(
        (first.status.as_str(), first.stderr_tail.as_str()),
        ("exit status 3", "no device found")
    );
    let second = slot.gone().await;
    assert!(second.restart_in > first.restart_in);
}

#[tokio::test]
async fn dies_at_import() {
    let mut slot = Slot::start("dies_at_import");
    let report = slot.gone().await;
    assert_eq!(report.cause, ExitCause::ExitedBeforeReady);
    assert_eq!(report.status, "exit status 1");
    assert!(
        report.stderr_tail.starts_with("Traceback"),
        "{}",
        report.stderr_tail
    );
    assert!(
        report.stderr_tail.ends_with("No module named 'torch'"),
        "{}",
        report.stderr_tail
    );
}

#[tokio::test]
async fn never_says_hello() {
    let timing = Timing {
        hello: Duration::from_millis(100),
        ..brisk()
    };
    assert_eq!(
        Slot::start_with("never_says_hello", timing, &[])
            .gone()
            .await
            .cause,
        ExitCause::HelloTimeout
    );
}

#[tokio::test]
async fn never_ready() {
    let timing = Timing {
        ready: Duration::from_millis(100),
        ..brisk()
    };
    assert_eq!(
        Slot::start_with("never_ready", timing, &[]).gone().await.cause,
        ExitCause::ReadyTimeout
    );
}

#[tokio::test]
async fn wrong_major() {
    let worker = Version {
        major: PROTOCOL.major + 1,
        minor: PROTOCOL.minor,
    };
    assert_eq!(
        Slot::start("wrong_major").gone().await.cause,
        ExitCause::WrongVersion {
            worker,
            ours: PROTOCOL
        }
    );
}

async fn protocol_error(fault: &str, expected: &str) {
    let mut slot = Slot::start(fault);
    match slot.gone().await.cause {
        ExitCause::ProtocolError { reason } => assert!(reason.contains(expected), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn prints_to_stdout() {
    protocol_error("prints_to_stdout", "Loading weights").await;
}

#[tokio::test]
async fn half_a_line() {
    protocol_error("half_a_line", "inside a frame").await;
}

#[tokio::test]
async fn oversize_frame() {
    protocol_error("oversize_frame", "314572800 bytes announced").await;
}

#[tokio::test]
async fn silent() {
    let timing = Timing {
        silence: Duration::from_millis(200),
        ..brisk()
    };
    let mut slot = Slot::start_with("silent", timing, &[]);
    slot.ready().await;
    assert_eq!(slot.gone().await.cause, ExitCause::Silent);
}

#[tokio::test]
async fn ignores_terminate_and_is_killed() {
    let mut slot = Slot::start("ignores_terminate");
    slot.ready().await;
    slot.next().await;
    slot.handle.recycle("it is old");
    let report = slot.gone().await;
    assert_eq!(
        report.cause,
        ExitCause::Recycled {
            reason: "it is old".to_owned()
        }
    );
    assert_eq!(
        (report.status.as_str(), report.restart_in),
        ("signal 9", Some(Duration::ZERO))
    );
}

#[tokio::test]
async fn a_recycled_worker_is_replaced_at_once_however_often() {
    let mut slot = Slot::start("good");
    for incarnation in 1..=4 {
        slot.ready().await;
        assert_eq!(slot.newest.0, incarnation);
        slot.handle.recycle("memory did not come back");
        assert_eq!(slot.gone().await.restart_in, Some(Duration::ZERO));
    }
}

#[tokio::test]
async fn a_flood_of_logs_does_not_stop_the_work() {
    let mut slot = Slot::start("flood_of_logs");
    slot.ready().await;
    slot.run("a", 1, 1);
    result(slot.answer().await);
    slot.handle.stop(PATIENCE).await;
    let tail = slot.gone().await.stderr_tail;
    assert!(tail.len() <= 4096 && tail.ends_with("stderr line 9999"), "{tail}");
}

#[tokio::test]
async fn a_worker_out_of_memory_stays() {
    let mut slot = Slot::start("out_of_memory_once");
    slot.ready().await;
    slot.run("a", 1, 1);
    let Up::Failed { failure, .. } = slot.answer().await.message else {
        panic!("not failed")
    };
    assert_eq!(failure.outcome, Outcome::OutOfMemory);
    slot.run("a", 1, 1);
    result(slot.answer().await);
}

#[tokio::test]
async fn failures_are_passed_on_and_the_worker_stays() {
    for (fault, outcome) in [
        ("out_of_memory", Outcome::OutOfMemory),
        ("fails", Outcome::Failed),
    ] {
        let mut slot = Slot::start(fault);
        slot.ready().await;
        for _ in 0..2 {
            slot.run("a", 1, 1);
            let Up::Failed { failure, .. } = slot.answer().await.message else {
                panic!("not failed")
            };
            assert_eq!(failure.outcome, outcome);
        }
    }
    let mut slot = Slot::start("model_load");
    slot.ready().await;
    slot.handle.send(load());
    assert!(matches!(slot.answer().await.message, Up::LoadFailed { .. }));
}

#[tokio::test]
async fn loses_its_device() {
    let mut slot = Slot::start("loses_its_device");
    slot.ready().await;
    slot.run("a", 1, 1);
    let reason = "an illegal address was accessed".to_owned();
    assert_eq!(slot.gone().await.cause, ExitCause::Fatal { reason });
}

#[tokio::test]
async fn killed_once_and_its_replacement_does_the_work() {
    let marker = tempfile::tempdir().unwrap();
    let path = marker.path().join("killed").to_string_lossy().into_owned();
    let mut slot = Slot::start_with("killed_once", brisk(), &[("FAKE_MARKER", path)]);
    slot.ready().await;
    slot.run("a", 4, 1);
    let report = slot.gone().await;
    assert_eq!(
        (report.cause, report.status.as_str()),
        (ExitCause::Killed { signal: 9 }, "signal 9")
    );
    slot.ready().await;
    slot.run("a", 4, 1);
    result(slot.answer().await);
}

#[tokio::test]
async fn killed_mid_step_again_and_again_with_growing_waits() {
    let mut slot = Slot::start("killed_mid_step");
    let mut waits = Vec::new();
    for _ in 0..4 {
        slot.ready().await;
        slot.run("a", 4, 1);
        let report = slot.gone().await;
        assert_eq!(report.cause, ExitCause::Killed { signal: 9 });
        waits.push(report.restart_in.unwrap().as_millis());
    }
    assert_eq!(waits, [0, 20, 40, 80]);
}

#[tokio::test]
async fn a_kill_while_the_kernels_out_of_memory_killer_ran_is_told_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let events = folder.path().join("memory.events");
    let count = |kills: u32| std::fs::write(&events, format!("oom 9\noom_kill {kills}\n")).unwrap();
    count(3);
    let counters = MemoryKillCounters::in_files(vec![folder.path().join("no"), events.clone()]);
    let mut slot = Slot::start_program(FAKE_WORKER.into(), "killed_mid_step", brisk(), &[], counters);
    // The killer did not run: somebody else's signal.
    slot.ready().await;
    slot.run("a", 4, 1);
    assert_eq!(slot.gone().await.cause, ExitCause::Killed { signal: 9 });
    slot.ready().await;
    slot.handle.send(load());
    assert!(matches!(slot.answer().await.message, Up::Loaded(_)));
    while slot.beat().await.used_bytes == 0 {}
    count(4);
    slot.run("a", 4, 1);
    let used_bytes = Some(1000);
    assert_eq!(slot.gone().await.cause, ExitCause::OutOfMemoryKill { used_bytes });
    // What it killed before does not count for the next one.
    slot.ready().await;
    slot.run("a", 4, 1);
    assert_eq!(slot.gone().await.cause, ExitCause::Killed { signal: 9 });
}

#[tokio::test]
async fn never_finishes() {
    let timing = Timing {
        step_first: Duration::from_millis(150),
        step_least: Duration::from_millis(150),
        ..brisk()
    };
    let mut slot = Slot::start_with("never_finishes", timing, &[]);
    slot.ready().await;
    slot.run("a", 4, 1);
    assert_eq!(
        slot.gone().await.cause,
        ExitCause::StepDeadline { job: "a".into() }
    );
}

/// Each step must come within 400 ms, and each piece of a load too.
fn strict() -> Timing {
    let patience = Duration::from_millis(400);
    Timing {
        step_first: patience,
        step_least: patience,
        load_least: patience,
        ..brisk()
    }
}

#[tokio::test]
async fn a_slow_load_costs_the_job_beside_it_nothing() {
    let env = [
        ("FAKE_STEP_MS", "5".to_owned()),
        ("FAKE_LOAD_MS", "1600".to_owned()),
    ];
    let mut slot = Slot::start_with("good", strict(), &env);
    slot.ready().await;
    slot.run("a", 40, 1);
    assert!(matches!(slot.message().await.message, Up::Progress(_)));
    slot.handle.send(load());
    assert!(matches!(slot.answer().await.message, Up::Loaded(_)));
    assert_eq!(result(slot.answer().await).0.batch_sizes.len(), 40);
    assert_eq!(slot.newest, (1, false));
}

#[tokio::test]
async fn a_load_that_hangs_ends_the_worker_and_the_job_beside_it_is_not_blamed() {
    let mut slot = Slot::start_with("load_hangs", strict(), &[("FAKE_STEP_MS", "5".to_owned())]);
    slot.ready().await;
    slot.run("a", 1_000_000, 1);
    assert!(matches!(slot.message().await.message, Up::Progress(_)));
    slot.handle.send(load());
    let cause = slot.gone().await.cause;
    assert_eq!(cause, ExitCause::LoadDeadline);
    assert!(!cause.may_be_of(&"a".into()));
}

#[tokio::test]
async fn a_job_that_hangs_before_a_load_is_blamed_itself() {
    let timing = Timing {
        load_least: Duration::from_millis(500),
        ..strict()
    };
    let mut slot = Slot::start_with("never_finishes", timing, &[]);
    slot.ready().await;
    slot.run("a", 4, 1);
    while slot.beat().await.oldest_step_ms < 100 {}
    slot.handle.send(load());
    let job = "a".into();
    assert_eq!(slot.gone().await.cause, ExitCause::StepDeadline { job });
}

#[tokio::test]
async fn a_job_that_stalls_is_cancelled_and_the_worker_stays() {
    let timing = Timing {
        step_first: Duration::from_millis(150),
        step_least: Duration::from_millis(150),
        ..brisk()
    };
    let mut slot = Slot::start_with("stalls", timing, &[]);
    slot.ready().await;
    slot.run("a", 4, 1);
    assert!(matches!(slot.answer().await.message, Up::Cancelled { .. }));
    slot.handle.send(load());
    assert!(matches!(slot.answer().await.message, Up::Loaded(_)));
}

#[tokio::test]
async fn ignores_cancel() {
    let timing = Timing {
        step_first: Duration::from_millis(150),
        step_least: Duration::from_millis(150),
        ..brisk()
    };
    let mut slot = Slot::start_with("ignores_cancel", timing, &[("FAKE_STEP_MS", "5".to_owned())]);
    slot.ready().await;
    slot.run("a", 1_000_000, 1);
    assert!(matches!(slot.message().await.message, Up::Progress(_)));
    slot.handle.send(cancel("a"));
    assert_eq!(
        slot.gone().await.cause,
        ExitCause::StepDeadline { job: "a".into() }
    );
}

#[tokio::test]
async fn a_stale_attempt_is_passed_on_for_the_dispatcher_to_drop() {
    let mut slot = Slot::start("stale_attempt");
    slot.ready().await;
    slot.handle.send(Down::Run(Box::new(run("a", 2, 1, 1))).into());
    assert_eq!(result(slot.answer().await).0.attempt, Attempt(1));
    assert_eq!(result(slot.answer().await).0.attempt, Attempt(2));
}

#[tokio::test]
async fn a_grandchild_is_dead_when_its_worker_is_gone() {
    let mut slot = Slot::start("leaves_a_grandchild");
    let report = slot.gone().await;
    assert_eq!(report.cause, ExitCause::Exited);
    let grandchild: u32 = report
        .stderr_tail
        .strip_prefix("grandchild ")
        .unwrap()
        .parse()
        .unwrap();
    assert!(!lives(grandchild));
}

#[tokio::test]
async fn a_frame_for_an_older_incarnation_does_not_reach_the_next() {
    let mut slot = Slot::start("good");
    slot.ready().await;
    slot.handle.recycle("test");
    slot.gone().await;
    slot.ready().await;
    let frame = || Frame::from(Down::Run(Box::new(run("old", 1, 1, 1))));
    slot.handle.send_to(1, frame());
    slot.handle
        .send_to(2, Down::Run(Box::new(run("new", 1, 1, 1))).into());
    assert_eq!(result(slot.answer().await).0.job, JobId::from("new"));
}

#[tokio::test]
async fn nobody_listens_and_the_process_ends() {
    let mut slot = Slot::start("good");
    slot.ready().await;
    let (pid, handle) = (slot.pid, slot.handle.clone());
    drop(slot);
    handle.stop(PATIENCE).await;
    assert!(!lives(pid));
}

#[tokio::test]
async fn a_dispatcher_that_does_not_listen_cannot_keep_a_slot_from_stopping() {
    let mut slot = Slot::start_with("good", brisk(), &[("FAKE_STEP_MS", "0".to_owned())]);
    slot.ready().await;
    slot.run("a", 100_000, 1);
    assert!(matches!(slot.message().await.message, Up::Progress(_)));
    let pid = slot.pid;
    timeout(PATIENCE, slot.handle.stop(Duration::from_millis(100)))
        .await
        .expect("stopped");
    assert!(!lives(pid));
    assert_eq!(slot.gone().await.cause, ExitCause::Stopped);
}

#[tokio::test]
async fn scratch_is_of_one_process_and_is_removed_after_it() {
    let mut slot = Slot::start("good");
    slot.ready().await;
    let own = slot.scratch.path().join(format!("worker-{}", slot.pid));
    assert!(own.is_dir());
    slot.handle.stop(PATIENCE).await;
    assert_eq!(slot.gone().await.cause, ExitCause::Stopped);
    assert!(!own.exists());
}
