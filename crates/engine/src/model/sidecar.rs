//! The small JSON file beside a model: defaults and presets come from here, never from code. `calotype.json` in a
//! model's folder, `<name>.json` beside a file.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The version of the file that is understood.
const FORMAT: u32 = 1;
/// The largest sidecar that is read.
const MOST_BYTES: u64 = 1 << 20;

/// Named defaults.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Preset {
    /// LoRAs that belong to it.
    #[serde(default)]
    pub loras: Vec<PresetLora>,
    /// Sampler by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampler: Option<String>,
    /// Schedule by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Sampling steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u32>,
    /// Guidance scale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f32>,
}

/// A LoRA of a preset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PresetLora {
    /// Name in the catalogue.
    pub name: String,
    /// Strength.
    pub weight: f32,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Size {
    pub(super) width: u32,
    pub(super) height: u32,
}

/// What may stand in the file. Unknown fields are ignored: a later version may add some.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Sidecar {
    pub(super) format: u32,
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
    pub(super) licence: Option<String>,
    pub(super) family: Option<String>,
    pub(super) size: Option<Size>,
    pub(super) size_multiple: Option<u32>,
    pub(super) default_preset: Option<String>,
    #[serde(default)]
    pub(super) presets: BTreeMap<String, Preset>,
    pub(super) base: Option<String>,
    pub(super) trigger: Option<String>,
}

/// Reads a sidecar; `Ok(None)` where there is none.
pub(super) fn read(path: &Path) -> Result<Option<Sidecar>, String> {
    let Some(value) = read_json(path)? else {
        return Ok(None);
    };
    let sidecar: Sidecar =
        serde_json::from_value(value).map_err(|error| format!("{}: {error}", path.display()))?;
    if sidecar.format != FORMAT {
        return Err(format!(
            "{}: format {} is not known, {FORMAT} is",
            path.display(),
            sidecar.format
        ));
    }
    if let Some(name) = sidecar
        .default_preset
        .as_ref()
        .filter(|name| !sidecar.presets.contains_key(*name))
    {
        return Err(format!(
            "{}: default_preset `{name}` is not among the presets",
            path.display()
        ));
    }
    // Latents are 8 pixels an edge: any other multiple would cut the last ones off.
    if let Some(multiple) = sidecar
        .size_multiple
        .filter(|multiple| !(8..=1024).contains(multiple) || multiple % 8 != 0)
    {
        return Err(format!(
            "{}: size_multiple {multiple} is not a multiple of 8 from 8 to 1024",
            path.display()
        ));
    }
    Ok(Some(sidecar))
}

/// Reads a small JSON file; `Ok(None)` where there is none.
pub(super) fn read_json(path: &Path) -> Result<Option<serde_json::Value>, String> {
    let facts = match std::fs::metadata(path) {
        Ok(facts) => facts,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    // Opening a pipe would wait for its writer.
    if !facts.is_file() {
        return Err(format!("{}: not a file", path.display()));
    }
    if facts.len() > MOST_BYTES {
        return Err(format!("{}: larger than {MOST_BYTES} bytes", path.display()));
    }
    let text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(text: &str) -> Result<Option<Sidecar>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("calotype.json");
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn fields_of_a_later_version_are_ignored_and_another_format_is_not() {
        assert!(reading(r#"{"format":1,"later":[1]}"#).unwrap().is_some());
        assert!(reading(r#"{"format":2}"#).unwrap_err().contains("format 2"));
    }

    #[test]
    fn a_sidecar_cannot_promise_what_is_not_there() {
        assert!(
            reading(r#"{"format":1,"default_preset":"x"}"#)
                .unwrap_err()
                .contains("`x`")
        );
        for multiple in [0, 12, 2048] {
            let text = format!(r#"{{"format":1,"size_multiple":{multiple}}}"#);
            assert!(
                reading(&text).unwrap_err().contains("size_multiple"),
                "{multiple}"
            );
        }
        assert!(reading("[]").is_err() && reading("").is_err());
    }

    #[test]
    fn no_sidecar_is_no_error() {
        assert!(read(Path::new("/nonexistent/calotype.json")).unwrap().is_none());
    }
}
