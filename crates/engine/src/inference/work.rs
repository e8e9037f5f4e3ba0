//! From a plan to what goes down the pipe: spans, noise and pixels.

use calotype_imaging::{DecodeLimits, canny, decode_gray, decode_rgb, lineart, resize_rgb, scribble};
use calotype_protocol::{
    Adapter, Blob, BlobRef, ControlUnit, Dtype, Generate, ModelId, NoiseSource, Preprocess, Refiner, Work,
    noise,
};

use super::images::refused;
use super::request::Preprocessor;
use super::{Plan, mask, prompt};
use crate::error::Error;
use crate::model::Catalogue;

/// Thresholds of the edges that a canny ControlNet was trained on, as its usual preprocessor has them.
const CANNY_LOW: u8 = 100;
const CANNY_HIGH: u8 = 200;

/// The files of a plan's images, as they were kept.
#[derive(Debug, Clone, Default)]
pub(crate) struct InputFiles {
    pub(crate) init_image: Option<Vec<u8>>,
    pub(crate) mask: Option<Vec<u8>>,
    /// Of the ControlNet units, in their order.
    pub(crate) control: Vec<Vec<u8>>,
}

/// The work of a plan. The images are brought to the plan's size.
pub(crate) fn work(
    plan: &Plan,
    catalogue: &Catalogue,
    files: &InputFiles,
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
    let decoded = |bytes: &[u8], field| decode_rgb(bytes, &limits).map_err(|error| refused(&error, field));
    let rgb = vec![height, width, 3];
    let (mut init_image, mut mask) = (None, None);
    match (&files.init_image, &files.mask) {
        (None, _) => {}
        (Some(image), None) => {
            let image = decoded(image, "init_image")?;
            init_image = Some(put(
                resize_rgb(&image, plan.width, plan.height).pixels,
                rgb.clone(),
            ));
        }
        (Some(image), Some(own)) => {
            let image = decoded(image, "init_image")?;
            let own = decode_gray(own, &limits).map_err(|error| refused(&error, "mask"))?;
            let treated = mask::treat(plan, &image, &own);
            init_image = Some(put(treated.image.pixels, rgb.clone()));
            mask = Some(put(treated.mask.pixels, vec![height, width]));
        }
    }
    let mut control = Vec::with_capacity(plan.control.len());
    for (unit, file) in plan.control.iter().zip(&files.control) {
        let image = resize_rgb(&decoded(file, "control")?, plan.width, plan.height);
        let image = match unit.preprocessor {
            Preprocessor::None | Preprocessor::Network(_) => image,
            Preprocessor::Canny => canny(&image, CANNY_LOW, CANNY_HIGH),
            Preprocessor::Lineart => lineart(&image),
            Preprocessor::Scribble => scribble(&image),
        };
        let preprocess = match (unit.preprocessor, &unit.preprocessor_model) {
            (Preprocessor::Network(into), Some(model)) => Some(Preprocess {
                model: model.clone(),
                into,
            }),
            _ => None,
        };
        control.push(ControlUnit {
            model: unit.model.clone(),
            image: put(image.pixels, rgb.clone()),
            weight: unit.weight,
            start: unit.start,
            end: unit.end,
            mode: unit.mode,
            preprocess,
        });
    }
    let mut adapters = Vec::with_capacity(plan.loras.len());
    for lora in &plan.loras {
        let record = catalogue.lora(lora.id.as_str())?;
        adapters.push(Adapter {
            id: lora.id.clone(),
            path: record.path.clone(),
            weight: lora.weight,
        });
    }
    for embedding in &plan.embeddings {
        // By the word that it stands for in the prompt.
        adapters.push(Adapter {
            id: ModelId(embedding.word.clone()),
            path: catalogue.embedding(embedding.id.as_str())?.path.clone(),
            weight: 1.0,
        });
    }
    let generate = Generate {
        model: plan.resident(),
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
        control,
        refiner: plan.refiner.as_ref().map(|refiner| Refiner {
            model: refiner.model.clone(),
            switch_at: refiner.switch_at,
        }),
        hires: plan.hires.clone(),
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
    for (index, seed) in plan.seeds.iter().enumerate() {
        noise::fill_normal(*seed, noise::INITIAL, &mut one);
        if let Some(variation) = &plan.variation {
            let seed = variation.seed.wrapping_add(index as u64);
            let other = noise::normal(seed, noise::INITIAL, one.len());
            mix(&mut one, &other, variation.strength);
        }
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

/// Spherical interpolation (Shoemake 1985) from `noise` to `other`: a straight mixture of two noises would be too weak
/// for a model that expects a variance of one.
fn mix(noise: &mut [f32], other: &[f32], share: f32) {
    let dot = |a: &[f32], b: &[f32]| {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum::<f64>()
    };
    let norms = (dot(noise, noise) * dot(other, other)).sqrt();
    let angle = (dot(noise, other) / norms.max(f64::MIN_POSITIVE))
        .clamp(-1.0, 1.0)
        .acos();
    let share = f64::from(share);
    let (own, others) = if angle.sin() < 1e-6 {
        (1.0 - share, share)
    } else {
        (
            ((1.0 - share) * angle).sin() / angle.sin(),
            (share * angle).sin() / angle.sin(),
        )
    };
    for (noise, other) in noise.iter_mut().zip(other) {
        *noise = (own * f64::from(*noise) + others * f64::from(*other)) as f32;
    }
}

#[cfg(test)]
mod tests {
    use calotype_imaging::{Format, Rgb, encode};

    use super::*;
    use crate::inference::{Abilities, GenerateRequest, validate};
    use crate::inference::{MaskArea, MaskTreatment, Variation};

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

    fn files(init: Option<&[u8]>, mask: Option<&[u8]>) -> InputFiles {
        InputFiles {
            init_image: init.map(<[u8]>::to_vec),
            mask: mask.map(<[u8]>::to_vec),
            control: Vec::new(),
        }
    }

    fn generated(plan: &Plan, init: Option<&[u8]>, mask: Option<&[u8]>) -> (Generate, Vec<Blob>) {
        match work(plan, &catalogue(), &files(init, mask)).unwrap() {
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
        let error = work(&planned(1, 1), &catalogue(), &files(Some(&file[..60]), None)).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("init_image"));
    }

    #[test]
    fn a_variation_is_a_noise_of_the_same_strength_between_two_seeds() {
        let of = |variation| {
            let plan = Plan {
                variation,
                ..planned(7, 1)
            };
            let (generate, blobs) = generated(&plan, None, None);
            let bytes = generate.initial_noise.of(&blobs).unwrap().to_vec();
            let numbers = bytes
                .chunks(4)
                .map(|four| f32::from_le_bytes(four.try_into().unwrap()));
            numbers.collect::<Vec<f32>>()
        };
        let variation = |strength| Some(Variation { seed: 9, strength });
        let (own, other) = (of(None), noise::normal(9, noise::INITIAL, 4 * 32 * 32));
        let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart(&of(variation(1.0)), &other) < 1e-5);
        let half = of(variation(0.5));
        assert!(apart(&half, &own) > 0.1 && apart(&half, &other) > 0.1);
        let power = |noise: &[f32]| noise.iter().map(|x| x * x).sum::<f32>() / noise.len() as f32;
        assert!((power(&half) - power(&own)).abs() < 0.05);
    }

    #[test]
    fn a_canny_unit_gets_edges_of_the_plans_size() {
        let mut plan = planned(1, 1);
        plan.control = vec![crate::inference::PlannedControl {
            model: "c".into(),
            image: None,
            preprocessor: Preprocessor::Canny,
            preprocessor_model: None,
            weight: 1.0,
            start: 0.0,
            end: 0.5,
            mode: calotype_protocol::ControlMode::Balanced,
        }];
        let mut pixels = vec![0; 64 * 64 * 3];
        pixels[..64 * 32 * 3].fill(255);
        let half = Rgb::new(64, 64, pixels).unwrap();
        let mut files = files(None, None);
        files.control = vec![encode(&half, Format::Png, 90, None).unwrap()];
        let (Work::Generate(generate), blobs) = work(&plan, &catalogue(), &files).unwrap() else {
            panic!("generate")
        };
        let unit = &generate.control[0];
        assert_eq!((unit.image.shape.as_slice(), unit.end), (&[256, 256, 3][..], 0.5));
        let edges = unit.image.of(&blobs).unwrap();
        let white = edges.iter().filter(|value| **value == 255).count();
        assert!(
            white > 0 && white < edges.len() / 10,
            "a line, and nothing else: {white}"
        );
    }

    #[test]
    fn only_the_part_around_the_mask_is_sampled_and_comes_back_to_its_place() {
        let mut plan = planned(1, 1);
        plan.mask_treatment = MaskTreatment {
            area: MaskArea::Masked,
            padding_pixels: 8,
            ..MaskTreatment::default()
        };
        let image = Rgb::new(640, 480, vec![10; 640 * 480 * 3]).unwrap();
        let mut hole = vec![0; 640 * 480];
        for row in 100..140 {
            hole[row * 640 + 200..row * 640 + 260].fill(255);
        }
        let hole = calotype_imaging::Gray {
            width: 640,
            height: 480,
            pixels: hole,
        };
        let treated = mask::treat(&plan, &image, &hole);
        assert_eq!((treated.image.width, treated.mask.height), (256, 256));
        let white = treated.mask.pixels.iter().filter(|value| **value > 127).count();
        assert!(white > 256 * 256 / 4, "the hole fills much of what is sampled");
        let picture = Rgb::new(256, 256, vec![200; 256 * 256 * 3]).unwrap();
        let whole = mask::paste_back(&plan, &image, &hole, &picture).unwrap();
        let at = |x: usize, y: usize| whole.pixels[(y * 640 + x) * 3];
        assert_eq!((whole.width, whole.height), (640, 480));
        assert_eq!((at(230, 120), at(0, 0), at(400, 300)), (200, 10, 10));
    }
}
