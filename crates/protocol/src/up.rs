//! Worker to orchestrator.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::frame::Version;
use crate::ids::{Attempt, InstanceId, JobId, LoadId, ModelId, SegmentId};
use crate::sampling::{Mode, Sampler, Schedule};
use crate::tensor::BlobRef;

/// Everything that comes up, since version 1.0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Up {
    /// The first line of a worker.
    Hello(Hello),
    /// The handshake is over; work may come.
    Ready(Box<Ready>),
    /// Bytes of a load so far.
    LoadProgress {
        /// Which load.
        load: LoadId,
        /// Bytes read, converted and bound.
        done_bytes: u64,
        /// All of them.
        total_bytes: u64,
    },
    /// A model is resident.
    Loaded(Loaded),
    /// A model could not be made resident; the worker stays usable.
    LoadFailed {
        /// Which load.
        load: LoadId,
        /// Why.
        failure: Failure,
    },
    /// Models were dropped.
    Unloaded {
        /// Which request.
        unload: LoadId,
        /// Bytes that came back, as measured.
        freed_bytes: u64,
    },
    /// A segment is unmapped.
    Released {
        /// The id of the segment.
        segment: SegmentId,
    },
    /// Work that was really done.
    Progress(Progress),
    /// What the picture looks like so far.
    Preview {
        /// Which job.
        job: JobId,
        /// Which try.
        attempt: Attempt,
        /// Steps done.
        done: u32,
        /// `[height, width, 3]` of `u8`, smaller than the picture.
        image: BlobRef,
    },
    /// A job is done; its slot is free.
    Result(Box<RunResult>),
    /// A job ended without a picture; the worker stays usable.
    Failed {
        /// Which job.
        job: JobId,
        /// Which try.
        attempt: Attempt,
        /// Why.
        failure: Failure,
    },
    /// A job was dropped as asked.
    Cancelled {
        /// Which job.
        job: JobId,
        /// Which try.
        attempt: Attempt,
        /// Steps that had been done.
        at_step: u32,
    },
    /// A job left the tick loop and keeps its state: the one answer to a `pause`.
    Paused {
        /// Which job.
        job: JobId,
        /// Which try.
        attempt: Attempt,
        /// Steps done.
        at_step: u32,
    },
    /// A job ticks again: the one answer to a `resume`.
    Resumed {
        /// Which job.
        job: JobId,
        /// Which try.
        attempt: Attempt,
        /// Steps done.
        at_step: u32,
    },
    /// The answer to `memory`.
    Memory {
        /// Which request.
        seq: u64,
        /// The figures.
        report: MemoryReport,
    },
    /// The answer to `probe`.
    Probed {
        /// Which request.
        seq: u64,
        /// Name to figure; the unit is in the name.
        figures: BTreeMap<String, f64>,
    },
    /// The answer to `ping`.
    Pong {
        /// Which ping.
        seq: u64,
    },
    /// The pulse.
    Beat(Beat),
    /// A line for the log.
    Log {
        /// How grave.
        level: LogLevel,
        /// About which job.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job: Option<JobId>,
        /// The text.
        message: String,
        /// Lines left out before this one.
        #[serde(default)]
        dropped: u64,
    },
    /// The device context is lost; the process exits after this.
    Fatal {
        /// Why.
        reason: String,
    },
    /// A clean leave.
    Bye {},
}

/// Who is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Hello {
    /// The version that the worker speaks.
    pub protocol: Version,
    /// Its name and version, for instance `calotype-native 0.1.0`.
    pub worker: String,
    /// `native`, `python` or another program's own word.
    pub runtime: String,
    /// This process.
    pub instance: InstanceId,
    /// Its process id.
    pub pid: u32,
    /// Libraries that compute, name to version.
    pub libraries: BTreeMap<String, String>,
}

/// What the worker found and what it can do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ready {
    /// The device from inside.
    pub device: DeviceFacts,
    /// What may be asked of it.
    pub capabilities: Capabilities,
}

/// A device as its worker sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceFacts {
    /// For instance the processor's name.
    pub name: String,
    /// Memory in all.
    pub total_bytes: u64,
    /// Memory free now.
    pub free_bytes: u64,
    /// Compute types.
    pub dtypes: Vec<String>,
    /// Where CUDA has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_capability: Option<String>,
}

