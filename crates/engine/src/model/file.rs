//! A single file, or the folder of a single part, to a record. Only safetensors are looked into.

use std::path::{Path, PathBuf};

use calotype_protocol::ModelFormat;

use super::header::{self, Header};
use super::record::{ModelKind, ModelRecord};
use super::sidecar::{self, read_json};
use super::{family, folder};

/// The ends of files that run what is in them when they are opened.
const PICKLES: [&str; 5] = ["bin", "ckpt", "pkl", "pt", "pth"];

/// Whether a file is of a kind that is never opened.
pub(super) fn is_pickle(path: &Path) -> bool {
    ends(path, &PICKLES)
}

fn ends(path: &Path, known: &[&str]) -> bool {
    let end = path.extension().and_then(|end| end.to_str()).unwrap_or_default();
    known.iter().any(|known| end.eq_ignore_ascii_case(known))
}

/// What lies at `path`, as the kind that its place says; `None` for what is no model at all.
pub(super) fn record(path: &Path, kind: ModelKind) -> Option<ModelRecord> {
    let mut record = ModelRecord::at(path, kind);
    record.format = match kind {
        ModelKind::Checkpoint => Some(ModelFormat::Checkpoint),
        ModelKind::Controlnet | ModelKind::Vae | ModelKind::Preprocessor if path.is_dir() => {
            Some(ModelFormat::Diffusers)
        }
        ModelKind::Controlnet | ModelKind::Vae | ModelKind::Preprocessor => Some(ModelFormat::Checkpoint),
        ModelKind::Previewer => Some(ModelFormat::Diffusers),
        ModelKind::Diffusers
        | ModelKind::Onnx
        | ModelKind::Lora
        | ModelKind::Embedding
        | ModelKind::TextEncoder => None,
    };
    let looked = if path.is_dir() {
        match kind {
            ModelKind::Controlnet | ModelKind::Vae | ModelKind::Previewer => {
                look_into_part(path, &mut record)
            }
            ModelKind::TextEncoder => look_into_text_encoder(path, &mut record),
            ModelKind::Preprocessor => look_into_preprocessor(path, &mut record),
            ModelKind::Embedding => look_into_embedding(path, &mut record),
            ModelKind::Diffusers | ModelKind::Onnx | ModelKind::Checkpoint | ModelKind::Lora => return None,
        }
    } else if is_pickle(path) {
        Err("pickle files are never opened, since that can run what is in them; safetensors are taken".into())
    } else if ends(path, &["safetensors"]) {
        look_into_file(path, &mut record)
    } else {
        return None;
    };
    record.problem = looked.err().map(|problem| at(path, &problem));
    Some(record)
}

/// Says the place of a problem, unless the problem says it already.
fn at(path: &Path, problem: &str) -> String {
    let path = path.display().to_string();
    if problem.starts_with(&path) {
        problem.to_owned()
    } else {
        format!("{path}: {problem}")
    }
}

fn look_into_file(path: &Path, record: &mut ModelRecord) -> Result<(), String> {
    let header = header::read(path)?;
    record.weights_bytes = header.file_bytes;
    record.parameters = header.parameters;
    let told = tell(&header, record);
    if let Some(sidecar) = sidecar::read(&path.with_extension("json"))? {
        record.adopt(sidecar);
    }
    told
}

/// Fills in what the header of a single file tells.
fn tell(header: &Header, record: &mut ModelRecord) -> Result<(), String> {
    let place = record.path.clone();
    match record.kind {
        ModelKind::Checkpoint => {
            record.components.insert("checkpoint".into(), place);
            family::of_checkpoint(header, record)
        }
        ModelKind::Lora => {
            if !family::is_lora(header) {
                return Err("no tensor of it is named as a LoRA's".into());
            }
            family::of_lora(header, record);
            Ok(())
        }
        ModelKind::Embedding => {
            record.trigger = Some(record.id.as_str().to_owned());
            family::of_embedding(header, record)
        }
        ModelKind::Controlnet => {
            record.components.insert("controlnet".into(), place);
            if !family::is_controlnet(header) {
                return Err("no tensor of it is named as a ControlNet's".into());
            }
            record.text_width = family::text_width(header, "");
            record.family = record
                .text_width
                .and_then(family::by_text_width)
                .unwrap_or("sd")
                .into();
            Ok(())
        }
        ModelKind::Vae => {
            record.components.insert("vae".into(), place);
            record.latent_channels =
                family::vae_channels(header).ok_or("no tensor of it is named as a VAE's")?;
            // Its scale, which tells more, is in no file.
            record.family = if record.latent_channels == 4 { "sd" } else { "flux" }.into();
            Ok(())
        }
        ModelKind::TextEncoder => family::of_text_encoder(header, record),
        ModelKind::Preprocessor => {
            record.components.insert("preprocessor".into(), place);
            family::of_preprocessor(header, record)
        }
        ModelKind::Diffusers | ModelKind::Onnx | ModelKind::Previewer => Err("it is no folder".into()),
    }
}

