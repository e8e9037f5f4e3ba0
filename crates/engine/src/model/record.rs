//! What is known of a model.

use std::collections::BTreeMap;

use calotype_protocol::{ModelFormat, ModelId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::sidecar::Preset;

/// What a file or folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// A diffusers folder.
    Diffusers,
    /// A folder of ONNX files in Optimum's layout.
    Onnx,
    /// A LoRA.
    Lora,
}

/// One model of the catalogue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelRecord {
    /// Its name in requests.
    pub id: ModelId,
    /// What it is.
    pub kind: ModelKind,
    /// Its name for people; a LoRA answers to this one too.
    pub name: String,
    /// From its sidecar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// From its sidecar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// For instance `sd`.
    pub family: String,
    /// Layout of the files, for a worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<ModelFormat>,
    /// Folder or file.
    pub path: String,
    /// Role to path.
    pub components: BTreeMap<String, String>,
    /// Length of the weight files.
    pub weights_bytes: u64,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Channels of its latents.
    pub latent_channels: u32,
    /// Pixels an edge of one latent.
    pub latent_factor: u32,
    /// Size it was trained for.
    pub size: (u32, u32),
    /// Widths and heights must be multiples of this.
    pub size_multiple: u32,
    /// Presets by name.
    pub presets: BTreeMap<String, Preset>,
    /// The preset that is used when none is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_preset: Option<String>,
    /// What its UNet's output means, from its scheduler's config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prediction: Option<String>,
    /// The model that a LoRA is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Words that a LoRA wants in the prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<String>,
    /// The graphs that fit it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Why it cannot be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl ModelRecord {
    /// The ways in which a worker can take it: a diffusers folder, an ONNX folder, a single file, and `graphs` where
    /// there are ONNX graphs to bind its weights to.
    pub fn formats(&self) -> Vec<String> {
        let format = match self.format {
            Some(ModelFormat::Onnx) => "onnx",
            Some(ModelFormat::Checkpoint) => "checkpoint",
            Some(ModelFormat::Diffusers) | None => "diffusers",
        };
        let graphs = self.architecture.is_some().then_some("graphs");
        [format].into_iter().chain(graphs).map(str::to_owned).collect()
    }

    /// A guess of what its weights take in a worker that computes in single precision: four bytes an element, and a
    /// quarter for what the runtime packs anew. Corrected by the worker's own figure after the first load.
    pub fn resident_bytes_estimate(&self) -> u64 {
        let single = self.parameters.saturating_mul(4).max(self.weights_bytes);
        single.saturating_add(single / 4)
    }
}
