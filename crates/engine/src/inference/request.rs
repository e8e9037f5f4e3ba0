//! What a client may ask (`GenerateRequest`) and what was decided (`Plan`).

use calotype_protocol::{Mode, ModelId, Sampler, Schedule};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::store::ArtifactHash;

/// A request for pictures. Everything but the prompt has a default, from the model's preset.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GenerateRequest {
    /// What to draw; `(words:1.2)` and `(words)` weigh more, `[words]` less, `<lora:name:0.8>` lays a LoRA on, `BREAK`
    /// ends a chunk of what the model reads at once. At most 32 000 characters.
    pub prompt: String,
    /// What not to draw; has effect at guidance above 1.
    #[serde(default)]
    pub negative_prompt: Option<String>,
    /// A model of the catalogue; by default the only or the first one.
    #[serde(default)]
    pub model: Option<String>,
    /// A preset of the model; its values are defaults for the fields below.
    #[serde(default)]
    pub preset: Option<String>,
    /// By default from the images given.
    #[serde(default)]
    pub mode: Option<Mode>,
    /// Pixels; a multiple of what the model asks for (8 at least).
    #[serde(default)]
    pub width: Option<u32>,
    /// Pixels, likewise.
    #[serde(default)]
    pub height: Option<u32>,
    /// 1 to 150.
    #[serde(default)]
    pub steps: Option<u32>,
    /// 0 to 30.
    #[serde(default)]
    pub guidance: Option<f32>,
    /// A sampler by name.
    #[serde(default)]
    pub sampler: Option<String>,
    /// A schedule by name.
    #[serde(default)]
    pub schedule: Option<String>,
    /// Seed of the first image; image i has seed + i. Random when left out.
    #[serde(default)]
    pub seed: Option<u64>,
    /// Images, 1 to 8.
    #[serde(default)]
    pub count: Option<u32>,
    /// Added to those of the preset when given alone; an empty list takes the preset's away.
    #[serde(default)]
    pub loras: Option<Vec<LoraRequest>>,
    /// The image to start from: base64, a `data:` URL, or `artifact:HASH`.
    #[serde(default)]
    pub init_image: Option<String>,
    /// Where to repaint (white), in the same forms.
    #[serde(default)]
    pub mask: Option<String>,
    /// How far from the image to go, 0 to 1; 0.75 by default.
    #[serde(default)]
    pub strength: Option<f32>,
    /// Layers of the text encoder to leave out at its end, 0 or 1.
    #[serde(default)]
    pub clip_skip: Option<u32>,
    /// A preview every so many steps; 0 for none.
    #[serde(default)]
    pub preview_every: Option<u32>,
    /// File format of the pictures.
    #[serde(default)]
    pub format: Option<OutputFormat>,
    /// Quality of JPEG, 1 to 100.
    #[serde(default)]
    pub quality: Option<u8>,
    /// ControlNet units; no worker here can serve them yet.
    #[serde(default)]
    pub control: Option<Vec<serde_json::Value>>,
    /// A refiner; no worker here can serve it yet.
    #[serde(default)]
    pub refiner: Option<serde_json::Value>,
}

/// A LoRA by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoraRequest {
    /// Name in the catalogue.
    pub name: String,
    /// -4 to 4; 1 by default.
    #[serde(default)]
    pub weight: Option<f32>,
}

/// File format of the pictures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutputFormat {
    /// Lossless, with `parameters` and our JSON as text chunks.
    #[default]
    Png,
    /// Lossy.
    Jpeg,
    /// Lossless WebP.
    Webp,
}

/// Everything that was decided about a job. Journaled; the same plan gives the same pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// The model.
    pub model: ModelId,
    /// The preset that gave the defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// What it starts from.
    pub mode: Mode,
    /// As written.
    pub prompt: String,
    /// As written; empty for none.
    pub negative_prompt: String,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Steps of the whole schedule.
    pub steps: u32,
    /// Guidance scale.
    pub guidance: f32,
    /// Sampler.
    pub sampler: Sampler,
    /// Schedule.
    pub schedule: Schedule,
    /// One an image.
    pub seeds: Vec<u64>,
    /// Summed into the weights, in this order.
    pub loras: Vec<PlannedLora>,
    /// The image to start from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_image: Option<ArtifactHash>,
    /// Where to repaint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<ArtifactHash>,
    /// Share of the schedule that runs from `init_image`.
    pub strength: f32,
    /// Layers of the text encoder left out.
    pub clip_skip: u32,
    /// A preview every so many steps.
    pub preview_every: u32,
    /// File format.
    pub format: OutputFormat,
    /// Quality of JPEG.
    pub quality: u8,
    /// Channels of the model's latents.
    pub latent_channels: u32,
    /// Pixels an edge of one latent.
    pub latent_factor: u32,
}

impl Plan {
    /// The models that must be resident together, the one that makes the pictures first.
    pub fn models(&self) -> impl Iterator<Item = &ModelId> {
        std::iter::once(&self.model)
    }
}

/// A LoRA of the catalogue with its weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlannedLora {
    /// Catalogue name.
    pub id: ModelId,
    /// Strength.
    pub weight: f32,
}
