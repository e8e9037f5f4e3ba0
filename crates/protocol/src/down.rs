//! Orchestrator to worker.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::frame::Version;
use crate::ids::{Attempt, JobId, LoadId, ModelId, SegmentId, StepId};
use crate::tensor::Dtype;
use crate::work::Work;

/// Everything that goes down, since version 1.0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Down {
    /// The answer to `hello`: what the worker owns and must keep to.
    Welcome(Welcome),
    /// Make a model resident; answered by `loaded` or `load_failed`.
    Load(Load),
    /// Unmap a shared-memory segment; answered by `released`.
    Release {
        /// The id of the segment.
        segment: SegmentId,
    },
    /// Drop one model, or all of them; answered by `unloaded`, after a `failed` for each job that needs it, paused ones
    /// included.
    Unload {
        /// To match the answer.
        unload: LoadId,
        /// Which; none means all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        model: Option<ModelId>,
    },
    /// Start a job beside those that run.
    Run(Box<Run>),
    /// Leave the tick loop at the next step and keep the state. Answered by exactly one `paused`, also where the job is
    /// paused already; a job that has ended, or was never here, answers nothing. Answers to `pause` and `resume` come in
    /// the order of the lines, however many come between two steps.
    ///
    /// A paused job takes no place: it counts neither against `max_batch` nor against what others may use.
    Pause {
        /// The id of the job.
        job: JobId,
        /// Of which attempt.
        attempt: Attempt,
        /// Whether the state leaves the device too. Then the job holds no more than its latents, the sampler's state and
        /// its conditioning, in host memory: no working buffers, no cached blocks of the device, and no merged LoRA
        /// weights, which are merged again when it is resumed. On a processor all of it is in host memory already.
        #[serde(default)]
        offload: bool,
    },
    /// Rejoin the tick loop. Answered by exactly one `resumed`, also where the job is running; by `failed` where its
    /// state cannot come back, which ends it; by nothing where it has ended.
    Resume {
        /// The id of the job.
        job: JobId,
        /// Of which attempt.
        attempt: Attempt,
    },
    /// Drop at the next tick.
    Cancel {
        /// The id of the job.
        job: JobId,
        /// Of which attempt.
        attempt: Attempt,
    },
    /// Answered by `memory`.
    Memory {
        /// To match the answer.
        seq: u64,
        /// What to do first.
        op: MemoryOp,
    },
    /// Answered by `probed`.
    Probe {
        /// To match the answer.
        seq: u64,
        /// What to find out.
        op: ProbeOp,
    },
    /// Answered by `pong`, by a thread that the work cannot block.
    Ping {
        /// To match the answer.
        seq: u64,
    },
    /// Finish what runs, take nothing new, say `bye` and leave. Paused jobs end with `failed` at once.
    Drain {},
    /// Leave now.
    Exit {},
    /// The handshake failed; leave.
    Bye {
        /// Why, with both versions where they differ.
        reason: String,
    },
}

/// What the worker owns, and the rules of the house.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Welcome {
    /// The version spoken from here on.
    pub protocol: Version,
    /// The device that is this worker's alone.
    pub device: WorkerDevice,
    /// The largest frames that the orchestrator takes.
    pub limits: Limits,
    /// How often to beat.
    pub heartbeat: Heartbeat,
    /// A folder for files of this process; removed after it.
    pub scratch: String,
    /// Most CPU threads to compute with; 0 for the worker's choice.
    #[serde(default)]
    pub threads: u32,
    /// Refuse speed that costs repeatability.
    #[serde(default)]
    pub deterministic: bool,
}

/// A device by kind and index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerDevice {
    /// `cpu`, `cuda`, `rocm`, `vulkan`, `mps` or `directml`.
    pub kind: String,
    /// Index among its kind.
    pub index: u32,
    /// The driver's name for it, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
}

/// The largest frames that a peer takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// Longest line.
    pub frame_bytes: u64,
    /// Largest blob.
    pub blob_bytes: u64,
}

