//! What a plan takes beside the weights, before it was ever measured. Pure.
//!
//! The memory of a plan follows from its [`WorkShape`] alone, so steps of one shape share a demand.

use std::fmt::Write as _;

use calotype_protocol::{ModelId, VaePlan};

use super::Plan;
use crate::memory::Peaks;
use crate::memory::memory_plan::{Precision, Slicing};
use calotype_protocol::Mode;

/// Bytes a pixel of the picture that is being decoded: the VAE's widest layers, several at a time.
const DECODE_BYTES_A_PIXEL: u64 = 2048;
/// Bytes a pixel of pictures that are decoded and wait for the others, or of tiles that are.
const DECODED_BYTES_A_PIXEL: u64 = 32;
/// Pixels of a tile, which the worker makes 512 wide.
const TILE_PIXELS: u64 = 512 * 512;
/// Pixels of a token of the attention in a VAE's middle, which has one head.
const VAE_TOKEN_PIXELS: u64 = 8 * 8;
/// Bytes a pixel and picture of a UNet call, both halves of the guidance.
const DENOISE_BYTES_A_PIXEL: u64 = 512;

/// What an accelerator's worker keeps for its captured steps, whatever their size.
const GRAPHS_BYTES: u64 = 128 << 20;

/// Workers of one kind share memory estimates, for instance `python@cuda`.
pub fn worker_kind(runtime: &str, device_kind: &str) -> String {
    format!("{runtime}@{device_kind}")
}

/// What decides the memory that a plan takes beside the weights.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WorkShape {
    /// Family of the resident model.
    pub family: String,
    /// The models that must be resident together.
    pub models: Vec<ModelId>,
    /// Width of the pictures that the worker makes, in pixels.
    pub width: u32,
    /// Height, in pixels.
    pub height: u32,
    /// How many pictures.
    pub images: u32,
    /// Whether both halves of the guidance are computed.
    pub is_guided: bool,
    /// What it starts from.
    pub mode: Mode,
}

impl WorkShape {
    /// Of a plan. `family` is that of the model which is resident.
    pub fn of(plan: &Plan, family: &str) -> Self {
        let (width, height) = plan.final_size();
        Self {
            family: family.to_owned(),
            models: plan.models(),
            width,
            height,
            images: plan.seeds.len() as u32,
            is_guided: plan.guidance > 1.0,
            mode: plan.mode,
        }
    }

    /// Of a step that will not be run.
    pub(crate) fn nothing() -> Self {
        Self {
            family: String::new(),
            models: Vec::new(),
            width: 0,
            height: 0,
            images: 0,
            is_guided: false,
            mode: Mode::TextToImage,
        }
    }

    fn pixels(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }
}

/// Megapixels times sampler steps: what a plan's device time is proportional to, within a model.
pub fn work_units(plan: &Plan) -> f64 {
    let pixels = |width: u32, height: u32| f64::from(width) * f64::from(height) / 1e6;
    let (share, images) = (
        f64::from(plan.strength.clamp(0.0, 1.0)),
        plan.seeds.len().max(1) as f64,
    );
    // Decoding costs about as much as two steps.
    let first = pixels(plan.width, plan.height) * (f64::from(plan.steps) * share.max(0.01) + 2.0);
    let second = plan.hires.as_ref().map_or(0.0, |hires| {
        pixels(hires.width, hires.height) * f64::from(hires.steps) * f64::from(hires.strength)
    });
    (first + second) * images
}

/// What a shape takes in workers of a kind: measured, or else the guess. The flag says which.
pub fn need_bytes(
    shape: &WorkShape,
    device_kind: &str,
    worker_kind: &str,
    slicing: Slicing,
    peaks: &Peaks,
) -> (u64, bool) {
    let guess_bytes = working_set_bytes(shape, device_kind, slicing);
    peaks.need_bytes(&peak_key(shape, worker_kind, slicing), guess_bytes)
}

