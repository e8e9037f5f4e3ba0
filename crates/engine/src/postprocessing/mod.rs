//! From a worker's pixels to a file with its metadata.

use calotype_imaging::{Format, LoraUse, METADATA_FORMAT, Metadata, Rgb, encode};
use calotype_protocol::Mode;

use crate::error::{Code, Error};
use crate::inference::{OutputFormat, Plan};

/// Encodes image `index` of a plan; `pixels` is `[height, width, 3]`.
pub(crate) fn finish(
    plan: &Plan,
    model: &str,
    engine: &str,
    index: usize,
    pixels: &[u8],
) -> Result<Vec<u8>, Error> {
    let seed = plan.seeds.get(index).copied().unwrap_or_default();
    let metadata = Metadata {
        format: METADATA_FORMAT,
        software: format!("calotype {}", env!("CARGO_PKG_VERSION")),
        prompt: plan.prompt.clone(),
        negative_prompt: plan.negative_prompt.clone(),
        steps: plan.steps,
        sampler: plan.sampler.name().into(),
        schedule: plan.schedule.name().into(),
        guidance: plan.guidance,
        seed,
        width: plan.width,
        height: plan.height,
        model: model.to_owned(),
        loras: plan
            .loras
            .iter()
            .map(|lora| LoraUse {
                name: lora.id.to_string(),
                weight: lora.weight,
            })
            .collect(),
        mode: plan.mode.name().into(),
        strength: (plan.mode != Mode::TextToImage).then_some(plan.strength),
        clip_skip: (plan.clip_skip > 0).then_some(plan.clip_skip),
        preset: plan.preset.clone(),
        engine: Some(engine.to_owned()),
    };
    let format = match plan.format {
        OutputFormat::Png => Format::Png,
        OutputFormat::Jpeg => Format::Jpeg,
        OutputFormat::Webp => Format::Webp,
    };
    let failed = |error: calotype_imaging::ImageError| {
        Error::new(Code::Internal, format!("failed to encode the picture: {error}"))
    };
    let picture = Rgb::new(plan.width, plan.height, pixels.to_vec()).map_err(failed)?;
    encode(&picture, format, plan.quality, Some(&metadata)).map_err(failed)
}
