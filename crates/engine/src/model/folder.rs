//! A folder with `model_index.json`, of safetensors or of ONNX files, to a record.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use calotype_protocol::ModelFormat;
use serde_json::Value;

use super::graphs::Graphs;
use super::record::{ModelKind, ModelRecord, Variant};
use super::sidecar::{self, read_json};
use super::{family, header};

const ONNX_ROLES: &[&str] = &[
    "unet",
    "vae_decoder",
    "vae_encoder",
    "text_encoder",
    "tokenizer",
    "scheduler",
];

/// What the folder is, or what is wrong with it.
pub(super) fn record(path: &Path, architectures: &[Graphs]) -> ModelRecord {
    let onnx = path.join("unet/model.onnx").is_file();
    let kind = if onnx {
        ModelKind::Onnx
    } else {
        ModelKind::Diffusers
    };
    let mut record = ModelRecord::at(path, kind);
    record.format = Some(if onnx {
        ModelFormat::Onnx
    } else {
        ModelFormat::Diffusers
    });
    if let Err(problem) = look(path, architectures, &mut record) {
        record.problem = Some(problem);
    }
    record
}

fn look(path: &Path, architectures: &[Graphs], record: &mut ModelRecord) -> Result<(), String> {
    let onnx = record.kind == ModelKind::Onnx;
    record
        .components
        .insert("root".into(), path.display().to_string());
    let index = read_json(&path.join("model_index.json"))?.unwrap_or_default();
    // A folder that does not say is what folders were before there were other families.
    let class = index["_class_name"].as_str().unwrap_or("StableDiffusionPipeline");
    let Some(found) = family::by_pipeline(class, path.join("text_encoder").is_dir()) else {
        record.family = "unknown".into();
        return Err(format!("{}: pipelines `{class}` are not known", path.display()));
    };
    record.family = found.into();
    let mut configs = BTreeMap::new();
    for role in if onnx { ONNX_ROLES } else { family::roles(found) } {
        let part = path.join(role);
        if !part.is_dir() {
            return Err(format!("{}: the folder `{role}` is missing", path.display()));
        }
        record
            .components
            .insert((*role).into(), part.display().to_string());
        if let Some(config) = read_json(&part.join("config.json"))? {
            configs.insert(*role, config);
        }
        weigh(&part, record)?;
        check_weights(role, &part, onnx)?;
    }
    let scheduler = read_json(&path.join("scheduler/scheduler_config.json"))?.unwrap_or_default();
    record.prediction = scheduler["prediction_type"].as_str().map(str::to_owned);
    measure(&configs, record);
    if let Some(sidecar) = sidecar::read(&path.join("calotype.json"))? {
        record.adopt(sidecar);
    }
    // The native worker computes with what it is given; what it has no graphs for, another runtime can take.
    if let Some(graphs) = architectures.iter().find(|graphs| graphs.fit(&configs))
        && record.variant == Variant::Base
        && !onnx
    {
        record.architecture = Some(graphs.name.clone());
        record
            .components
            .insert("graphs".into(), graphs.all().display().to_string());
    }
    Ok(())
}

/// Sizes and channels from the configs of the parts.
fn measure(configs: &BTreeMap<&str, Value>, record: &mut ModelRecord) {
    let field = |role: &str, name: &str, most: u32| {
        let value = configs.get(role)?[name].as_u64()?;
        u32::try_from(value)
            .ok()
            .filter(|value| (1..=most).contains(value))
    };
    let edge = family::native_edge(&record.family);
    record.size = (edge, edge);
    let denoiser = if configs.contains_key("transformer") {
        "transformer"
    } else {
        "unet"
    };
    record.latent_channels = field("vae", "latent_channels", 64)
        .or_else(|| field(denoiser, "out_channels", 64))
        .unwrap_or(4);
    // Flux takes four pixels of the latents side by side.
    let beside = if record.family == "flux" { 4 } else { 1 };
    record.unet_channels =
        field(denoiser, "in_channels", 1024).map_or(record.latent_channels, |channels| channels / beside);
    record.variant = family::variant(&record.family, record.unet_channels, record.latent_channels);
    record.usual_vae = configs.get("vae").is_some_and(family::is_usual_vae);
    // FLUX takes its guidance as an input, where it was made for any.
    let guided = configs
        .get(denoiser)
        .and_then(|config| config["guidance_embeds"].as_bool());
    record.few_steps = record.family == "flux" && guided == Some(false);
    record.text_width = field(denoiser, "cross_attention_dim", 1 << 16);
    if let Some(edge) = field(denoiser, "sample_size", 1024) {
        record.size = (edge * record.latent_factor, edge * record.latent_factor);
    }
}

/// The files that a worker takes from a part: the usual one, else all shards.
pub(super) fn taken(part: &Path) -> Result<Vec<PathBuf>, String> {
    let usual = ["model.safetensors", "diffusion_pytorch_model.safetensors"].map(|name| part.join(name));
    if let Some(file) = usual.into_iter().find(|file| file.is_file()) {
        return Ok(vec![file]);
    }
    let entries = std::fs::read_dir(part).map_err(|error| format!("{}: {error}", part.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| {
        file.extension()
            .is_some_and(|extension| extension == "safetensors")
    });
    files.sort();
    Ok(files)
}

/// Whether the roles that hold weights have them.
pub(super) fn check_weights(role: &str, part: &Path, onnx: bool) -> Result<(), String> {
    if role.starts_with("tokenizer") || role == "scheduler" {
        return Ok(());
    }
    if onnx && !part.join("model.onnx").is_file() {
        return Err(format!("{}: model.onnx is missing", part.display()));
    }
    if !onnx && taken(part)?.is_empty() {
        return Err(format!(
            "{}: no safetensors file; other kinds of weights are never opened",
            part.display()
        ));
    }
    Ok(())
}

/// Adds up the weight files of a part.
pub(super) fn weigh(part: &Path, record: &mut ModelRecord) -> Result<(), String> {
    for file in taken(part)? {
        let header = header::read(&file)?;
        record.weights_bytes += header.file_bytes;
        record.parameters = record.parameters.saturating_add(header.parameters);
    }
    let entries = std::fs::read_dir(part).map_err(|error| format!("{}: {error}", part.display()))?;
    for entry in entries.flatten() {
        let file = entry.path();
        if let Some("onnx" | "onnx_data" | "data") = file.extension().and_then(|extension| extension.to_str())
        {
            record.weights_bytes += entry.metadata().map_or(0, |facts| facts.len());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
