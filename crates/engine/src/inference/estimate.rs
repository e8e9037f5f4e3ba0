//! What a plan takes beside the weights, before it was ever measured. Pure.

use calotype_protocol::ModelId;

use super::Plan;
use crate::memory::holding::Precision;

/// Bytes a pixel of the picture that is being decoded: the VAE's widest layers in single precision, several at a time.
const DECODE_BYTES_A_PIXEL: u64 = 2048;
/// Bytes a pixel and picture of a UNet call, both halves of the guidance.
const DENOISE_BYTES_A_PIXEL: u64 = 512;

/// A guess on the large side; measured peaks replace it.
pub fn working_set_bytes(plan: &Plan, precision: Precision) -> u64 {
    let (width, height) = plan.final_size();
    let pixels = u64::from(width) * u64::from(height);
    let images = plan.seeds.len() as u64;
    let single = pixels.saturating_mul(DECODE_BYTES_A_PIXEL + DENOISE_BYTES_A_PIXEL.saturating_mul(images));
    match precision {
        Precision::Single => single,
        Precision::Half => single / 2,
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
        assert!(working_set_bytes(&planned(256, 1), Precision::Half) < bytes(256, 1));
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
