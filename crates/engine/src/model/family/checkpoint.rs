//! What the header of a checkpoint tells: its family, and which parts it comes without. Pure.

use super::{
    VAE, by_text_width, is_controlnet, is_lora, native_edge, text_encoder, text_width, vae_channels, variant,
};
use crate::model::header::Header;
use crate::model::record::ModelRecord;

/// Where the original checkpoints keep the UNet.
const UNET: &str = "model.diffusion_model.";
const TEXT_ENCODERS: [&str; 3] = ["cond_stage_model.", "conditioner.embedders.", "text_encoders."];
/// Metadata keys under which programs store the prediction type.
const PREDICTION_KEYS: [&str; 3] = [
    "modelspec.prediction_key",
    "modelspec.prediction_type",
    "modelspec.predict_key",
];

/// Fills in what the header of a checkpoint tells; the error says why it cannot be used.
pub(in crate::model) fn of_checkpoint(header: &Header, record: &mut ModelRecord) -> Result<(), String> {
    // Flux is often stored without its VAE, and then without the prefix.
    let prefix = if header.has(UNET) { UNET } else { "" };
    let named = |name: &str| format!("{prefix}{name}");
    let input = if header.has(&named("joint_blocks.")) {
        record.family = "sd3".into();
        header.extent(&named("x_embedder.proj.weight"), 1)
    } else if header.has(&named("double_blocks.")) {
        record.family = "flux".into();
        record.few_steps = !header.has(&named("guidance_in."));
        // Four pixels of the latents stand side by side.
        header.extent(&named("img_in.weight"), 1).map(|width| width / 4)
    } else if !header.has(UNET) {
        return Err(match elsewhere(header) {
            Some(place) => format!("it is no checkpoint; a file like it belongs into models/{place}"),
            None => "no tensor of it is named as a checkpoint's".into(),
        });
    } else {
        let width = text_width(header, UNET);
        record.text_width = width;
        record.family = width
            .and_then(by_text_width)
            .ok_or_else(|| {
                format!(
                    "its UNet attends to text of width {}, that of no known family",
                    width.unwrap_or(0)
                )
            })?
            .into();
        header.extent(&named("input_blocks.0.0.weight"), 1)
    };
    let transformer = matches!(record.family.as_str(), "sd3" | "flux");
    let usual = if transformer { 16 } else { 4 };
    record.latent_channels = header
        .extent(&format!("{VAE}decoder.conv_in.weight"), 1)
        .unwrap_or(usual);
    record.unet_channels = input.unwrap_or(record.latent_channels);
    record.variant = variant(&record.family, record.unet_channels, record.latent_channels);
    record.prediction = prediction(header, record).map(str::to_owned);
    let second = record.text_width == Some(1024) && record.prediction.as_deref() == Some("v_prediction");
    let edge = if second { 768 } else { native_edge(&record.family) };
    record.size = said_size(header).unwrap_or((edge, edge));
    record.lacks = lacking(header, &record.family);
    // A file does not tell its VAE's scale; it is taken to be the usual one.
    record.usual_vae = true;
    Ok(())
}

/// The parts that a checkpoint of this family comes without. SD3 draws without T5.
fn lacking(header: &Header, family: &str) -> Vec<String> {
    let has = |prefixes: &[&str]| prefixes.iter().any(|prefix| header.has(prefix));
    let mut lacks = Vec::new();
    let mut part = |role: &str, prefixes: &[&str]| {
        if !has(prefixes) {
            lacks.push(role.to_owned());
        }
    };
    part("vae", &[VAE, "vae.decoder."]);
    let (clip_l, clip_g, t5) = (
        "text_encoders.clip_l.",
        "text_encoders.clip_g.",
        "text_encoders.t5xxl.",
    );
    match family {
        "sd3" => {
            part("text_encoder", &[clip_l]);
            part("text_encoder_2", &[clip_g]);
        }
        "flux" => {
            part("text_encoder", &[clip_l]);
            part("text_encoder_2", &[t5]);
        }
        "sdxl" => {
            part("text_encoder", &TEXT_ENCODERS);
            part("text_encoder_2", &TEXT_ENCODERS);
        }
        "sdxl_refiner" => part("text_encoder_2", &TEXT_ENCODERS),
        _ => part("text_encoder", &TEXT_ENCODERS),
    }
    lacks
}

/// The prediction type from the metadata, else the usual one of the architecture.
fn prediction(header: &Header, record: &ModelRecord) -> Option<&'static str> {
    if matches!(record.family.as_str(), "sd3" | "flux") {
        return Some("flow");
    }
    let said = PREDICTION_KEYS.iter().find_map(|key| header.said.get(*key));
    let velocity = match said {
        Some(word) => word.starts_with('v'),
        None => header.shapes.contains_key("v_pred") || record.text_width == Some(1024),
    };
    Some(if velocity { "v_prediction" } else { "epsilon" })
}

/// The training size from the metadata.
fn said_size(header: &Header) -> Option<(u32, u32)> {
    let (width, height) = header.said.get("modelspec.resolution")?.split_once('x')?;
    let edge = |text: &str| {
        let edge = text.trim().parse::<u32>().ok()?;
        ((64..=4096).contains(&edge) && edge.is_multiple_of(8)).then_some(edge)
    };
    Some((edge(width)?, edge(height)?))
}

/// The folder below `models` that a file of such tensors belongs into.
fn elsewhere(header: &Header) -> Option<&'static str> {
    if is_lora(header) {
        Some("loras")
    } else if is_controlnet(header) {
        Some("controlnets")
    } else if vae_channels(header).is_some() {
        Some("vaes")
    } else if text_encoder(header).is_some() {
        Some("text_encoders")
    } else if header.has("emb_params") || header.has("clip_l") || header.has("clip_g") {
        Some("embeddings")
    } else {
        None
    }
}