/// The pulse that proves life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Heartbeat {
    /// Time between two beats.
    pub every_ms: u64,
}

/// A model to make resident.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Load {
    /// To match the answer.
    pub load: LoadId,
    /// What and where.
    pub model: ModelSpec,
    /// Compute type.
    pub dtype: Dtype,
    /// The most that the weights may take.
    pub budget_bytes: u64,
    /// What is given up for memory, or done for speed.
    #[serde(default, skip_serializing_if = "LoadPlan::is_plain")]
    pub plan: LoadPlan,
}

/// How a model is run where it is not simply resident and eager. A worker does what it can of it, and each result tells
/// what was really done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LoadPlan {
    /// What stays in host memory between its uses.
    #[serde(default)]
    pub offload: Offload,
    /// Attention is computed in slices, where its scores are held as a whole otherwise.
    #[serde(default)]
    pub attention_slicing: bool,
    /// The denoiser is compiled in the background; it runs uncompiled meanwhile.
    #[serde(default)]
    pub compile: bool,
}

impl LoadPlan {
    /// Whether it asks for nothing.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// What stays in host memory between its uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Offload {
    /// Nothing.
    #[default]
    None,
    /// Each component as a whole.
    Model,
    /// Each block of a component.
    Sequential,
}

/// The layout of a model's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelFormat {
    /// A diffusers folder of safetensors.
    Diffusers,
    /// A folder of ONNX files in Optimum's layout.
    Onnx,
    /// One safetensors file with everything in it.
    Checkpoint,
}

/// Where a model's parts lie.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelSpec {
    /// Its name from now on.
    pub id: ModelId,
    /// For instance `sd`.
    pub family: String,
    /// Layout of the files.
    pub format: ModelFormat,
    /// Role (`root`, `unet`, `vae`, `text_encoder`, `tokenizer`, `scheduler`, `graphs`) to absolute path.
    pub components: BTreeMap<String, String>,
    /// Role to the shared memory that holds its weights, in place of the files of that component; its config still comes
    /// from there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub segments: BTreeMap<String, Segment>,
}

/// Shared memory with the weights of a component. It is laid out as a safetensors file, whose header is the table of its
/// tensors. The worker maps it read-only, page-locks it once where its device wants that, and keeps it until `release`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Segment {
    /// To name it in `release`.
    pub id: SegmentId,
    /// Absolute path of the file in memory, for instance below `/dev/shm`.
    pub path: String,
    /// All of it.
    pub bytes: u64,
}

/// A LoRA with its strength.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Adapter {
    /// Its catalogue name.
    pub id: ModelId,
    /// Absolute path of its safetensors file.
    pub path: String,
    /// Factor on its change of the weights.
    pub weight: f32,
}

/// A job for the worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// The job.
    pub job: JobId,
    /// Which try.
    pub attempt: Attempt,
    /// Which step of the job.
    pub step: StepId,
    /// Larger goes first when not all can tick.
    #[serde(default)]
    pub priority: i32,
    /// Time left to the job; none for no end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// How its pictures go through the VAE.
    #[serde(default, skip_serializing_if = "VaePlan::is_whole")]
    pub vae: VaePlan,
    /// What to do.
    pub work: Work,
}

/// How pictures go through the VAE, the largest working set first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VaePlan {
    /// Several at once, as memory allows.
    #[default]
    Whole,
    /// One after the other; the same pictures.
    Slicing,
    /// Each in overlapping tiles; the pictures differ a little where tiles meet.
    Tiling,
}

impl VaePlan {
    /// Whether it asks for nothing.
    pub fn is_whole(&self) -> bool {
        *self == Self::Whole
    }
}

/// What to do with memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemoryOp {
    /// Only report.
    Status,
    /// Return cached blocks first.
    Trim,
    /// Forget the peak first.
    ResetPeak,
}

/// What to find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProbeOp {
    /// The device's facts.
    Device,
    /// Copy, matmul and step rates.
    Benchmark,
}
