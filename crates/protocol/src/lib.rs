//! What crosses the pipe between the orchestrator and one worker process: types, framing, schema.
//!
//! "Down" is orchestrator to worker (its stdin), "up" is worker to orchestrator (its stdout). A frame is one JSON
//! object on one line, followed by the raw byte strings ("blobs") that it announces. This crate knows no process,
//! no clock and, without its `tokio` feature, no runtime.

mod down;
mod frame;
mod ids;
pub mod noise;
mod read;
#[cfg(feature = "tokio")]
mod read_async;
mod sampling;
pub mod schema;
mod tensor;
mod up;
mod work;

pub use down::{
    Adapter, Down, Heartbeat, Limits, Load, LoadPlan, MemoryOp, ModelFormat, ModelSpec, Offload, ProbeOp,
    Run, Segment, VaePlan, Welcome, WorkerDevice,
};
pub use frame::{Blob, Frame, FrameError, FrameLimits, PROTOCOL, Version};
pub use ids::{Attempt, InstanceId, JobId, LoadId, ModelId, SegmentId, StepId};
pub use read::{FrameReader, write_frame};
#[cfg(feature = "tokio")]
pub use read_async::{AsyncFrameReader, write_frame_async};
pub use sampling::{Mode, NoiseSource, Prediction, Sampler, Schedule};
pub use tensor::{BlobRef, Dtype, Tensor, TensorError};
pub use up::{
    Beat, Capabilities, DeviceFacts, Failure, Hello, Loaded, LogLevel, MemoryReport, Outcome, Phase,
    Progress, Ready, RunResult, Up,
};
pub use work::{
    ControlImage, ControlMode, ControlUnit, Decode, Embed, Encode, Generate, Hires, Matte, Preprocess,
    Refiner, RestoreFaces, ScoreSafety, Span, Style, Upscale, Upscaler, Work,
};