/// What may be asked of a worker. The orchestrator routes by it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Capabilities {
    /// What computes, for instance `rten 0.27` or `onnxruntime 1.31`.
    pub engine: String,
    /// Model families.
    pub families: Vec<String>,
    /// Model formats.
    pub formats: Vec<String>,
    /// Kinds of work.
    pub work: Vec<String>,
    /// Modes of `generate`.
    pub modes: Vec<Mode>,
    /// Samplers.
    pub samplers: Vec<Sampler>,
    /// Schedules.
    pub schedules: Vec<Schedule>,
    /// Adapters: `lora`, `controlnet`, `refiner`, ….
    pub adapters: Vec<String>,
    /// Ways to run a model, of a load's plan: `offload_model`, `offload_sequential`, `attention_slicing` (where it
    /// saves memory), `compile`; of a run: `vae_slicing`, `vae_tiling`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plans: Vec<String>,
    /// Whether weights may come in shared memory.
    #[serde(default)]
    pub segments: bool,
    /// Whether the worker goes on with running jobs while it loads a model, on another thread. Where it is false a load
    /// stops every running job until it is over: the orchestrator starts no load beside running work there.
    #[serde(default)]
    pub loads_beside_runs: bool,
    /// Most jobs in one tick. Paused jobs do not count.
    pub max_batch: u32,
    /// Whether jobs pause and resume.
    pub pauses: bool,
    /// Whether previews come.
    pub previews: bool,
    /// Largest edge of an image.
    pub max_edge: u32,
}

/// A model that is resident now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Loaded {
    /// Which load.
    pub load: LoadId,
    /// Which model.
    pub model: ModelId,
    /// Bytes it takes, as measured.
    pub resident_bytes: u64,
    /// Phase (`read`, `convert`, `upload`) to milliseconds.
    pub phases_ms: BTreeMap<String, f64>,
}

/// A part of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// LoRAs are summed in.
    Bind,
    /// Text and images become conditioning and latents.
    Encode,
    /// Sampling.
    Denoise,
    /// Latents become pixels.
    Decode,
}

/// One piece of work has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// Which job.
    pub job: JobId,
    /// Which try.
    pub attempt: Attempt,
    /// In which phase.
    pub phase: Phase,
    /// Pieces done.
    pub done: u32,
    /// Pieces in all.
    pub total: u32,
    /// Time of the last piece.
    pub step_ms: f64,
}

/// The pictures and how they came about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunResult {
    /// Which job.
    pub job: JobId,
    /// Which try.
    pub attempt: Attempt,
    /// One a seed; `[height, width, 3]` of `u8`, or latents for `encode`.
    pub images: Vec<BlobRef>,
    /// The seeds, in the order of the images.
    pub seeds: Vec<u64>,
    /// Phase to milliseconds.
    pub timings_ms: BTreeMap<Phase, f64>,
    /// Highest memory of the process or device during the job.
    pub peak_bytes: u64,
    /// The same by phase, where it is measured.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub phase_peaks_bytes: BTreeMap<Phase, u64>,
    /// Samples in the UNet's batch at each step.
    pub batch_sizes: Vec<u32>,
    /// What computed, for instance `rten 0.27`.
    pub engine: String,
    /// What was done for memory or speed, for instance `graphs` or `vae_tiling`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plan: Vec<String>,
}

/// How an attempt or a load ended, a closed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Result delivered.
    Done,
    /// The request cannot be served as written. No retry.
    InvalidInput,
    /// This worker cannot; another might.
    NotSupported,
    /// Device or host memory. Once more after room was made.
    OutOfMemory,
    /// As asked.
    Cancelled,
    /// Weights missing, corrupt or wrong. No retry; the model is marked.
    ModelLoad,
    /// Any other error. Retried by policy.
    Failed,
    /// Device fault, or the process died. Retried on a new process.
    Fatal,
}

/// Why there is no picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    /// Its class; decides what follows.
    pub outcome: Outcome,
    /// For a person, one sentence.
    pub message: String,
    /// The rest: traceback tail, file and tensor, numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Memory as the worker sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MemoryReport {
    /// Memory of the device in all.
    pub total_bytes: u64,
    /// Free now.
    pub free_bytes: u64,
    /// Held by this process.
    pub used_bytes: u64,
    /// Highest since the start or the last `reset_peak`.
    pub peak_bytes: u64,
    /// Of it, cached and not in use.
    pub cached_bytes: u64,
}

/// The pulse, from a thread of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Beat {
    /// Counts up.
    pub seq: u64,
    /// Free memory of the device.
    pub free_bytes: u64,
    /// Memory of this process.
    pub used_bytes: u64,
    /// Resident models.
    pub resident: Vec<ModelId>,
    /// Jobs in the tick loop or paused.
    pub running: Vec<JobId>,
    /// Time since the step under way began; 0 when idle.
    pub oldest_step_ms: u64,
}

/// How grave a log line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
}
