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
        stem.strip_suffix(".safetensors").unwrap_or(&stem).to_owned()
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
        check_weights(role, &part, onnx)?;
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

/// The files that a worker takes from a part: the usual one, else all shards.
fn taken(part: &Path) -> Result<Vec<PathBuf>, String> {
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
    Ok(files)
}

/// Whether the roles that hold weights have them.
fn check_weights(role: &str, part: &Path, onnx: bool) -> Result<(), String> {
    if matches!(role, "tokenizer" | "scheduler") {
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
fn weigh(part: &Path, record: &mut ModelRecord) -> Result<(), String> {
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
mod tests {
    use super::*;

    const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/calotype-tiny");

    fn architectures() -> Vec<Graphs> {
        let all = Path::new(TINY).parent().unwrap().join("graphs");
        ["sd15", "sd21", "calotype-tiny"]
            .iter()
            .map(|name| graphs(&all.join(name)).unwrap())
            .collect()
    }

    /// A copy of the embedded model that may be broken.
    fn copy(dir: &Path) -> PathBuf {
        let to = dir.join("copy");
        for part in ["", "unet", "vae", "text_encoder", "tokenizer", "scheduler"] {
            std::fs::create_dir_all(to.join(part)).unwrap();
            for entry in std::fs::read_dir(Path::new(TINY).join(part)).unwrap().flatten() {
                if entry.path().is_file() {
                    std::fs::copy(entry.path(), to.join(part).join(entry.file_name())).unwrap();
                }
            }
        }
        to
    }

    #[test]
    fn every_weight_is_counted_once() {
        let record = folder(Path::new(TINY), &architectures());
        assert_eq!(record.problem, None);
        assert!(
            (22_000_000..23_500_000).contains(&record.parameters),
            "{}",
            record.parameters
        );
        let dir = tempfile::tempdir().unwrap();
        let path = copy(dir.path());
        let unet = path.join("unet");
        std::fs::copy(
            unet.join("diffusion_pytorch_model.safetensors"),
            unet.join("diffusion_pytorch_model.fp16.safetensors"),
        )
        .unwrap();
        assert_eq!(folder(&path, &architectures()).parameters, record.parameters);
    }

    #[test]
    fn an_architecture_without_graphs_is_a_problem_with_advice() {
        let dir = tempfile::tempdir().unwrap();
        let path = copy(dir.path());
        let config = path.join("unet/config.json");
        let mut value: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        value["norm_num_groups"] = 8.into();
        std::fs::write(&config, value.to_string()).unwrap();
        let problem = folder(&path, &architectures()).problem.unwrap();
        assert!(
            problem.contains("no graph") && problem.contains("export_graphs.py"),
            "{problem}"
        );
    }

    #[test]
    fn a_defaulted_field_may_be_missing_and_a_structural_one_may_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = copy(dir.path());
        let config = path.join("unet/config.json");
        let mut value: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        value.as_object_mut().unwrap().remove("act_fn");
        std::fs::write(&config, value.to_string()).unwrap();
        assert_eq!(
            folder(&path, &architectures()).architecture.as_deref(),
            Some("calotype-tiny")
        );
        value.as_object_mut().unwrap().remove("block_out_channels");
        std::fs::write(&config, value.to_string()).unwrap();
        assert_eq!(folder(&path, &architectures()).architecture, None);
    }

    #[test]
    fn without_a_sidecar_the_size_comes_from_the_unet_and_there_is_no_preset() {
        let dir = tempfile::tempdir().unwrap();
        let path = copy(dir.path());
        std::fs::remove_file(path.join("calotype.json")).unwrap();
        let record = folder(&path, &architectures());
        assert_eq!(
            (record.problem, record.size, record.size_multiple),
            (None, (256, 256), 8)
        );
        assert!(record.presets.is_empty() && record.default_preset.is_none());
    }

    #[test]
    fn a_part_without_weights_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        let path = copy(dir.path());
        std::fs::rename(
            path.join("vae/diffusion_pytorch_model.safetensors"),
            path.join("vae/pytorch_model.bin"),
        )
        .unwrap();
        assert!(
            folder(&path, &architectures())
                .problem
                .unwrap()
                .contains("no safetensors")
        );
        std::fs::write(path.join("unet/model.onnx"), "").unwrap();
        assert!(
            folder(&path, &architectures())
                .problem
                .unwrap()
                .contains("vae_decoder")
        );
    }
}
