//! What a client may ask for: `GenerateRequest` and its parts.

use calotype_protocol::{ControlImage, ControlMode, Mode, Upscaler};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A request for pictures. Everything but the prompt has a default, from the model's preset.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GenerateRequest {
    /// What to draw; `(words:1.2)` and `(words)` weigh more, `[words]` less, `<lora:name:0.8>` applies a LoRA, `BREAK`
    /// ends a chunk of what the text encoder reads at once. At most 32 000 characters.
    pub prompt: String,
    /// What not to draw; has effect at guidance above 1.
    #[serde(default)]
    pub negative_prompt: Option<String>,
    /// A model of the catalogue; by default the only or the first one.
    #[serde(default)]
    pub model: Option<String>,
    /// A VAE of the catalogue in place of the model's own.
    #[serde(default)]
    pub vae: Option<String>,
    /// Text encoders of the catalogue in place of the model's own; each replaces the one of its kind.
    #[serde(default)]
    pub text_encoders: Option<Vec<String>>,
    /// A preset of the model; its values are defaults for the fields below.
    #[serde(default)]
    pub preset: Option<String>,
    /// By default it follows from the images given.
    #[serde(default)]
    pub mode: Option<Mode>,
    /// Pixels; a multiple of what the model asks for (8 at least).
    #[serde(default)]
    pub width: Option<u32>,
    /// Pixels; a multiple of what the model asks for (8 at least).
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
    /// Number of images, 1 to 8.
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
    /// How much of `init_image` is replaced, 0 to 1; 0.75 by default.
    #[serde(default)]
    pub strength: Option<f32>,
    /// Layers of the text encoder to leave out at its end, 0 to 11.
    #[serde(default)]
    pub clip_skip: Option<u32>,
    /// Steps between two previews; 0 for none.
    #[serde(default)]
    pub preview_every: Option<u32>,
    /// File format of the pictures.
    #[serde(default)]
    pub format: Option<OutputFormat>,
    /// JPEG quality, 1 to 100.
    #[serde(default)]
    pub quality: Option<u8>,
    /// ControlNet units, up to 8.
    #[serde(default)]
    pub control: Option<Vec<ControlRequest>>,
    /// A model that takes over for the last steps.
    #[serde(default)]
    pub refiner: Option<RefinerRequest>,
    /// A second pass at a larger size.
    #[serde(default)]
    pub hires: Option<HiresRequest>,
    /// Seed of the noise that is mixed in; image i has variation_seed + i. Random when left out.
    #[serde(default)]
    pub variation_seed: Option<u64>,
    /// Share of that noise, 0 (none) to 1 (all).
    #[serde(default)]
    pub variation_strength: Option<f32>,
    /// Pixels by which the mask's border is softened.
    #[serde(default)]
    pub mask_blur: Option<f32>,
    /// Pixels by which the mask grows; below 0 it shrinks.
    #[serde(default)]
    pub mask_dilate: Option<i32>,
    /// Repaint where the mask is black.
    #[serde(default)]
    pub mask_invert: Option<bool>,
    /// What is sampled: the whole image, or the part around the mask at the full size, which is then pasted back.
    #[serde(default)]
    pub mask_area: Option<MaskArea>,
    /// Pixels around the mask that come along in the area `masked`; 32 by default.
    #[serde(default)]
    pub mask_padding: Option<u32>,
}

impl GenerateRequest {
    /// Canonical JSON without null fields: the digest of a request survives new optional fields.
    pub(crate) fn canonical_json(&self) -> serde_json::Result<Vec<u8>> {
        let mut whole = serde_json::to_value(self)?;
        drop_nulls(&mut whole);
        serde_json::to_vec(&whole)
    }

    /// About how much memory it takes while it is being accepted: its texts and images.
    pub(crate) fn size_bytes(&self) -> u64 {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let control = self.control.iter().flatten().map(|unit| unit.image.len());
        let images = text(&self.init_image) + text(&self.mask) + control.sum::<usize>();
        (images + self.prompt.len() + text(&self.negative_prompt)) as u64
    }
}

fn drop_nulls(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_) => {}
    }
}

/// One ControlNet with its image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ControlRequest {
    /// A ControlNet of the catalogue.
    pub model: String,
    /// Its image, in the forms of `init_image`; resized to the picture's size.
    pub image: String,
    /// What is done to the image first: `none` (by default), `canny`, `lineart`, `scribble`, or, by a network of
    /// `models/preprocessors`, `depth`, `normal`, `softedge` and `pose`.
    #[serde(default)]
    pub preprocessor: Option<String>,
    /// The network for it; needed only where several could do it.
    #[serde(default)]
    pub preprocessor_model: Option<String>,
    /// How it and the prompt share the picture: `balanced` (by default), or more weight on the `prompt` or on the
    /// `control`.
    #[serde(default)]
    pub mode: Option<ControlMode>,
    /// 0 to 4; 1 by default.
    #[serde(default)]
    pub weight: Option<f32>,
    /// Share of the steps at which it begins; 0 by default.
    #[serde(default)]
    pub start: Option<f32>,
    /// Share of the steps at which it ends; 1 by default.
    #[serde(default)]
    pub end: Option<f32>,
}

/// What is done to a ControlNet's image first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preprocessor {
    /// Nothing: the image is what the ControlNet was trained on.
    #[default]
    None,
    /// White edges on black.
    Canny,
    /// White lines on black, as strong as they are in the picture.
    Lineart,
    /// White lines on black, as of a thick pen.
    Scribble,
    /// What a network makes of it.
    Network(ControlImage),
}

/// A model that takes over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RefinerRequest {
    /// A model of the catalogue with the same latents.
    pub model: String,
    /// Share of the steps after which it takes over; 0.8 by default.
    #[serde(default)]
    pub switch_at: Option<f32>,
}

/// A second pass at a larger size.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HiresRequest {
    /// Factor on both edges, 1 to 8; 2 by default.
    #[serde(default)]
    pub scale: Option<f32>,
    /// Final width in pixels, in place of a scale.
    #[serde(default)]
    pub width: Option<u32>,
    /// Final height in pixels, in place of a scale.
    #[serde(default)]
    pub height: Option<u32>,
    /// Steps of its whole schedule; those of the first pass by default.
    #[serde(default)]
    pub steps: Option<u32>,
    /// How much of the schedule it runs, 0 to 1; 0.5 by default.
    #[serde(default)]
    pub strength: Option<f32>,
    /// What makes the picture larger; `latent` by default.
    #[serde(default)]
    pub upscaler: Option<Upscaler>,
}

/// What an inpainting samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MaskArea {
    /// The whole image.
    #[default]
    Whole,
    /// The part around the mask, at the full size; pasted back into the image, whose size stays.
    Masked,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_is_left_out_is_not_in_the_canonical_json() {
        let request: GenerateRequest =
            serde_json::from_str(r#"{"prompt":"a","control":[{"model":"m","image":"x"}],"seed":null}"#)
                .unwrap();
        assert_eq!(
            String::from_utf8(request.canonical_json().unwrap()).unwrap(),
            r#"{"control":[{"image":"x","model":"m"}],"prompt":"a"}"#
        );
    }
}
