//! Which graphs fit a model: compares the `config.json` of each part with what `graph.json` says it was made for.
//! Binds nothing and reads no weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use calotype_protocol::{Failure, Outcome};
use serde::Deserialize;
use serde_json::Value;

use crate::failure::{bad_model, detailed};

/// The largest buffer of weights that is allocated for one graph.
const MOST_BYTES: usize = 16 << 30;

/// The file that describes a folder of graphs.
#[derive(Debug, Deserialize)]
pub(crate) struct Architecture {
    pub(crate) architecture: String,
    pub(crate) components: BTreeMap<String, Component>,
}

/// One graph with its layout.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Component {
    pub(crate) graph: PathBuf,
    pub(crate) role: String,
    config: BTreeMap<String, Value>,
    #[serde(default)]
    config_defaults: BTreeMap<String, Value>,
    pub(crate) bytes: usize,
    pub(crate) tensors: Vec<Slot>,
}

/// A tensor's place in the buffer.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) offset: usize,
}

impl Slot {
    pub(crate) fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

impl Architecture {
    fn read(folder: &Path) -> Result<Self, Failure> {
        let path = folder.join("graph.json");
        let wrong = |why: String| {
            bad_model(
                "a graph's description is wrong",
                format!("{}: {why}", path.display()),
            )
        };
        let text = std::fs::read(&path).map_err(|error| wrong(error.to_string()))?;
        let mut found: Self = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        for component in found.components.values_mut() {
            component.graph = folder.join(&component.graph);
            if component.bytes > MOST_BYTES {
                return Err(wrong(format!(
                    "{} bytes of weights are too many",
                    component.bytes
                )));
            }
            for slot in &component.tensors {
                let bytes = slot
                    .shape
                    .iter()
                    .try_fold(4usize, |bytes, extent| bytes.checked_mul(*extent));
                let end = bytes.and_then(|bytes| bytes.checked_add(slot.offset));
                if end.is_none_or(|end| end > component.bytes) {
                    return Err(wrong(format!("`{}` lies outside the buffer", slot.name)));
                }
            }
        }
        Ok(found)
    }

    fn misfit(&self, configs: &BTreeMap<String, Value>) -> Option<String> {
        for (name, component) in &self.components {
            let Some(config) = configs.get(&component.role) else {
                return Some(format!("the model has no {}", component.role));
            };
            for (field, wanted) in &component.config {
                let found = config.get(field).unwrap_or(&Value::Null);
                if !same(found, wanted) {
                    return Some(format!("{name}: `{field}` is {found}, not {wanted}"));
                }
            }
            for (field, wanted) in &component.config_defaults {
                if let Some(found) = config.get(field)
                    && !same(found, wanted)
                {
                    return Some(format!("{name}: `{field}` is {found}, not {wanted}"));
                }
            }
        }
        None
    }

    pub(crate) fn component(&self, name: &str) -> Result<&Component, Failure> {
        self.components.get(name).ok_or_else(|| {
            bad_model(
                "the graphs are incomplete",
                format!("{}: no graph `{name}`", self.architecture),
            )
        })
    }
}

/// Numbers are compared as numbers: `1` and `1.0` are one.
fn same(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Number(found), Value::Number(wanted)) => found.as_f64() == wanted.as_f64(),
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len()
                && found
                    .iter()
                    .zip(wanted)
                    .all(|(found, wanted)| same(found, wanted))
        }
        _ => found == wanted,
    }
}

/// The architecture in `folder`, or in one of its folders, that fits `configs` (role to `config.json`).
pub(crate) fn find(folder: &Path, configs: &BTreeMap<String, Value>) -> Result<Architecture, Failure> {
    let mut folders = vec![folder.to_path_buf()];
    if let Ok(entries) = std::fs::read_dir(folder) {
        let mut below: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .collect();
        below.sort();
        folders.extend(below);
    }
    let mut reasons = Vec::new();
    for folder in folders
        .into_iter()
        .filter(|folder| folder.join("graph.json").is_file())
    {
        let architecture = Architecture::read(&folder)?;
        match architecture.misfit(configs) {
            None => return Ok(architecture),
            Some(why) => reasons.push(format!("{}: {why}", architecture.architecture)),
        }
    }
    if reasons.is_empty() {
        reasons.push(format!("{} holds no graph.json", folder.display()));
    }
    Err(detailed(
        Outcome::NotSupported,
        "no graphs fit this model; a worker with PyTorch, or an ONNX export of the model, can run it",
        reasons.join("; "),
    ))
}
