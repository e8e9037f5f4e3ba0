//! From a folder or a file to a record.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use calotype_protocol::{ModelFormat, ModelId};
use serde_json::Value;

use super::header;
use super::record::{ModelKind, ModelRecord};
use super::sidecar::{self, Sidecar, read_json};

/// Graphs without weights of one architecture.
#[derive(Debug, Clone)]
pub(super) struct Graphs {
    pub(super) name: String,
    pub(super) family: String,
    pub(super) folder: PathBuf,
    components: Vec<Component>,
}

#[derive(Debug, Clone)]
struct Component {
    role: String,
    config: serde_json::Map<String, Value>,
    defaults: serde_json::Map<String, Value>,
}

/// Reads `graph.json` of an architecture's folder.
pub(super) fn graphs(folder: &Path) -> Option<Graphs> {
    // Larger than a sidecar: it lists every tensor.
    let text = std::fs::read(folder.join("graph.json")).ok()?;
    let value: Value = serde_json::from_slice(&text).ok()?;
    let object = |value: &Value, name: &str| value[name].as_object().cloned().unwrap_or_default();
    let components = value["components"]
        .as_object()?
        .values()
        .map(|component| {
            Some(Component {
                role: component["role"].as_str()?.to_owned(),
                config: object(component, "config"),
                defaults: object(component, "config_defaults"),
            })
        })
        .collect::<Option<Vec<_>>>()?;
    Some(Graphs {
        name: value["architecture"].as_str()?.to_owned(),
        family: value["family"].as_str().unwrap_or("sd").to_owned(),
        folder: folder.to_owned(),
        components,
    })
}

impl Graphs {
    /// Whether a model with these configs (by role) is of this architecture.
    fn fit(&self, configs: &BTreeMap<&str, Value>) -> bool {
        self.components.iter().all(|component| {
            let Some(config) = configs.get(component.role.as_str()) else {
                return false;
            };
            component
                .config
                .iter()
                .all(|(name, value)| same(&config[name], value))
                && component
                    .defaults
                    .iter()
                    .all(|(name, value)| config[name].is_null() || same(&config[name], value))
        })
    }
}

/// Equal as JSON, numbers by value.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// A record with nothing but its place.
fn blank(path: &Path, kind: ModelKind) -> ModelRecord {
    let stem = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let id = if kind == ModelKind::Lora {
        stem.trim_end_matches(".safetensors").to_owned()
    } else {
        stem
    };
    ModelRecord {
        name: id.clone(),
        id: ModelId(id),
        kind,
        description: None,
        licence: None,
        family: "sd".into(),
        format: None,
        path: path.display().to_string(),
        components: BTreeMap::new(),
        weights_bytes: 0,
        parameters: 0,
        latent_channels: 4,
        latent_factor: 8,
        size: (512, 512),
        size_multiple: 8,
        presets: BTreeMap::new(),
        default_preset: None,
        prediction: None,
        base: None,
        trigger: None,
        architecture: None,
        problem: None,
    }
}

fn adopt(record: &mut ModelRecord, sidecar: Sidecar) {
    record.name = sidecar.name.unwrap_or_else(|| record.name.clone());
    record.description = sidecar.description;
    record.licence = sidecar.licence;
    if let Some(size) = sidecar.size {
        record.size = (size.width, size.height);
    }
    // Never below what the VAE asks for, whatever the file says.
    record.size_multiple = sidecar
        .size_multiple
        .unwrap_or(record.size_multiple)
        .max(record.latent_factor)
        .max(8);
    record.presets = sidecar.presets;
    record.default_preset = sidecar.default_preset;
    record.base = sidecar.base;
    record.trigger = sidecar.trigger;
}

