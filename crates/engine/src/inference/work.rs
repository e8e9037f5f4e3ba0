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
        prompt: prompt::spans(&plan.prompt),
        negative_prompt: prompt::spans(&plan.negative_prompt),
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
