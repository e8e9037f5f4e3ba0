//! What the worker reports about itself at its start: `hello` and `ready`.

use std::time::{SystemTime, UNIX_EPOCH};

use calotype_protocol::{Capabilities, DeviceFacts, Hello, InstanceId, Mode, PROTOCOL, Ready, Schedule, Up};

use crate::facts;
use crate::job::MAX_EDGE;
use crate::runtime::Engine;
use crate::sampler;
use crate::tick::MAX_BATCH;

/// The first line.
pub(crate) fn hello(engine: &dyn Engine) -> Up {
    let pid = std::process::id();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    Up::Hello(Hello {
        protocol: PROTOCOL,
        worker: format!("calotype-native {}", env!("CARGO_PKG_VERSION")),
        runtime: "native".into(),
        instance: InstanceId(format!("native-{pid}-{now:x}")),
        pid,
        libraries: engine.libraries(),
    })
}

/// The end of the handshake.
pub(crate) fn ready(engine: &dyn Engine) -> Up {
    let (total_bytes, free_bytes) = facts::host_bytes();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Up::Ready(Box::new(Ready {
        device: DeviceFacts {
            name: facts::processor(),
            total_bytes,
            free_bytes,
            dtypes: words(&["f32"]),
            compute_capability: None,
        },
        capabilities: Capabilities {
            engine: engine.name(),
            families: words(&["sd"]),
            formats: words(&["graphs", "onnx"]),
            work: words(&["generate", "encode", "decode"]),
            modes: Mode::ALL.to_vec(),
            samplers: sampler::SUPPORTED.to_vec(),
            schedules: vec![Schedule::Default, Schedule::Karras],
            adapters: words(&["lora"]),
            plans: Vec::new(),
            segments: false,
            loads_beside_runs: false,
            max_batch: MAX_BATCH as u32,
            pauses: true,
            previews: true,
            max_edge: MAX_EDGE,
        },
    }))
}
