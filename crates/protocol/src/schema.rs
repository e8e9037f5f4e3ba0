//! The JSON Schema of the wire and the golden conversations, both generated from the types. `cargo xtask schema` writes
//! them into `schema/`; `cargo xtask check` compares. Every worker in any language must read and write the same lines.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, schema_for};
use serde::{Deserialize, Serialize};

use crate::{
    Adapter, Attempt, Beat, BlobRef, Capabilities, ControlImage, ControlMode, ControlUnit, DeviceFacts, Down,
    Dtype, Failure, Generate, Heartbeat, Hello, Hires, Limits, Load, LoadPlan, Loaded, LogLevel, MemoryOp,
    MemoryReport, Mode, ModelFormat, ModelSpec, NoiseSource, Outcome, PROTOCOL, Phase, Preprocess, ProbeOp,
    Progress, Ready, Run, RunResult, Sampler, Schedule, Segment, Span, Up, Upscaler, VaePlan, Version,
    Welcome, Work, WorkerDevice,
};

/// JSON Schema of what goes down.
pub fn down() -> Schema {
    schema_for!(Down)
}

/// JSON Schema of what comes up.
pub fn up() -> Schema {
    schema_for!(Up)
}

/// One line of a golden conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// Orchestrator to worker.
    Down(Down),
    /// Worker to orchestrator.
    Up(Up),
}

/// Conversations by name. Together they hold every message once at least.
pub fn golden() -> Vec<(&'static str, Vec<Line>)> {
    vec![
        ("handshake", handshake()),
        ("wrong_major", wrong_major()),
        ("load", load()),
        ("generate", generate()),
        ("hold_and_drop", hold_and_drop()),
        ("pauses", pauses()),
        ("upkeep", upkeep()),
        (
            "fatal",
            vec![Line::Up(Up::Fatal {
                reason: "the device context is lost".into(),
            })],
        ),
    ]
}

fn hello(major: u32) -> Line {
    Line::Up(Up::Hello(Hello {
        protocol: Version { major, minor: 0 },
        worker: "calotype-native 0.1.0".into(),
        runtime: "native".into(),
        instance: crate::InstanceId("i-1".into()),
        pid: 4242,
        libraries: BTreeMap::from([("rten".into(), "0.27.0".into())]),
    }))
}

fn handshake() -> Vec<Line> {
    let welcome = Welcome {
        protocol: PROTOCOL,
        device: WorkerDevice {
            kind: "cpu".into(),
            index: 0,
            uuid: None,
        },
        limits: Limits {
            frame_bytes: 1 << 20,
            blob_bytes: 256 << 20,
        },
        heartbeat: Heartbeat { every_ms: 1000 },
        scratch: "/tmp/scratch".into(),
        threads: 2,
        deterministic: false,
    };
    let ready = Ready {
        device: DeviceFacts {
            name: "a processor".into(),
            total_bytes: 24 << 30,
            free_bytes: 20 << 30,
            dtypes: vec!["f32".into()],
            compute_capability: None,
        },
        capabilities: Capabilities {
            engine: "rten 0.27.0".into(),
            families: vec!["sd".into()],
            formats: vec!["diffusers".into(), "onnx".into()],
            work: vec!["generate".into()],
            modes: Mode::ALL.to_vec(),
            samplers: Sampler::ALL.to_vec(),
            schedules: Schedule::ALL.to_vec(),
            adapters: vec!["lora".into()],
            plans: vec!["compile".into()],
            segments: false,
            loads_beside_runs: true,
            max_batch: 4,
            pauses: true,
            previews: true,
            max_edge: 1024,
        },
    };
    vec![
        hello(1),
        Line::Down(Down::Welcome(welcome)),
        Line::Up(Up::Ready(Box::new(ready))),
    ]
}

fn wrong_major() -> Vec<Line> {
    vec![
        hello(2),
        Line::Down(Down::Bye {
            reason: "the worker speaks protocol 2.0, this server 1.0".into(),
        }),
    ]
}

fn failure(outcome: Outcome) -> Failure {
    Failure {
        outcome,
        message: "why".into(),
        detail: Some("unet/x.safetensors: conv_in.weight".into()),
    }
}

