//! What a plan takes beside the weights, before it was ever measured. Pure.

use calotype_protocol::ModelId;

use super::Plan;
use crate::memory::holding::Precision;

/// Bytes a pixel of the picture that is being decoded: the VAE's widest layers, several at a time.
const DECODE_BYTES_A_PIXEL: u64 = 2048;
/// Bytes a pixel and picture of a UNet call, both halves of the guidance.
const DENOISE_BYTES_A_PIXEL: u64 = 512;

/// What an accelerator's worker keeps for its captured steps, whatever their size.
const GRAPHS_BYTES: u64 = 128 << 20;

/// A guess on the large side; measured peaks replace it.
pub fn working_set_bytes(plan: &Plan, precision: Precision) -> u64 {
    let (width, height) = plan.final_size();
    let pixels = u64::from(width) * u64::from(height);
    let images = plan.seeds.len() as u64;
    match precision {
        // A processor decodes one picture after the other.
        Precision::Single => {
            pixels.saturating_mul(DECODE_BYTES_A_PIXEL + DENOISE_BYTES_A_PIXEL.saturating_mul(images))
        }
        // An accelerator decodes several together. An H100 took 1639 to 1937 bytes a pixel and picture for it, and
        // around 105 MB for the steps.
        Precision::Half => pixels
            .saturating_mul(DECODE_BYTES_A_PIXEL.saturating_mul(images))
            .saturating_add(GRAPHS_BYTES),
    }
}

/// Plans of one shape take the same memory in workers of one kind, for instance `python@cuda`.
pub fn peak_key(plan: &Plan, kind: &str) -> String {
    let (width, height) = plan.final_size();
    let guided = if plan.guidance > 1.0 { "guided" } else { "plain" };
    format!(
        "{kind}|{}|{width}x{height}|{}|{}|{guided}",
        plan.models()
            .iter()
            .map(ModelId::as_str)
            .collect::<Vec<_>>()
            .join("&"),
        plan.seeds.len(),
        plan.mode.name()
    )
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

    #[test]
    fn more_pixels_and_more_images_take_more() {
        let bytes = |edge, count| working_set_bytes(&planned(edge, count), Precision::Single);
        assert!(bytes(512, 1) > bytes(256, 1) && bytes(256, 8) > bytes(256, 1));
    }

    /// Stable Diffusion 1.5 at 512² and XL at 1024², one picture each; see `docs/benchmarks.md`.
    #[test]
    fn the_guess_for_an_accelerator_is_above_what_an_h100_took_and_below_the_double_of_it() {
        for (edge, took_bytes) in [(512, 507_698_688), (1024, 1_718_430_208)] {
            let guess_bytes = working_set_bytes(&planned(edge, 1), Precision::Half);
            assert!(
                (took_bytes..2 * took_bytes).contains(&guess_bytes),
                "{guess_bytes}"
            );
        }
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
        assert_eq!(peak_key(&plan, "a"), peak_key(&other, "a"));
        assert_ne!(peak_key(&plan, "a"), peak_key(&planned(256, 1), "a"));
        assert_ne!(peak_key(&plan, "a"), peak_key(&planned(512, 2), "a"));
        assert_ne!(peak_key(&plan, "a"), peak_key(&plan, "b"));
    }
}
