//! What the header of a LoRA tells: which family it fits, and how much of the weights it changes. Pure.

use super::by_text_width;
use crate::model::header::Header;
use crate::model::record::ModelRecord;

/// How a LoRA's two matrices are named, by PEFT, kohya and diffusers.
const LORA_MATRICES: [(&str, &str); 3] = [
    ("lora_A", "lora_B"),
    ("lora_down", "lora_up"),
    ("lora.down", "lora.up"),
];

/// Whether tensors are named as a LoRA's.
pub(in crate::model) fn is_lora(header: &Header) -> bool {
    header.shapes.keys().any(|name| name.contains("lora"))
}

/// Fills in what a LoRA fits. A LoRA that tells nothing is taken to be for the family that is here most often.
pub(in crate::model) fn of_lora(header: &Header, record: &mut ModelRecord) {
    let reads_text = |name: &str| {
        let below = LORA_MATRICES.iter().any(|(lower, _)| name.contains(lower));
        below && (name.contains("attn2.to_k") || name.contains("attn2_to_k"))
    };
    let holds = |words: &[&str]| {
        let one_of = |name: &String| words.iter().any(|word| name.contains(word));
        header.shapes.keys().any(one_of)
    };
    record.text_width = header.extent_of(reads_text, 1);
    record.lora_elements = lora_elements(header);
    let family = if holds(&["double_blocks", "single_blocks", "single_transformer_blocks"]) {
        "flux"
    } else if holds(&["joint_blocks", "add_k_proj"]) {
        "sd3"
    } else if let Some(family) = record.text_width.and_then(by_text_width) {
        family
    } else if holds(&["lora_te2_", "text_encoder_2."]) {
        "sdxl"
    } else {
        "sd"
    };
    record.family = family.into();
}

/// Elements of the weights that a LoRA changes: each has as many rows as its upper matrix and as many columns as its
/// lower one.
fn lora_elements(header: &Header) -> u64 {
    let changed = header.shapes.iter().filter_map(|(name, below)| {
        let (lower, upper) = LORA_MATRICES.iter().find(|(lower, _)| name.contains(lower))?;
        let above = header.shapes.get(&name.replace(lower, upper))?;
        let columns = below.get(1..)?.iter().map(|extent| *extent as u64);
        let columns = columns.fold(1, u64::saturating_mul);
        Some(columns.saturating_mul(*above.first()? as u64))
    });
    changed.fold(0, u64::saturating_add)
}