/// A diffusers folder of a ControlNet or a VAE, or of a small VAE for previews. Whose latents the last decodes its config
/// does not say: its name does, as its makers gave it, or a sidecar.
fn look_into_part(path: &Path, record: &mut ModelRecord) -> Result<(), String> {
    let (controlnet, previewer) = (
        record.kind == ModelKind::Controlnet,
        record.kind == ModelKind::Previewer,
    );
    let (role, wanted) = if controlnet {
        ("controlnet", "ControlNetModel")
    } else if previewer {
        ("taesd", "AutoencoderTiny")
    } else {
        ("vae", "AutoencoderKL")
    };
    for role in ["root", role] {
        record.components.insert(role.into(), path.display().to_string());
    }
    let config = read_json(&path.join("config.json"))?.ok_or("config.json is missing")?;
    let number = |name: &str| config[name].as_u64().and_then(|value| u32::try_from(value).ok());
    if controlnet {
        record.text_width = number("cross_attention_dim");
        record.unet_channels = number("in_channels").unwrap_or(record.unet_channels);
        let family = record.text_width.and_then(family::by_text_width);
        record.family = family.unwrap_or("sd").into();
    } else {
        record.latent_channels = number("latent_channels").unwrap_or(record.latent_channels);
        record.family = if previewer {
            family::of_previewer(record.id.as_str(), record.latent_channels).into()
        } else {
            family::of_vae(&config).into()
        };
    }
    let class = config["_class_name"].as_str().unwrap_or_default();
    if class != wanted {
        return Err(format!("its class is `{class}`, `{wanted}` is taken"));
    }
    folder::check_weights(role, path, false)?;
    folder::weigh(path, record)?;
    adopt_sidecar(path, record)
}

/// A folder of transformers: `config.json` and the weights.
fn look_into_text_encoder(path: &Path, record: &mut ModelRecord) -> Result<(), String> {
    let config = read_json(&path.join("config.json"))?.ok_or("config.json is missing")?;
    let class = config["architectures"][0].as_str().unwrap_or_default();
    let width = |name: &str| config[name].as_u64().and_then(|value| u32::try_from(value).ok());
    if class.starts_with("CLIPText") {
        record.text_width = width("hidden_size");
        record.family = family::clip_by_width(record.text_width.unwrap_or_default()).into();
    } else if class.starts_with("T5") {
        record.text_width = width("d_model");
        record.family = "t5".into();
    } else {
        return Err(format!(
            "its class is `{class}`; text encoders of CLIP and T5 are taken"
        ));
    }
    folder::check_weights("text_encoder", path, false)?;
    folder::weigh(path, record)?;
    adopt_sidecar(path, record)
}

/// A folder of transformers, or one with a single file that needs no config.
fn look_into_preprocessor(path: &Path, record: &mut ModelRecord) -> Result<(), String> {
    record
        .components
        .insert("root".into(), path.display().to_string());
    folder::check_weights("preprocessor", path, false)?;
    folder::weigh(path, record)?;
    let Some(config) = read_json(&path.join("config.json"))? else {
        let files = folder::taken(path)?;
        let [file] = files.as_slice() else {
            return Err("config.json is missing".into());
        };
        family::of_preprocessor(&header::read(file)?, record)?;
        return adopt_sidecar(path, record);
    };
    let class = config["architectures"][0].as_str().unwrap_or_default();
    let made = family::by_network(class);
    record.family = made
        .ok_or_else(|| {
            format!("its class is `{class}`; networks for depth (…ForDepthEstimation) and VitPose are taken")
        })?
        .into();
    // The network that finds people for one that finds their joints.
    let detector = path.join("detector");
    if detector.is_dir() {
        folder::weigh(&detector, record)?;
    }
    adopt_sidecar(path, record)
}

fn adopt_sidecar(path: &Path, record: &mut ModelRecord) -> Result<(), String> {
    if let Some(sidecar) = sidecar::read(&path.join("calotype.json"))? {
        record.adopt(sidecar);
    }
    Ok(())
}

/// A folder with one textual inversion in it; the record's place is the file, which is what a worker opens.
fn look_into_embedding(path: &Path, record: &mut ModelRecord) -> Result<(), String> {
    let files: Vec<PathBuf> = folder::taken(path)?;
    let [file] = files.as_slice() else {
        return Err(format!("{} safetensors files; one is taken", files.len()));
    };
    record.path = file.display().to_string();
    look_into_file(file, record)?;
    adopt_sidecar(path, record)
}

#[cfg(test)]
mod tests;