/// A LoRA file.
pub(super) fn lora(path: &Path) -> ModelRecord {
    let mut record = blank(path, ModelKind::Lora);
    let found = header::read(path).and_then(|header| {
        record.weights_bytes = header.file_bytes;
        record.parameters = header.parameters;
        if !header.names.iter().any(|name| name.contains("lora")) {
            return Err(format!(
                "{}: no tensor of it is named as a LoRA's",
                path.display()
            ));
        }
        sidecar::read(&path.with_extension("json"))
    });
    match found {
        Ok(Some(sidecar)) => adopt(&mut record, sidecar),
        Ok(None) => {}
        Err(problem) => record.problem = Some(problem),
    }
    record
}

/// A folder with `model_index.json`.
pub(super) fn folder(path: &Path, architectures: &[Graphs]) -> ModelRecord {
    let onnx = path.join("unet/model.onnx").is_file();
    let mut record = blank(
        path,
        if onnx {
            ModelKind::Onnx
        } else {
            ModelKind::Diffusers
        },
    );
    record.format = Some(if onnx {
        ModelFormat::Onnx
    } else {
        ModelFormat::Diffusers
    });
    if let Err(problem) = look(path, onnx, architectures, &mut record) {
        record.problem = Some(problem);
    }
    record
}

fn look(path: &Path, onnx: bool, architectures: &[Graphs], record: &mut ModelRecord) -> Result<(), String> {
    record
        .components
        .insert("root".into(), path.display().to_string());
    let roles: &[&str] = if onnx {
        &[
            "unet",
            "vae_decoder",
            "vae_encoder",
            "text_encoder",
            "tokenizer",
            "scheduler",
        ]
    } else {
        &["unet", "vae", "text_encoder", "tokenizer", "scheduler"]
    };
    let mut configs = BTreeMap::new();
    for role in roles {
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
    }
    let scheduler = read_json(&path.join("scheduler/scheduler_config.json"))?.unwrap_or_default();
    record.prediction = scheduler["prediction_type"].as_str().map(str::to_owned);
    let small = |value: &Value| value.as_u64().and_then(|value| u32::try_from(value).ok());
    if let Some(unet) = configs.get("unet") {
        record.latent_channels = small(&unet["in_channels"])
            .filter(|channels| (1..=64).contains(channels))
            .unwrap_or(4);
        if record.latent_channels != 4 {
            return Err(format!(
                "its UNet takes {} channels; only those with 4 are served",
                record.latent_channels
            ));
        }
        if let Some(edge) = small(&unet["sample_size"]).filter(|edge| (1..=1024).contains(edge)) {
            record.size = (edge * record.latent_factor, edge * record.latent_factor);
        }
    }
    if let Some(sidecar) = sidecar::read(&path.join("calotype.json"))? {
        adopt(record, sidecar);
    }
    if onnx {
        return Ok(());
    }
    match architectures.iter().find(|graphs| graphs.fit(&configs)) {
        Some(graphs) => {
            record.architecture = Some(graphs.name.clone());
            record.family = graphs.family.clone();
            // The folder of all architectures: the worker makes the same choice from the same file.
            let all = graphs.folder.parent().unwrap_or(&graphs.folder);
            record
                .components
                .insert("graphs".into(), all.display().to_string());
            Ok(())
        }
        None => {
            Err("no graph in models/graphs fits its architecture; training/export_graphs.py makes one".into())
        }
    }
}

/// Adds up the weight files of a part.
fn weigh(part: &Path, record: &mut ModelRecord) -> Result<(), String> {
    let entries = std::fs::read_dir(part).map_err(|error| format!("{}: {error}", part.display()))?;
    for entry in entries.flatten() {
        let file = entry.path();
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => {
                let header = header::read(&file)?;
                record.weights_bytes += header.file_bytes;
                record.parameters += header.parameters;
            }
            Some("onnx" | "onnx_data" | "data") => {
                record.weights_bytes += entry.metadata().map(|facts| facts.len()).unwrap_or(0);
            }
            Some(_) | None => {}
        }
    }
    Ok(())
}
