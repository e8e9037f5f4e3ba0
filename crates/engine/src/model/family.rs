//! Which family a model is of, by the names and shapes of its tensors or by its small files. Pure.
//!
//! Families are named as the workers name them: `sd` (1.x and 2.x), `sdxl`, `sdxl_refiner`, `sd3` and `flux`; text
//! encoders are `clip_l`, `clip_g`, `clip_h` and `t5`, and preprocessing networks are named by what they make.

mod checkpoint;
mod lora;

use serde_json::Value;

use super::header::Header;
use super::record::{ModelRecord, Variant};

pub(super) use checkpoint::of_checkpoint;
pub(super) use lora::{is_lora, of_lora};

const VAE: &str = "first_stage_model.";
/// Name suffix of the cross-attention key projection; its second dimension is the text-embedding width.
const CONTEXT: &str = "attn2.to_k.weight";

/// The family whose UNet attends to text of this width.
pub(super) fn by_text_width(width: u32) -> Option<&'static str> {
    match width {
        768 | 1024 => Some("sd"),
        2048 => Some("sdxl"),
        1280 => Some("sdxl_refiner"),
        _ => None,
    }
}

/// The family of a diffusers pipeline. `has_first_encoder`: SDXL's refiner has only the second one.
pub(super) fn by_pipeline(class: &str, has_first_encoder: bool) -> Option<&'static str> {
    match class {
        class if class.contains("StableDiffusionXL") && has_first_encoder => Some("sdxl"),
        class if class.contains("StableDiffusionXL") => Some("sdxl_refiner"),
        class if class.contains("StableDiffusion3") => Some("sd3"),
        class if class.contains("Flux") => Some("flux"),
        class if class.contains("StableDiffusion") || class.contains("LatentConsistency") => Some("sd"),
        _ => None,
    }
}

/// The parts of a diffusers folder that a model of this family has.
pub(super) fn roles(family: &str) -> &'static [&'static str] {
    match family {
        "sdxl" => &[
            "unet",
            "vae",
            "text_encoder",
            "text_encoder_2",
            "tokenizer",
            "tokenizer_2",
            "scheduler",
        ],
        "sdxl_refiner" => &["unet", "vae", "text_encoder_2", "tokenizer_2", "scheduler"],
        "sd3" => &[
            "transformer",
            "vae",
            "text_encoder",
            "text_encoder_2",
            "text_encoder_3",
            "tokenizer",
            "tokenizer_2",
            "tokenizer_3",
            "scheduler",
        ],
        "flux" => &[
            "transformer",
            "vae",
            "text_encoder",
            "text_encoder_2",
            "tokenizer",
            "tokenizer_2",
            "scheduler",
        ],
        _ => &["unet", "vae", "text_encoder", "tokenizer", "scheduler"],
    }
}

/// The size that models of a family were trained for, in pixels an edge, where their files do not say it.
pub(super) fn native_edge(family: &str) -> u32 {
    if family == "sd" { 512 } else { 1024 }
}

/// What more than the latents an input of so many channels holds.
pub(super) fn variant(family: &str, unet_channels: u32, latent_channels: u32) -> Variant {
    match unet_channels.checked_sub(latent_channels) {
        _ if family == "sdxl_refiner" => Variant::Refiner,
        None | Some(0) => Variant::Base,
        Some(1) => Variant::Depth,
        Some(more) if more == latent_channels => Variant::Edit,
        Some(_) => Variant::Inpaint,
    }
}

/// The role that a text encoder of a family has in a model of a family; none where it has no place in it.
pub(crate) fn text_role(family: &str, encoder: &str) -> Option<&'static str> {
    match (family, encoder) {
        ("sd", "clip_l" | "clip_h") | ("sdxl" | "sd3" | "flux", "clip_l") => Some("text_encoder"),
        ("sdxl" | "sdxl_refiner" | "sd3", "clip_g") | ("flux", "t5") => Some("text_encoder_2"),
        ("sd3", "t5") => Some("text_encoder_3"),
        _ => None,
    }
}

/// The family of a CLIP text encoder whose states are so wide.
pub(super) fn clip_by_width(width: u32) -> &'static str {
    match width {
        1280 => "clip_g",
        1024 => "clip_h",
        _ => "clip_l",
    }
}

/// The family of a text encoder and the width of its states: CLIP in the names of transformers or of OpenCLIP, or T5,
/// whose table of words may be missing.
fn text_encoder(header: &Header) -> Option<(&'static str, Option<u32>)> {
    let width_of = |ends: &str| header.extent_of(|name| name.ends_with(ends), 1);
    let is_t5 = |name: &String| name.contains("encoder.block.0.layer.0.SelfAttention");
    if header.shapes.keys().any(is_t5) {
        let width = width_of("shared.weight").or_else(|| width_of("embed_tokens.weight"));
        return Some(("t5", width));
    }
    let width = width_of("token_embedding.weight")?;
    Some((clip_by_width(width), Some(width)))
}