fn load() -> Vec<Line> {
    let model = ModelSpec {
        id: "calotype-tiny".into(),
        family: "sd".into(),
        format: ModelFormat::Diffusers,
        components: BTreeMap::from([("root".into(), "/models/calotype-tiny".into())]),
        segments: BTreeMap::from([(
            "unet".into(),
            Segment {
                id: crate::SegmentId("weights-1".into()),
                path: "/dev/shm/calotype-weights-1".into(),
                bytes: 65_000_000,
            },
        )]),
    };
    vec![
        Line::Down(Down::Load(Load {
            load: crate::LoadId("load_1".into()),
            model,
            dtype: Dtype::F32,
            budget_bytes: 1 << 30,
            plan: LoadPlan {
                attention_slicing: true,
                ..LoadPlan::default()
            },
        })),
        Line::Up(Up::LoadProgress {
            load: crate::LoadId("load_1".into()),
            done_bytes: 1,
            total_bytes: 2,
        }),
        Line::Up(Up::Loaded(Loaded {
            load: crate::LoadId("load_1".into()),
            model: "calotype-tiny".into(),
            resident_bytes: 90_700_000,
            phases_ms: BTreeMap::from([("read".into(), 12.5)]),
        })),
        Line::Up(Up::LoadFailed {
            load: crate::LoadId("load_2".into()),
            failure: failure(Outcome::ModelLoad),
        }),
        Line::Down(Down::Unload {
            unload: crate::LoadId("unload_3".into()),
            model: None,
        }),
        Line::Up(Up::Unloaded {
            unload: crate::LoadId("unload_3".into()),
            freed_bytes: 90_700_000,
        }),
        Line::Down(Down::Release {
            segment: crate::SegmentId("weights-1".into()),
        }),
        Line::Up(Up::Released {
            segment: crate::SegmentId("weights-1".into()),
        }),
    ]
}

fn generate() -> Vec<Line> {
    let work = Generate {
        model: "calotype-tiny".into(),
        mode: Mode::Inpaint,
        prompt: vec![
            Span {
                text: "a red apple, ".into(),
                weight: 1.0,
            },
            Span {
                text: "3d".into(),
                weight: 1.25,
            },
        ],
        negative_prompt: vec![Span {
            text: "blurry".into(),
            weight: 1.0,
        }],
        width: 256,
        height: 256,
        steps: 4,
        guidance: 1.0,
        sampler: Sampler::Lcm,
        schedule: Schedule::Default,
        seeds: vec![1, u64::MAX],
        noise: NoiseSource::Philox,
        initial_noise: BlobRef {
            blob: 0,
            dtype: Dtype::F32,
            shape: vec![2, 4, 32, 32],
        },
        init_image: Some(BlobRef {
            blob: 1,
            dtype: Dtype::U8,
            shape: vec![256, 256, 3],
        }),
        mask: Some(BlobRef {
            blob: 2,
            dtype: Dtype::U8,
            shape: vec![256, 256],
        }),
        strength: 0.75,
        adapters: vec![Adapter {
            id: "lcm".into(),
            path: "/models/loras/lcm.safetensors".into(),
            weight: 1.0,
        }],
        control: vec![ControlUnit {
            model: "depth-net".into(),
            image: BlobRef {
                blob: 3,
                dtype: Dtype::U8,
                shape: vec![256, 256, 3],
            },
            weight: 0.5,
            start: 0.0,
            end: 1.0,
            mode: ControlMode::Control,
            preprocess: Some(Preprocess {
                model: "depth-anything".into(),
                into: ControlImage::Normal,
            }),
        }],
        refiner: None,
        hires: Some(Hires {
            width: 512,
            height: 512,
            steps: 10,
            strength: 0.5,
            upscaler: Upscaler::Lanczos,
        }),
        clip_skip: 0,
        preview_every: 2,
    };
    let run = Run {
        job: "job_1".into(),
        attempt: Attempt(1),
        step: "generate".into(),
        priority: 0,
        deadline_ms: Some(60_000),
        vae: VaePlan::Tiling,
        work: Work::Generate(work),
    };
    let image = |blob| BlobRef {
        blob,
        dtype: Dtype::U8,
        shape: vec![256, 256, 3],
    };
    vec![
        Line::Down(Down::Run(Box::new(run))),
        Line::Up(Up::Progress(Progress {
            job: "job_1".into(),
            attempt: Attempt(1),
            phase: Phase::Denoise,
            done: 2,
            total: 4,
            step_ms: 61.5,
        })),
        Line::Up(Up::Preview {
            job: "job_1".into(),
            attempt: Attempt(1),
            done: 2,
            image: image(0),
        }),
        Line::Up(Up::Result(Box::new(RunResult {
            job: "job_1".into(),
            attempt: Attempt(1),
            images: vec![image(0), image(1)],
            seeds: vec![1, u64::MAX],
            timings_ms: BTreeMap::from([(Phase::Denoise, 250.5)]),
            peak_bytes: 300_000_000,
            phase_peaks_bytes: BTreeMap::from([(Phase::Denoise, 250_000_000)]),
            batch_sizes: vec![2, 2, 2, 2],
            engine: "rten 0.27.0".into(),
            plan: vec!["graphs".into()],
        }))),
        Line::Up(Up::Failed {
            job: "job_2".into(),
            attempt: Attempt(3),
            failure: failure(Outcome::OutOfMemory),
        }),
    ]
}

