//! What was decided about a generation: `Plan` and its parts. The journal keeps it, and a worker's work is made from it.

use calotype_protocol::{ControlMode, Hires, Mode, ModelId, Sampler, Schedule};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::request::{MaskArea, OutputFormat, Preprocessor};
use crate::artifact::ArtifactHash;
use crate::model::resident_id;

/// Everything that was decided about a job. Journaled; the same plan gives the same pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// The model.
    pub model: ModelId,
    /// The VAE in place of the model's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae: Option<ModelId>,
    /// The text encoders in place of the model's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub text_encoders: Vec<ModelId>,
    /// The preset that gave the defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// What the generation starts from.
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
    /// One seed for each image.
    pub seeds: Vec<u64>,
    /// LoRAs, merged into the weights in this order.
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
    /// Steps between two previews; 0 for none.
    pub preview_every: u32,
    /// File format.
    pub format: OutputFormat,
    /// JPEG quality, 1 to 100.
    pub quality: u8,
    /// ControlNet units.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub control: Vec<PlannedControl>,
    /// The model that takes over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refiner: Option<PlannedRefiner>,
    /// The second pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hires: Option<Hires>,
    /// Noise that is mixed in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variation: Option<Variation>,
    /// How the mask is treated.
    #[serde(default, skip_serializing_if = "MaskTreatment::is_plain")]
    pub mask_treatment: MaskTreatment,
    /// Embeddings whose word is in a prompt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub embeddings: Vec<PlannedEmbedding>,
    /// Channels of the model's latents.
    pub latent_channels: u32,
    /// Edge of one latent in pixels.
    pub latent_factor: u32,
}

impl Plan {
    /// Id under which its model is resident; a model with another VAE or text encoder is another resident model.
    pub fn resident(&self) -> ModelId {
        resident_id(&self.model, self.vae.as_ref(), &self.text_encoders)
    }

    /// The models that must be resident together; the one that makes the pictures comes first.
    pub fn models(&self) -> Vec<ModelId> {
        let mut models = vec![self.resident()];
        let refiner = self.refiner.as_ref().map(|refiner| &refiner.model);
        let control = self.control.iter().flat_map(|unit| {
            [Some(&unit.model), unit.preprocessor_model.as_ref()]
                .into_iter()
                .flatten()
        });
        for model in refiner.into_iter().chain(control) {
            // Two units may share a ControlNet.
            if !models.contains(model) {
                models.push(model.clone());
            }
        }
        models
    }

    /// Every stored image that the work reads.
    pub fn inputs(&self) -> impl Iterator<Item = &ArtifactHash> {
        let control = self.control.iter().filter_map(|unit| unit.image.as_ref());
        self.init_image.iter().chain(&self.mask).chain(control)
    }

    /// Size of the pictures that the worker makes, in pixels.
    pub fn final_size(&self) -> (u32, u32) {
        match &self.hires {
            Some(hires) => (hires.width, hires.height),
            None => (self.width, self.height),
        }
    }
}

/// A ControlNet with its image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlannedControl {
    /// Catalogue name.
    pub model: ModelId,
    /// Its image, once that is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ArtifactHash>,
    /// What is done to the image first.
    pub preprocessor: Preprocessor,
    /// The network that does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preprocessor_model: Option<ModelId>,
    /// Factor on its residuals.
    pub weight: f32,
    /// Share of the steps at which it begins.
    pub start: f32,
    /// Share of the steps at which it ends.
    pub end: f32,
    /// How it and the prompt share the picture.
    #[serde(default, skip_serializing_if = "ControlMode::is_balanced")]
    pub mode: ControlMode,
}

/// A model that takes over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlannedRefiner {
    /// Catalogue name.
    pub model: ModelId,
    /// Share of the steps after which it takes over.
    pub switch_at: f32,
}

/// Noise of another seed, mixed into the initial noise along the sphere.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Variation {
    /// Seed of the noise for the first image; image i has seed + i.
    pub seed: u64,
    /// 0 to 1.
    pub strength: f32,
}

/// How a mask is treated, in the order of the fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MaskTreatment {
    /// Black and white change places.
    pub invert: bool,
    /// Pixels by which it grows; below 0 it shrinks.
    pub dilate_pixels: i32,
    /// Pixels by which its border is softened.
    pub blur_pixels: f32,
    /// What is sampled.
    pub area: MaskArea,
    /// Pixels around the mask that come along in the area `masked`.
    pub padding_pixels: u32,
}

impl MaskTreatment {
    fn is_plain(&self) -> bool {
        let Self {
            invert,
            dilate_pixels,
            blur_pixels,
            area,
            padding_pixels: _,
        } = self;
        !invert && *dilate_pixels == 0 && *blur_pixels == 0.0 && *area == MaskArea::Whole
    }
}

/// An embedding with the word that it stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlannedEmbedding {
    /// Catalogue name.
    pub id: ModelId,
    /// The word.
    pub word: String,
}

/// A LoRA of the catalogue with its weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlannedLora {
    /// Catalogue name.
    pub id: ModelId,
    /// Strength.
    pub weight: f32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_of_an_earlier_version_is_still_a_plan() {
        let old = r#"{"model":"m","mode":"text_to_image","prompt":"a","negative_prompt":"","width":256,"height":256,
            "steps":4,"guidance":1.0,"sampler":"lcm","schedule":"default","seeds":[1],"loras":[],"strength":1.0,
            "clip_skip":0,"preview_every":0,"format":"png","quality":90,"latent_channels":4,"latent_factor":8}"#;
        let plan: Plan = serde_json::from_str(old).unwrap();
        assert!(plan.control.is_empty() && plan.mask_treatment.is_plain());
        // And what is not asked for is not written.
        let text = serde_json::to_string(&plan).unwrap();
        assert!(
            !text.contains("mask_treatment") && !text.contains("hires"),
            "{text}"
        );
    }
}