/// A guess on the large side; measured peaks replace it.
fn working_set_bytes(shape: &WorkShape, device_kind: &str, slicing: Slicing) -> u64 {
    let (pixels, images, family) = (shape.pixels(), u64::from(shape.images), shape.family.as_str());
    let decoded_bytes = pixels.saturating_mul(DECODED_BYTES_A_PIXEL.saturating_mul(images));
    let (at_once, steps_bytes) = match Precision::of(device_kind) {
        // A processor decodes one picture after the other.
        Precision::Single => (
            1,
            pixels.saturating_mul(DENOISE_BYTES_A_PIXEL.saturating_mul(images)),
        ),
        // An accelerator decodes several together. An H100 took 1639 to 1937 bytes a pixel and picture for it, and
        // around 105 MB for the steps.
        Precision::Half => (images, GRAPHS_BYTES),
    };
    let (at_once, pixels_at_once, decoded_bytes) = match slicing.vae {
        VaePlan::Whole => (at_once, pixels, 0),
        VaePlan::Slicing => (1, pixels, decoded_bytes),
        VaePlan::Tiling => (1, pixels.min(TILE_PIXELS), decoded_bytes),
    };
    let (vae_scores_bytes, scores_bytes) = if holds_scores(device_kind) {
        (
            square_bytes(pixels_at_once / VAE_TOKEN_PIXELS, 1),
            scores_bytes(family, pixels, images, slicing.attention),
        )
    } else {
        (0, 0)
    };
    let decode_bytes = pixels_at_once
        .saturating_mul(DECODE_BYTES_A_PIXEL)
        .saturating_add(vae_scores_bytes)
        .saturating_mul(at_once)
        .saturating_add(decoded_bytes);
    // They are not there at the same time.
    steps_bytes.saturating_add(decode_bytes.max(scores_bytes))
}

/// Whether torch has no fused attention for a kind of device: the scores of all pairs of tokens are held.
fn holds_scores(device_kind: &str) -> bool {
    matches!(device_kind, "mps" | "directml")
}

/// The scores of the widest attention, once before and once after the softmax.
fn scores_bytes(family: &str, pixels: u64, images: u64, in_slices: bool) -> u64 {
    // Pixels of a token and heads, as the families are built.
    let (token_pixels, heads, slices) = match family {
        "sd" => (8 * 8, 8, true),
        "sdxl" => (16 * 16, 10, true),
        // FLUX and SD3; the text's tokens are few beside the picture's.
        _ => (16 * 16, 24, false),
    };
    let tokens = pixels / token_pixels;
    // Both halves of the guidance; in slices half the heads of one of them.
    let rows = if in_slices && slices {
        heads / 2
    } else {
        heads * 2 * images
    };
    square_bytes(tokens, rows)
}

/// Numbers of 2 bytes for all pairs of tokens, twice.
fn square_bytes(tokens: u64, rows: u64) -> u64 {
    tokens
        .saturating_mul(tokens)
        .saturating_mul(rows.saturating_mul(2 * 2))
}

