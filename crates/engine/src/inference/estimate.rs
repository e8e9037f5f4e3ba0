//! What a plan takes beside the weights, before it was ever measured. Pure.

use super::Plan;

/// Bytes a pixel of the picture that is being decoded: the VAE's widest layers in single precision, several at a time.
const DECODE_BYTES_A_PIXEL: u64 = 2048;
/// Bytes a pixel and picture of a UNet call, both halves of the guidance.
const DENOISE_BYTES_A_PIXEL: u64 = 512;

/// A guess on the large side; measured peaks replace it.
pub fn working_set_bytes(plan: &Plan) -> u64 {
    let pixels = u64::from(plan.width) * u64::from(plan.height);
    let images = plan.seeds.len() as u64;
    pixels.saturating_mul(DECODE_BYTES_A_PIXEL + DENOISE_BYTES_A_PIXEL.saturating_mul(images))
}

/// Plans of one shape take the same memory.
pub fn peak_key(plan: &Plan) -> String {
    let guided = if plan.guidance > 1.0 { "guided" } else { "plain" };
    format!(
        "{}|{}x{}|{}|{}|{guided}",
        plan.model,
        plan.width,
        plan.height,
        plan.seeds.len(),
        plan.mode.name()
    )
}
