//! Graphs without weights: the architectures that the native worker can run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Graphs without weights of one architecture.
#[derive(Debug, Clone)]
pub(super) struct Graphs {
    pub(super) name: String,
    folder: PathBuf,
    components: Vec<Component>,
}

#[derive(Debug, Clone)]
struct Component {
    role: String,
    config: serde_json::Map<String, Value>,
    defaults: serde_json::Map<String, Value>,
}

/// Reads `graph.json` of an architecture's folder.
pub(super) fn read(folder: &Path) -> Option<Graphs> {
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
        folder: folder.to_owned(),
        components,
    })
}

impl Graphs {
    /// The folder of all architectures: the worker makes the same choice from the same files.
    pub(super) fn all(&self) -> &Path {
        self.folder.parent().unwrap_or(&self.folder)
    }

    /// Whether a model with these configs (by role) is of this architecture.
    pub(super) fn fit(&self, configs: &BTreeMap<&str, Value>) -> bool {
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