/// Names a shape in workers of one kind, for instance `python@cuda`, with what is done in pieces.
pub fn peak_key(shape: &WorkShape, worker_kind: &str, slicing: Slicing) -> String {
    let guided = if shape.is_guided { "guided" } else { "plain" };
    let models: Vec<&str> = shape.models.iter().map(ModelId::as_str).collect();
    let mut key = format!(
        "{worker_kind}|{}|{}x{}|{}|{}|{guided}",
        models.join("&"),
        shape.width,
        shape.height,
        shape.images,
        shape.mode.name()
    );
    for label in slicing.labels() {
        let _ = write!(key, "|{label}");
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::{Abilities, GenerateRequest, validate};
    use crate::model::Catalogue;

    fn planned(edge: u32, count: u32) -> Plan {
        let catalogue = Catalogue::scan(&[concat!(env!("CARGO_MANIFEST_DIR"), "/../../models").into()]);
        let request = GenerateRequest {
            width: Some(edge),
            height: Some(edge),
            count: Some(count),
            ..GenerateRequest::default()
        };
        validate::plan(&request, &catalogue, &Abilities::native(), 0)
            .unwrap()
            .plan
    }

    /// Of any size: the embedded model takes none above 1024.
    fn resized(edge: u32, count: u32) -> Plan {
        Plan {
            width: edge,
            height: edge,
            ..planned(256, count)
        }
    }

    #[test]
    fn more_pixels_and_more_images_take_more() {
        let bytes = |edge, count| {
            working_set_bytes(
                &WorkShape::of(&planned(edge, count), "sd"),
                "cpu",
                Slicing::default(),
            )
        };
        assert!(bytes(512, 1) > bytes(256, 1) && bytes(256, 8) > bytes(256, 1));
    }

    /// Stable Diffusion 1.5 at 512² and XL at 1024², one picture each; see `docs/benchmarks.md`.
    #[test]
    fn the_guess_for_an_accelerator_is_above_what_an_h100_took_and_below_the_double_of_it() {
        for (edge, took_bytes) in [(512, 513_990_144), (1024, 1_743_600_128)] {
            let guess_bytes = working_set_bytes(
                &WorkShape::of(&planned(edge, 1), "sd"),
                "cuda",
                Slicing::default(),
            );
            assert!(
                (took_bytes..2 * took_bytes).contains(&guess_bytes),
                "{guess_bytes}"
            );
        }
    }

    #[test]
    fn pieces_never_take_more_and_tiles_take_the_same_whatever_the_size_of_a_picture() {
        for (edge, count) in [(256, 1), (512, 1), (1024, 4), (2048, 1)] {
            let plan = resized(edge, count);
            for (family, kind) in [("sd", "cpu"), ("sd", "cuda"), ("sdxl", "mps"), ("flux", "mps")] {
                let of = |vae, attention| {
                    working_set_bytes(&WorkShape::of(&plan, family), kind, Slicing { vae, attention })
                };
                for attention in [false, true] {
                    let spare_bytes = u64::from(edge * edge * count) * DECODED_BYTES_A_PIXEL;
                    assert!(of(VaePlan::Slicing, attention) <= of(VaePlan::Whole, attention) + spare_bytes);
                    assert!(of(VaePlan::Tiling, attention) <= of(VaePlan::Slicing, attention));
                }
                assert!(of(VaePlan::Tiling, true) <= of(VaePlan::Tiling, false));
            }
        }
        let of = |edge, vae| {
            let slicing = Slicing {
                vae,
                attention: false,
            };
            working_set_bytes(&WorkShape::of(&resized(edge, 1), "sdxl"), "cuda", slicing)
        };
        assert!(of(2048, VaePlan::Tiling) < of(1024, VaePlan::Whole) / 2);
    }

    /// Attention of 4096 tokens: 16 rows of scores in Stable Diffusion 1.5 at 512², 1.1 GB.
    #[test]
    fn where_attention_is_not_fused_its_scores_are_counted_and_slices_take_a_part_of_them() {
        let of = |attention, kind| {
            let slicing = Slicing {
                vae: VaePlan::Tiling,
                attention,
            };
            working_set_bytes(&WorkShape::of(&planned(512, 1), "sd"), kind, slicing)
        };
        assert_eq!(of(false, "mps"), (4096 * 4096 * 16 * 4) + GRAPHS_BYTES);
        assert!(of(true, "mps") < of(false, "mps"));
        assert_eq!(of(true, "cuda"), of(false, "cuda"));
    }

    #[test]
    fn the_seed_and_the_words_do_not_change_the_shape() {
        let plan = planned(256, 2);
        let other = Plan {
            prompt: "else".into(),
            seeds: vec![8, 9],
            steps: 9,
            ..plan.clone()
        };
        let key = |plan: &Plan, kind| peak_key(&WorkShape::of(plan, "sd"), kind, Slicing::default());
        assert_eq!(key(&plan, "a"), key(&other, "a"));
        assert_ne!(key(&plan, "a"), key(&planned(256, 1), "a"));
        assert_ne!(key(&plan, "a"), key(&planned(512, 2), "a"));
        assert_ne!(key(&plan, "a"), key(&plan, "b"));
        let mut keys: Vec<String> = Slicing::ALL
            .map(|slicing| peak_key(&WorkShape::of(&plan, "sd"), "a", slicing))
            .to_vec();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), Slicing::ALL.len());
    }
}
