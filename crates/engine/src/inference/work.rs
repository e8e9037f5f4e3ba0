//! From a plan to what goes down the pipe: spans, noise and pixels.

use calotype_imaging::{DecodeLimits, decode_gray, decode_rgb, resize_gray, resize_rgb};
use calotype_protocol::{Adapter, Blob, BlobRef, Dtype, Generate, NoiseSource, Work, noise};

use super::images::refused;
use super::{Plan, prompt};
use crate::error::Error;
use crate::model::Catalogue;

/// The work of a plan. The images are resized to the plan's size.
pub(crate) fn work(
    plan: &Plan,
    catalogue: &Catalogue,
    init_image: Option<&[u8]>,
    mask: Option<&[u8]>,
) -> Result<(Work, Vec<Blob>), Error> {
    let mut blobs = Vec::new();
    let initial_noise = initial_noise(plan, &mut blobs);
    let (width, height) = (plan.width as usize, plan.height as usize);
    let mut put = |bytes: Vec<u8>, shape: Vec<usize>| {
        blobs.push(bytes);
        BlobRef {
            blob: blobs.len() - 1,
            dtype: Dtype::U8,
            shape,
        }
    };
    let limits = DecodeLimits::default();
    let init_image = match init_image {
        None => None,
        Some(bytes) => {
            let image = decode_rgb(bytes, &limits).map_err(|error| refused(&error, "init_image"))?;
            Some(put(
                resize_rgb(&image, plan.width, plan.height).pixels,
                vec![height, width, 3],
            ))
        }
    };
    let mask = match mask {
        None => None,
        Some(bytes) => {
            let image = decode_gray(bytes, &limits).map_err(|error| refused(&error, "mask"))?;
            Some(put(
                resize_gray(&image, plan.width, plan.height).pixels,
                vec![height, width],
            ))
        }
    };
    let mut adapters = Vec::with_capacity(plan.loras.len());
    for lora in &plan.loras {
        let record = catalogue.lora(lora.id.as_str())?;
        adapters.push(Adapter {
            id: lora.id.clone(),
            path: record.path.clone(),
            weight: lora.weight,
        });
    }
    let generate = Generate {
        model: plan.model.clone(),
        mode: plan.mode,
        prompt: prompt::parse(&plan.prompt).spans,
        negative_prompt: prompt::parse(&plan.negative_prompt).spans,
        width: plan.width,
        height: plan.height,
        steps: plan.steps,
        guidance: plan.guidance,
        sampler: plan.sampler,
        schedule: plan.schedule,
        seeds: plan.seeds.clone(),
        noise: NoiseSource::Philox,
        initial_noise,
        init_image,
        mask,
        strength: plan.strength,
        adapters,
        control: Vec::new(),
        refiner: None,
        clip_skip: plan.clip_skip,
        preview_every: plan.preview_every,
    };
    Ok((Work::Generate(generate), blobs))
}

/// The noise that every image starts from, made here so that it is the same on every device.
fn initial_noise(plan: &Plan, blobs: &mut Vec<Blob>) -> BlobRef {
    let factor = plan.latent_factor.max(1);
    let shape =
        [plan.latent_channels, plan.height / factor, plan.width / factor].map(|extent| extent as usize);
    let mut one = vec![0f32; shape.iter().product()];
    let mut bytes = Vec::with_capacity(plan.seeds.len() * one.len() * 4);
    for seed in &plan.seeds {
        noise::fill_normal(*seed, noise::INITIAL, &mut one);
        bytes.extend(one.iter().flat_map(|value| value.to_le_bytes()));
    }
    blobs.push(bytes);
    let [channels, height, width] = shape;
    BlobRef {
        blob: blobs.len() - 1,
        dtype: Dtype::F32,
        shape: vec![plan.seeds.len(), channels, height, width],
    }
}

#[cfg(test)]
mod tests {
    use calotype_imaging::{Format, Rgb, encode};

    use super::*;
    use crate::inference::{Abilities, GenerateRequest, validate};

    fn catalogue() -> Catalogue {
        Catalogue::scan(&[concat!(env!("CARGO_MANIFEST_DIR"), "/../../models").into()])
    }

    fn planned(seed: u64, count: u32) -> Plan {
        let request = GenerateRequest {
            prompt: "a (red:1.5) apple".into(),
            seed: Some(seed),
            count: Some(count),
            ..GenerateRequest::default()
        };
        validate::plan(&request, &catalogue(), &Abilities::native(), 0)
            .unwrap()
            .plan
    }

    fn generated(plan: &Plan, init: Option<&[u8]>, mask: Option<&[u8]>) -> (Generate, Vec<Blob>) {
        match work(plan, &catalogue(), init, mask).unwrap() {
            (Work::Generate(generate), blobs) => (generate, blobs),
            (other, _) => panic!("{}", other.kind()),
        }
    }

    #[test]
    fn image_i_of_n_starts_from_the_noise_of_the_single_image_with_seed_plus_i() {
        let (many, blobs) = generated(&planned(40, 3), None, None);
        assert_eq!(many.initial_noise.shape, [3, 4, 32, 32]);
        let together = many.initial_noise.of(&blobs).unwrap();
        for (index, alone) in together.chunks(4 * 32 * 32 * 4).enumerate() {
            let (one, blobs) = generated(&planned(40 + index as u64, 1), None, None);
            assert_eq!(one.initial_noise.of(&blobs).unwrap(), alone);
        }
    }

    #[test]
    fn every_blob_fits_its_shape_whatever_size_the_images_had() {
        let file = encode(&Rgb::new(5, 3, vec![200; 45]).unwrap(), Format::Png, 90, None).unwrap();
        let (generate, blobs) = generated(&planned(1, 1), Some(&file), Some(&file));
        let (init, mask) = (generate.init_image.unwrap(), generate.mask.unwrap());
        assert_eq!(
            (init.shape.as_slice(), mask.shape.as_slice()),
            (&[256, 256, 3][..], &[256, 256][..])
        );
        for blob in [&generate.initial_noise, &init, &mask] {
            blob.of(&blobs).unwrap();
        }
        assert_eq!(blobs.len(), 3);
    }

    #[test]
    fn prompts_go_down_as_spans_and_loras_with_their_files() {
        let (generate, _) = generated(&planned(1, 1), None, None);
        assert_eq!(generate.prompt.len(), 3);
        assert!(generate.negative_prompt.is_empty());
        assert!(
            generate
                .adapters
                .iter()
                .all(|adapter| std::path::Path::new(&adapter.path).is_file())
        );
        assert_eq!(generate.adapters.len(), 1);
    }

    #[test]
    fn an_image_that_is_corrupt_behind_its_header_is_refused_by_its_field() {
        let file = encode(
            &Rgb::new(64, 64, vec![7; 64 * 64 * 3]).unwrap(),
            Format::Png,
            90,
            None,
        )
        .unwrap();
        let error = work(&planned(1, 1), &catalogue(), Some(&file[..60]), None).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("init_image"));
    }
}
