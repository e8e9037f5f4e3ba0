//! What a worker can be asked to do, each with typed parameters. Sizes are pixels unless a name says otherwise.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::down::Adapter;
use crate::ids::ModelId;
use crate::sampling::{Mode, NoiseSource, Sampler, Schedule};
use crate::tensor::BlobRef;

/// The work of one `run`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(
    clippy::large_enum_variant,
    reason = "one a job, and `Generate` is nearly all of them"
)]
pub enum Work {
    /// Text (and images) to images.
    Generate(Generate),
    /// An image to latents.
    Encode(Encode),
    /// Latents to an image.
    Decode(Decode),
    /// A larger image by a network.
    Upscale(Upscale),
    /// An alpha matte.
    Matte(Matte),
    /// Style transfer.
    Style(Style),
    /// Faces mended.
    RestoreFaces(RestoreFaces),
    /// Labels with scores.
    ScoreSafety(ScoreSafety),
    /// A text's embedding.
    Embed(Embed),
}

impl Work {
    /// The model that must be resident.
    pub fn model(&self) -> &ModelId {
        match self {
            Work::Generate(work) => &work.model,
            Work::Encode(work) => &work.model,
            Work::Decode(work) => &work.model,
            Work::Upscale(work) => &work.model,
            Work::Matte(work) => &work.model,
            Work::Style(work) => &work.model,
            Work::RestoreFaces(work) => &work.model,
            Work::ScoreSafety(work) => &work.model,
            Work::Embed(work) => &work.model,
        }
    }

    /// The tag on the wire.
    pub fn kind(&self) -> &'static str {
        match self {
            Work::Generate(_) => "generate",
            Work::Encode(_) => "encode",
            Work::Decode(_) => "decode",
            Work::Upscale(_) => "upscale",
            Work::Matte(_) => "matte",
            Work::Style(_) => "style",
            Work::RestoreFaces(_) => "restore_faces",
            Work::ScoreSafety(_) => "score_safety",
            Work::Embed(_) => "embed",
        }
    }
}

/// A piece of a prompt with its weight; 1 is plain. One whose text is `BREAK` ends the chunk of tokens that it stands in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Span {
    /// The words.
    pub text: String,
    /// Factor on their embeddings.
    pub weight: f32,
}

/// One generation of one or more images that differ only in their seeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Generate {
    /// The model, already loaded.
    pub model: ModelId,
    /// What it starts from.
    pub mode: Mode,
    /// Prompt, split into weighted spans.
    pub prompt: Vec<Span>,
    /// Negative prompt, likewise; unused at guidance 1.
    #[serde(default)]
    pub negative_prompt: Vec<Span>,
    /// Width of the images.
    pub width: u32,
    /// Height of the images.
    pub height: u32,
    /// Sampling steps of the whole schedule; `strength` may skip the first of them.
    pub steps: u32,
    /// Classifier-free guidance scale; at 1 or below the negative prompt is not run.
    pub guidance: f32,
    /// Sampler.
    pub sampler: Sampler,
    /// Spacing of the steps.
    pub schedule: Schedule,
    /// One seed an image.
    pub seeds: Vec<u64>,
    /// Generator of the noise of later steps.
    pub noise: NoiseSource,
    /// Initial noise, `[images, channels, height / 8, width / 8]` of `f32`, made by the orchestrator.
    pub initial_noise: BlobRef,
    /// The image to start from, `[height, width, 3]` of `u8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_image: Option<BlobRef>,
    /// Where to repaint, `[height, width]` of `u8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<BlobRef>,
    /// How much of the schedule to run from `init_image`, 0 to 1.
    pub strength: f32,
    /// LoRAs, summed into the weights.
    #[serde(default)]
    pub adapters: Vec<Adapter>,
    /// ControlNet units.
    #[serde(default)]
    pub control: Vec<ControlUnit>,
    /// A second model for the last steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refiner: Option<Refiner>,
    /// A second pass at a larger size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hires: Option<Hires>,
    /// Layers of the text encoder left out at its end, from 0.
    #[serde(default)]
    pub clip_skip: u32,
    /// A preview every so many steps; 0 for none.
    #[serde(default)]
    pub preview_every: u32,
}

