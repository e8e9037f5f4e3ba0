//! What is known of a model.

use std::collections::BTreeMap;
use std::path::Path;

use calotype_protocol::{ModelFormat, ModelId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::sidecar::{Preset, Sidecar};
use crate::memory::memory_plan::Precision;

/// What a file or folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// A diffusers folder.
    Diffusers,
    /// A folder of ONNX files in Optimum's layout.
    Onnx,
    /// One safetensors file with everything in it.
    Checkpoint,
    /// A LoRA.
    Lora,
    /// A ControlNet.
    Controlnet,
    /// A VAE by itself, to take the place of a model's own.
    Vae,
    /// A textual inversion: a word with a meaning of its own.
    Embedding,
    /// A text encoder in place of a model's own.
    TextEncoder,
    /// A network that makes the images of ControlNets; its family is what it makes.
    Preprocessor,
    /// A small VAE that decodes previews.
    Previewer,
}

impl ModelKind {
    /// Whether it makes pictures by itself.
    pub fn makes_pictures(self) -> bool {
        match self {
            Self::Diffusers | Self::Onnx | Self::Checkpoint => true,
            Self::Lora
            | Self::Controlnet
            | Self::Vae
            | Self::Embedding
            | Self::TextEncoder
            | Self::Preprocessor
            | Self::Previewer => false,
        }
    }

    /// The word for it in ids that two kinds would share.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Diffusers | Self::Onnx | Self::Checkpoint => "model",
            Self::Lora => "lora",
            Self::Controlnet => "controlnet",
            Self::Vae => "vae",
            Self::Embedding => "embedding",
            Self::TextEncoder => "text_encoder",
            Self::Preprocessor => "preprocessor",
            Self::Previewer => "previewer",
        }
    }
}

/// What a UNet takes beside the latents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// Nothing.
    #[default]
    Base,
    /// A mask and what it leaves of the image.
    Inpaint,
    /// The image to change.
    Edit,
    /// A map of depths.
    Depth,
    /// Nothing, and it is made to finish what another model began.
    Refiner,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
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
    /// `sd` (1.x and 2.x), `sdxl`, `sdxl_refiner`, `sd3`, `flux`; of what is laid on a model, that model's.
    pub family: String,
    /// What its UNet takes beside the latents.
    #[serde(default)]
    pub variant: Variant,
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
    /// Channels that its UNet takes: those of the latents, and more in variants (9 to inpaint, 8 to edit).
    #[serde(default)]
    pub unet_channels: u32,
    /// Width of the text that its UNet attends to; of a LoRA, a ControlNet or an embedding, of the UNets it fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_width: Option<u32>,
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
    /// Whether its latents are those of its family's widespread VAE, for which there are small ones.
    #[serde(default)]
    pub usual_vae: bool,
    /// Whether it was made to draw in few steps without guidance, as its weights tell: FLUX schnell.
    #[serde(default)]
    pub few_steps: bool,
    /// Elements of the weights that a LoRA changes: a set that is laid on needs a copy of so many.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lora_elements: u64,
    /// The model that a LoRA is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Words that a LoRA wants in the prompt; the word that an embedding stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<String>,
    /// The graphs that fit it; without any, the native worker cannot take it, another can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Parts that its file comes without, by role; others of the catalogue must take their place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacks: Vec<String>,
    /// Why it cannot be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl ModelRecord {
    /// A record with nothing but its place. A file's name is its id without its end, a folder's as it is.
    pub(super) fn at(path: &Path, kind: ModelKind) -> Self {
        let name = if path.is_dir() {
            path.file_name()
        } else {
            path.file_stem()
        };
        let id = name
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        Self {
            name: id.clone(),
            id: ModelId(id),
            kind,
            description: None,
            licence: None,
            family: "sd".into(),
            variant: Variant::Base,
            format: None,
            path: path.display().to_string(),
            components: BTreeMap::new(),
            weights_bytes: 0,
            parameters: 0,
            latent_channels: 4,
            unet_channels: 4,
            text_width: None,
            latent_factor: 8,
            size: (512, 512),
            size_multiple: 8,
            presets: BTreeMap::new(),
            default_preset: None,
            prediction: None,
            usual_vae: false,
            few_steps: false,
            lora_elements: 0,
            base: None,
            trigger: None,
            architecture: None,
            lacks: Vec::new(),
            problem: None,
        }
    }

    /// Takes what its sidecar says over what was found.
    pub(super) fn adopt(&mut self, sidecar: Sidecar) {
        let Sidecar {
            format: _,
            name,
            description,
            licence,
            family,
            size,
            size_multiple,
            default_preset,
            presets,
            base,
            trigger,
        } = sidecar;
        self.name = name.unwrap_or_else(|| self.name.clone());
        self.description = description;
        self.licence = licence;
        self.family = family.unwrap_or_else(|| self.family.clone());
        if let Some(size) = size {
            self.size = (size.width, size.height);
        }
        // Never below what the VAE asks for, whatever the file says.
        self.size_multiple = size_multiple
            .unwrap_or(self.size_multiple)
            .max(self.latent_factor)
            .max(8);
        self.presets = presets;
        self.default_preset = default_preset;
        self.base = base;
        self.trigger = trigger.or_else(|| self.trigger.clone());
    }

    /// Whether the native worker can take it.
    pub fn has_graphs(&self) -> bool {
        self.kind == ModelKind::Onnx || self.architecture.is_some()
    }

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

    /// A guess of what its weights take on a device of this precision: on a processor with a quarter for what the runtime
    /// packs anew, on an accelerator with a sixteenth for parts that compute in single precision (SDXL's VAE is 2 %).
    /// Corrected by the worker's own figure after the first load.
    pub fn resident_bytes_estimate(&self, precision: Precision) -> u64 {
        // In half precision a depth has visible steps: such networks compute in single precision everywhere.
        let precision = match self.kind {
            ModelKind::Preprocessor => Precision::Single,
            _ => precision,
        };
        let plain = self.parameters.saturating_mul(precision.bytes());
        match precision {
            Precision::Single => {
                let plain = plain.max(self.weights_bytes);
                plain.saturating_add(plain / 4)
            }
            Precision::Half => plain.saturating_add(plain / 16),
        }
    }
}