fn hold_and_drop() -> Vec<Line> {
    let (job, attempt) = (crate::JobId("job_1".into()), Attempt(1));
    vec![
        Line::Down(Down::Pause {
            job: job.clone(),
            attempt,
            offload: true,
        }),
        Line::Up(Up::Paused {
            job: job.clone(),
            attempt,
            at_step: 2,
        }),
        Line::Down(Down::Resume {
            job: job.clone(),
            attempt,
        }),
        Line::Up(Up::Resumed {
            job: job.clone(),
            attempt,
            at_step: 2,
        }),
        Line::Down(Down::Cancel {
            job: job.clone(),
            attempt,
        }),
        Line::Up(Up::Cancelled {
            job,
            attempt,
            at_step: 3,
        }),
    ]
}

/// Each `pause` and each `resume` has one answer, in their order, until the job has ended; paused jobs of a model that is
/// unloaded fail.
fn pauses() -> Vec<Line> {
    let (job, attempt) = (crate::JobId("job_1".into()), Attempt(1));
    let pause = |offload| {
        let job = job.clone();
        Line::Down(Down::Pause {
            job,
            attempt,
            offload,
        })
    };
    let resume = || {
        let job = job.clone();
        Line::Down(Down::Resume { job, attempt })
    };
    let at_step = 2;
    let paused = || {
        let job = job.clone();
        Line::Up(Up::Paused {
            job,
            attempt,
            at_step,
        })
    };
    let resumed = || {
        let job = job.clone();
        Line::Up(Up::Resumed {
            job,
            attempt,
            at_step,
        })
    };
    let unload = crate::LoadId("unload_1".into());
    vec![
        // Both within one tick.
        pause(true),
        resume(),
        paused(),
        resumed(),
        // Of a job that runs.
        resume(),
        resumed(),
        // Of a job that is paused.
        pause(false),
        pause(true),
        paused(),
        paused(),
        Line::Down(Down::Unload {
            unload: unload.clone(),
            model: Some("calotype-tiny".into()),
        }),
        Line::Up(Up::Failed {
            job: job.clone(),
            attempt,
            failure: Failure {
                outcome: Outcome::Failed,
                message: "the job's model was unloaded".into(),
                detail: None,
            },
        }),
        Line::Up(Up::Unloaded {
            unload,
            freed_bytes: 90_700_000,
        }),
        // It has ended: neither has an answer.
        resume(),
        pause(true),
    ]
}

fn upkeep() -> Vec<Line> {
    let report = MemoryReport {
        total_bytes: 5,
        free_bytes: 4,
        used_bytes: 3,
        peak_bytes: 2,
        cached_bytes: 1,
    };
    let beat = Beat {
        seq: 9,
        free_bytes: 4,
        used_bytes: 3,
        resident: vec!["calotype-tiny".into()],
        running: vec!["job_1".into()],
        oldest_step_ms: 12,
    };
    vec![
        Line::Down(Down::Ping { seq: 1 }),
        Line::Up(Up::Pong { seq: 1 }),
        Line::Down(Down::Memory {
            seq: 2,
            op: MemoryOp::Trim,
        }),
        Line::Up(Up::Memory { seq: 2, report }),
        Line::Down(Down::Probe {
            seq: 3,
            op: ProbeOp::Benchmark,
        }),
        Line::Up(Up::Probed {
            seq: 3,
            figures: BTreeMap::from([("step_ms".into(), 61.5)]),
        }),
        Line::Up(Up::Beat(beat)),
        Line::Up(Up::Log {
            level: LogLevel::Warn,
            job: Some("job_1".into()),
            message: "slow".into(),
            dropped: 3,
        }),
        Line::Down(Down::Drain {}),
        Line::Up(Up::Bye {}),
        Line::Down(Down::Exit {}),
    ]
}
