//! Encodes a picture with the words that tell how it was made. Pure.

use calotype_imaging::{Format, LoraUse, METADATA_FORMAT, Metadata, Rgb, encode};
use calotype_protocol::Mode;

use crate::error::{Code, Error};
use crate::inference::{OutputFormat, Plan};

/// Encodes image `index` of a plan.
pub(crate) fn finish(
    plan: &Plan,
    model: &str,
    engine: &str,
    index: usize,
    picture: &Rgb,
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
        width: picture.width,
        height: picture.height,
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
    encode(picture, format, plan.quality, Some(&metadata)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use calotype_imaging::{decode_rgb, read_metadata, read_parameters};

    use super::*;
    use crate::inference::{Abilities, GenerateRequest, plan};
    use crate::model::Catalogue;

    fn planned(format: OutputFormat) -> Plan {
        let catalogue = Catalogue::scan(&[concat!(env!("CARGO_MANIFEST_DIR"), "/../../models").into()]);
        let request = GenerateRequest {
            prompt: "a red apple".into(),
            seed: Some(7),
            count: Some(2),
            format: Some(format),
            ..GenerateRequest::default()
        };
        plan(&request, &catalogue, &Abilities::native(), 0).unwrap().plan
    }

    #[test]
    fn the_seed_in_the_file_is_that_of_its_own_image() {
        let picture = Rgb::new(256, 256, vec![80; 256 * 256 * 3]).unwrap();
        for format in [OutputFormat::Png, OutputFormat::Jpeg, OutputFormat::Webp] {
            let file = finish(&planned(format), "Calotype Tiny", "rten", 1, &picture).unwrap();
            let metadata = read_metadata(&file).unwrap().unwrap();
            assert_eq!(
                (metadata.seed, metadata.prompt.as_str(), metadata.steps),
                (8, "a red apple", 4)
            );
            assert_eq!((metadata.loras.len(), metadata.strength), (1, None));
            assert!(read_parameters(&file).unwrap().contains("Seed: 8"));
        }
    }

    #[test]
    fn a_png_keeps_every_pixel() {
        let pixels: Vec<u8> = (0..256 * 256 * 3).map(|index| (index * 7 % 251) as u8).collect();
        let picture = Rgb::new(256, 256, pixels.clone()).unwrap();
        let file = finish(&planned(OutputFormat::Png), "m", "rten", 0, &picture).unwrap();
        assert_eq!(
            decode_rgb(&file, &calotype_imaging::DecodeLimits::default())
                .unwrap()
                .pixels,
            pixels
        );
    }
}