/// One ControlNet with its picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ControlUnit {
    /// The ControlNet.
    pub model: ModelId,
    /// Its conditioning image, or what `preprocess` makes it of.
    pub image: BlobRef,
    /// Factor on its residuals.
    pub weight: f32,
    /// Share of the steps at which it begins.
    pub start: f32,
    /// Share of the steps at which it ends.
    pub end: f32,
    /// How it and the prompt share the picture.
    #[serde(default, skip_serializing_if = "ControlMode::is_balanced")]
    pub mode: ControlMode,
    /// A network that the image goes through first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preprocess: Option<Preprocess>,
}

/// How a ControlNet and the prompt share the picture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ControlMode {
    /// Its residuals are added as they are, to both halves of the guidance.
    #[default]
    Balanced,
    /// The prompt counts for more: the residuals fade from 1 at the middle block to 0.1 at the first, in equal ratios.
    Prompt,
    /// The ControlNet counts for more: they fade likewise, and only the half with the prompt gets them, so that the
    /// guidance lifts them too.
    Control,
}

impl ControlMode {
    /// Whether nothing is shifted.
    pub fn is_balanced(&self) -> bool {
        *self == Self::Balanced
    }
}

/// A network that makes the image of a ControlNet out of a picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Preprocess {
    /// The network, already loaded.
    pub model: ModelId,
    /// What is made with it.
    pub into: ControlImage,
}

/// What a network makes out of a picture for a ControlNet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ControlImage {
    /// Near is white, far is black.
    Depth,
    /// The direction of each surface as a colour, from the depth.
    Normal,
    /// Soft edges, white on black.
    Softedge,
    /// The skeletons of people in the colours of OpenPose.
    Pose,
}

/// A model that takes over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Refiner {
    /// The refiner.
    pub model: ModelId,
    /// Share of the steps after which it takes over.
    pub switch_at: f32,
}

/// A second pass: the picture is made larger, noised to `strength`, and sampled again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Hires {
    /// Width of the final images.
    pub width: u32,
    /// Height of the final images.
    pub height: u32,
    /// Sampling steps of its whole schedule, of which `strength` skips the first.
    pub steps: u32,
    /// How much of the schedule to run, 0 to 1.
    pub strength: f32,
    /// What makes the picture larger.
    pub upscaler: Upscaler,
}

/// What makes a picture larger between two passes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Upscaler {
    /// Bilinear interpolation of the latents.
    #[default]
    Latent,
    /// Lanczos interpolation of the decoded picture.
    Lanczos,
}

/// VAE encoding alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Encode {
    /// Whose VAE.
    pub model: ModelId,
    /// `[height, width, 3]` of `u8`.
    pub image: BlobRef,
}

/// VAE decoding alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Decode {
    /// Whose VAE.
    pub model: ModelId,
    /// `[images, channels, height / 8, width / 8]` of `f32`, scaled as the UNet sees them.
    pub latents: BlobRef,
}

/// Upscaling by a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Upscale {
    /// The upscaler.
    pub model: ModelId,
    /// The image.
    pub image: BlobRef,
    /// Largest tile edge; 0 for the worker's choice.
    #[serde(default)]
    pub tile: u32,
}

/// Foreground matting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Matte {
    /// The matting model.
    pub model: ModelId,
    /// The image.
    pub image: BlobRef,
}

/// Style transfer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Style {
    /// The style model.
    pub model: ModelId,
    /// The image.
    pub image: BlobRef,
    /// 0 leaves the image, 1 is the full style.
    pub strength: f32,
}

/// Face restoration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RestoreFaces {
    /// The restoration model.
    pub model: ModelId,
    /// The image.
    pub image: BlobRef,
    /// Fidelity to the input, 0 to 1.
    pub fidelity: f32,
}

/// Safety scoring.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScoreSafety {
    /// The classifier.
    pub model: ModelId,
    /// The image.
    pub image: BlobRef,
}

/// Text embedding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Embed {
    /// The text encoder.
    pub model: ModelId,
    /// The text.
    pub text: String,
}