/// Fills in what the header of a text encoder tells.
pub(super) fn of_text_encoder(header: &Header, record: &mut ModelRecord) -> Result<(), String> {
    let (family, width) = text_encoder(header).ok_or("no tensor of it is named as a text encoder's")?;
    record.family = family.into();
    record.text_width = width;
    Ok(())
}

/// What a preprocessing network makes, by its header: only HED's is known without a config.
pub(super) fn of_preprocessor(header: &Header, record: &mut ModelRecord) -> Result<(), String> {
    if !header.has("block1.convs.0.") {
        return Err(
            "its tensors are not those of HED, the one such network that comes without a config".into(),
        );
    }
    record.family = "softedge".into();
    Ok(())
}

/// What a preprocessing network of this class makes.
pub(super) fn by_network(class: &str) -> Option<&'static str> {
    if class.ends_with("ForDepthEstimation") {
        Some("depth")
    } else if class == "VitPoseForPoseEstimation" {
        Some("pose")
    } else {
        None
    }
}

/// The width of the text that the UNet below a prefix attends to; none where its layers do not agree.
pub(super) fn text_width(header: &Header, prefix: &str) -> Option<u32> {
    let mut widths: Vec<u32> = header
        .shapes
        .keys()
        .filter(|name| name.starts_with(prefix) && name.ends_with(CONTEXT))
        .filter_map(|name| header.extent(name, 1))
        .collect();
    widths.dedup();
    match widths.as_slice() {
        [width] => Some(*width),
        _ => None,
    }
}

/// Whether tensors are named as a ControlNet's, in the original names or in diffusers'.
pub(super) fn is_controlnet(header: &Header) -> bool {
    [
        "control_model.",
        "input_hint_block.",
        "controlnet_cond_embedding.",
    ]
    .iter()
    .any(|prefix| header.has(prefix))
}

/// The channels of the latents of a VAE by itself.
pub(super) fn vae_channels(header: &Header) -> Option<u32> {
    header
        .extent("decoder.conv_in.weight", 1)
        .or_else(|| header.extent(&format!("{VAE}decoder.conv_in.weight"), 1))
}

/// Fills in what a textual inversion fits.
pub(super) fn of_embedding(header: &Header, record: &mut ModelRecord) -> Result<(), String> {
    let width = |shape: &Vec<usize>| u32::try_from(*shape.last()?).ok();
    if !header.shapes.values().all(|shape| matches!(shape.len(), 1 | 2)) || header.shapes.is_empty() {
        return Err("its tensors are not those of a textual inversion".into());
    }
    if header.has("clip_l") || header.has("clip_g") {
        record.family = "sdxl".into();
        record.text_width = Some(2048);
        return Ok(());
    }
    record.text_width = header.shapes.values().next().and_then(width);
    match record.text_width.and_then(by_text_width) {
        Some(family) => record.family = family.into(),
        None => record.family = "sd".into(),
    }
    Ok(())
}

/// Channels of the VAEs of Stable Diffusion and of all that came after it.
const VAE_CHANNELS: [u64; 4] = [128, 256, 512, 512];
/// Their scales, by which families are told apart.
const VAE_SCALES: [(f64, &str); 4] = [
    (0.18215, "sd"),
    (0.13025, "sdxl"),
    (1.5305, "sd3"),
    (0.3611, "flux"),
];

fn by_scale(config: &Value) -> Option<&'static str> {
    let scale = config["scaling_factor"].as_f64()?;
    let found = VAE_SCALES.iter().find(|(known, _)| (known - scale).abs() < 1e-3);
    found.map(|(_, family)| *family)
}

/// Whether a VAE is one of the widespread ones, by its config.
pub(super) fn is_usual_vae(config: &Value) -> bool {
    let channels = config["block_out_channels"].as_array();
    let same = channels.is_some_and(|channels| channels.iter().map(Value::as_u64).eq(VAE_CHANNELS.map(Some)));
    same && by_scale(config).is_some()
}

/// The family that has the latents of another.
pub(super) fn of_latents(family: &str) -> &str {
    if family == "sdxl_refiner" { "sdxl" } else { family }
}

/// The family whose latents a small VAE decodes: `taesd`, `taesdxl`, `taesd3` and `taef1` are the names of the known ones.
pub(super) fn of_previewer(name: &str, latent_channels: u32) -> &'static str {
    let name = name.to_ascii_lowercase();
    let named = |words: &[&str]| words.iter().any(|word| name.contains(word));
    if latent_channels == 16 {
        if named(&["sd3"]) { "sd3" } else { "flux" }
    } else if named(&["xl"]) {
        "sdxl"
    } else {
        "sd"
    }
}

/// The family of a VAE, by its config: the shapes of two families are the same, their scales are not.
pub(super) fn of_vae(config: &Value) -> &'static str {
    by_scale(config).unwrap_or("sd")
}

#[cfg(test)]
mod tests;
