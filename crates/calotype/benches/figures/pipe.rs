//! What the pipe between orchestrator and worker costs, and how fast a dead worker is replaced: the supervisor itself
//! with a process of `fake_worker`.

use std::path::Path;
use std::time::{Duration, Instant};

use calotype_engine::worker::{
    ExitCause, MemoryKillCounters, Timing, WorkerConfig, WorkerEvent, WorkerEventKind, WorkerHandle,
    WorkerName, start,
};
use calotype_protocol::{
    Attempt, BlobRef, Down, Dtype, Frame, Generate, MemoryOp, Mode, NoiseSource, Run, Sampler, Schedule,
    StepId, Up, VaePlan, Work, WorkerDevice,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc;

use super::row::{Times, held_to};

const GROUP: &str = "pipe";
const ROUNDS: u64 = 4000;
const PICTURES: u32 = 200;
const KILLS: usize = 20;

/// All rows.
pub fn measure(fake_worker: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let fake_worker = fake_worker.to_owned();
    // In a task, as the dispatcher is one: the thread that blocks here would add its own wake-up to each round.
    let rows = runtime.spawn(async move {
        let scratch = tempfile::tempdir().unwrap();
        let (tell, mut events) = mpsc::channel(64);
        let handle = start(config(&fake_worker, scratch.path()), tell);
        let pid = ready(&mut events).await.unwrap();
        round_trips(&handle, &mut events).await;
        hand_over(&handle, &mut events).await;
        deaths(&mut events, pid).await;
        handle.stop(Duration::ZERO).await;
    });
    runtime.block_on(rows).unwrap();
}

fn config(program: &Path, scratch: &Path) -> WorkerConfig {
    WorkerConfig {
        name: WorkerName("cpu0".into()),
        program: program.to_owned(),
        args: vec!["good".into()],
        env: Vec::new(),
        device: WorkerDevice {
            kind: "cpu".into(),
            index: 0,
            uuid: None,
        },
        scratch: scratch.to_owned(),
        threads: 0,
        // Restarted at once each time: the wait is a choice, not a cost.
        timing: Timing {
            backoff_first: Duration::ZERO,
            backoff_most: Duration::ZERO,
            ..Timing::default()
        },
        memory_kills: MemoryKillCounters::of_this_system(),
    }
}

/// Waits until a process is ready; its pid, where it was started meanwhile.
async fn ready(events: &mut mpsc::Receiver<WorkerEvent>) -> Option<u32> {
    let mut started = None;
    loop {
        match events.recv().await.unwrap().kind {
            WorkerEventKind::Starting { pid } => started = Some(pid),
            WorkerEventKind::Ready { .. } => return started,
            WorkerEventKind::Message(_) | WorkerEventKind::Gone(_) => {}
        }
    }
}

async fn message(events: &mut mpsc::Receiver<WorkerEvent>, wanted: impl Fn(&Up) -> bool) -> Frame<Up> {
    loop {
        if let WorkerEventKind::Message(frame) = events.recv().await.unwrap().kind
            && wanted(&frame.message)
        {
            return frame;
        }
    }
}

async fn round_trips(handle: &WorkerHandle, events: &mut mpsc::Receiver<WorkerEvent>) {
    let mut times = Vec::new();
    for seq in 0..ROUNDS {
        let began = Instant::now();
        let op = MemoryOp::Status;
        handle.send(Down::Memory { seq, op }.into());
        message(
            events,
            |up| matches!(up, Up::Memory { seq: answered, .. } if *answered == seq),
        )
        .await;
        times.push(began.elapsed());
    }
    let times = Times::new(times);
    held_to(
        GROUP,
        "control round trip, p50",
        times.median(),
        Duration::from_micros(60),
    );
    super::row::told(GROUP, "control round trip, p99", times.percentile(99));
}

/// From the line of the last step to the picture's bytes in the orchestrator.
async fn hand_over(handle: &WorkerHandle, events: &mut mpsc::Receiver<WorkerEvent>) {
    let mut times = Vec::new();
    for number in 0..PICTURES {
        handle.send(run(&format!("job_{number}"), 1024));
        message(events, |up| matches!(up, Up::Progress(_))).await;
        let began = Instant::now();
        let frame = message(events, |up| matches!(up, Up::Result(_))).await;
        times.push(began.elapsed());
        assert_eq!(frame.blobs[0].len(), 1024 * 1024 * 3);
    }
    let times = Times::new(times);
    held_to(
        GROUP,
        "1024² RGB picture, worker → orchestrator, p50",
        times.median(),
        Duration::from_micros(1500),
    );
}

fn run(job: &str, edge: u32) -> Frame<Down> {
    let work = Work::Generate(Generate {
        model: "tiny".into(),
        mode: Mode::TextToImage,
        prompt: Vec::new(),
        negative_prompt: Vec::new(),
        width: edge,
        height: edge,
        steps: 1,
        guidance: 1.0,
        sampler: Sampler::Euler,
        schedule: Schedule::Default,
        // The same each time: made once, then only handed over.
        seeds: vec![7],
        noise: NoiseSource::Philox,
        initial_noise: BlobRef {
            blob: 0,
            dtype: Dtype::F32,
            shape: vec![1, 4, 1, 1],
        },
        init_image: None,
        mask: None,
        strength: 1.0,
        control: Vec::new(),
        adapters: Vec::new(),
        refiner: None,
        hires: None,
        clip_skip: 0,
        preview_every: 0,
    });
    let run = Run {
        job: job.into(),
        attempt: Attempt(1),
        step: StepId::from("generate"),
        priority: 0,
        deadline_ms: None,
        vae: VaePlan::Whole,
        work,
    };
    Frame {
        message: Down::Run(Box::new(run)),
        blobs: vec![vec![0; 16]],
    }
}

async fn deaths(events: &mut mpsc::Receiver<WorkerEvent>, first: u32) {
    let (mut noticed, mut replaced) = (Vec::new(), Vec::new());
    let mut pid = first;
    for _ in 0..KILLS {
        let began = Instant::now();
        kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
        loop {
            if let WorkerEventKind::Gone(report) = events.recv().await.unwrap().kind {
                assert_eq!(report.cause, ExitCause::Killed { signal: 9 });
                noticed.push(began.elapsed());
                break;
            }
        }
        pid = ready(events).await.unwrap();
        replaced.push(began.elapsed());
    }
    let most = |times: Vec<Duration>| Times::new(times).percentile(100);
    held_to(
        GROUP,
        "kill -9 of a worker → reaped, slowest of 20",
        most(noticed),
        Duration::from_millis(50),
    );
    held_to(
        GROUP,
        "kill -9 of a worker → the next one ready (without backoff), slowest of 20",
        most(replaced),
        Duration::from_millis(250),
    );
}
