//! How a generation samples: what it starts from, its sampler and schedule, what the model predicts, where noise comes from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a generation starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Noise alone.
    TextToImage,
    /// An image, noised to `strength`.
    ImageToImage,
    /// An image, repainted where the mask is white.
    Inpaint,
}

/// The update rule of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are the field's own")]
pub enum Sampler {
    Ddim,
    Ddpm,
    Euler,
    EulerAncestral,
    Heun,
    Dpm2,
    Dpm2Ancestral,
    Lms,
    #[serde(rename = "dpmpp_2m")]
    DpmPp2m,
    #[serde(rename = "dpmpp_2s_ancestral")]
    DpmPp2sAncestral,
    #[serde(rename = "dpmpp_sde")]
    DpmPpSde,
    #[serde(rename = "dpmpp_2m_sde")]
    DpmPp2mSde,
    #[serde(rename = "unipc")]
    UniPc,
    Pndm,
    Lcm,
    Tcd,
}

/// How the noise levels of the steps are spaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are the field's own")]
pub enum Schedule {
    Default,
    Karras,
    Exponential,
    SgmUniform,
    Simple,
    Normal,
    Beta,
}

macro_rules! named {
    ($type:ident, $($variant:ident => $name:literal),+ $(,)?) => {
        impl $type {
            /// Every one, in the order of the documentation.
            pub const ALL: &'static [$type] = &[$($type::$variant),+];

            /// The name on the wire.
            pub fn name(self) -> &'static str {
                match self { $($type::$variant => $name),+ }
            }

            /// The one of that name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some($type::$variant),)+ _ => None }
            }
        }
    };
}

named!(Sampler, Ddim => "ddim", Ddpm => "ddpm", Euler => "euler", EulerAncestral => "euler_ancestral", Heun => "heun",
    Dpm2 => "dpm2", Dpm2Ancestral => "dpm2_ancestral", Lms => "lms", DpmPp2m => "dpmpp_2m",
    DpmPp2sAncestral => "dpmpp_2s_ancestral", DpmPpSde => "dpmpp_sde", DpmPp2mSde => "dpmpp_2m_sde",
    UniPc => "unipc", Pndm => "pndm", Lcm => "lcm", Tcd => "tcd");
named!(Schedule, Default => "default", Karras => "karras", Exponential => "exponential",
    SgmUniform => "sgm_uniform", Simple => "simple", Normal => "normal", Beta => "beta");
named!(Mode, TextToImage => "text_to_image", ImageToImage => "image_to_image", Inpaint => "inpaint");

/// What a UNet's output means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// Salimans and Ho's velocity, `alpha * noise - sigma * sample`.
    VPrediction,
    /// The clean sample.
    Sample,
}

/// Where noise comes from; see [`crate::noise`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NoiseSource {
    /// Philox 4x32-10 and Box–Muller, offset 0 for the initial noise and 1 + i for step i.
    Philox,
}
