//! The golden conversations: lines that every worker in any language must read and write. `runs` has those about one job.

mod runs;

use std::collections::BTreeMap;

use calotype_protocol::schema::Line;
use calotype_protocol::{
    Beat, Capabilities, DeviceFacts, Down, Dtype, Failure, Heartbeat, Hello, InstanceId, Limits, Load,
    LoadId, LoadPlan, Loaded, LogLevel, MemoryOp, MemoryReport, Mode, ModelFormat, ModelSpec, Outcome,
    PROTOCOL, ProbeOp, Ready, Sampler, Schedule, Segment, SegmentId, Up, Version, Welcome, WorkerDevice,
};

/// Conversations by name. Together they hold every message once at least.
pub(super) fn golden() -> Vec<(&'static str, Vec<Line>)> {
    vec![
        ("handshake", handshake()),
        ("wrong_major", wrong_major()),
        ("load", load()),
        ("generate", runs::generate()),
        ("hold_and_drop", runs::hold_and_drop()),
        ("pauses", runs::pauses()),
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
        instance: InstanceId("i-1".into()),
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
                id: SegmentId("weights-1".into()),
                path: "/dev/shm/calotype-weights-1".into(),
                bytes: 65_000_000,
            },
        )]),
    };
    vec![
        Line::Down(Down::Load(Load {
            load: LoadId("load_1".into()),
            model,
            dtype: Dtype::F32,
            budget_bytes: 1 << 30,
            plan: LoadPlan {
                attention_slicing: true,
                ..LoadPlan::default()
            },
        })),
        Line::Up(Up::LoadProgress {
            load: LoadId("load_1".into()),
            done_bytes: 1,
            total_bytes: 2,
        }),
        Line::Up(Up::Loaded(Loaded {
            load: LoadId("load_1".into()),
            model: "calotype-tiny".into(),
            resident_bytes: 90_700_000,
            phases_ms: BTreeMap::from([("read".into(), 12.5)]),
        })),
        Line::Up(Up::LoadFailed {
            load: LoadId("load_2".into()),
            failure: failure(Outcome::ModelLoad),
        }),
        Line::Down(Down::Unload {
            unload: LoadId("unload_3".into()),
            model: None,
        }),
        Line::Up(Up::Unloaded {
            unload: LoadId("unload_3".into()),
            freed_bytes: 90_700_000,
        }),
        Line::Down(Down::Release {
            segment: SegmentId("weights-1".into()),
        }),
        Line::Up(Up::Released {
            segment: SegmentId("weights-1".into()),
        }),
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
