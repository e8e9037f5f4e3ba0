//! LoRA files: which layer each key means, and the change that it makes to that layer's weight.
//! Reads PEFT's and diffusers' names (`unet.X.lora_A.weight`, `unet.X.lora.down.weight`) and kohya's (`lora_unet_X`).
//! Binds nothing: `load` sums the changes into a copy of the weights.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use calotype_protocol::{Adapter, Failure};
use rten::FloatOperators;
use rten_tensor::Tensor;
use rten_tensor::prelude::*;

use super::graphs::Component;
use super::weights::WeightFile;
use crate::failure::{bad_model, detailed, invalid};

/// The part of a model that a layer belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Part {
    Text,
    Unet,
}

/// A matrix pair for one layer.
#[derive(Debug, Default)]
struct Pair {
    down: Option<(Vec<usize>, Vec<f32>)>,
    up: Option<(Vec<usize>, Vec<f32>)>,
    alpha: Option<f32>,
}

/// The changes of several LoRAs, by part and name of the tensor.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    by_tensor: HashMap<(Part, String), Vec<Vec<f32>>>,
}

#[derive(Debug, PartialEq)]
enum Piece {
    Down,
    Up,
    Alpha,
}

const SUFFIXES: &[(&str, Piece)] = &[
    (".lora_A.weight", Piece::Down),
    (".lora_B.weight", Piece::Up),
    (".lora_A.default.weight", Piece::Down),
    (".lora_B.default.weight", Piece::Up),
    (".lora_down.weight", Piece::Down),
    (".lora_up.weight", Piece::Up),
    (".lora.down.weight", Piece::Down),
    (".lora.up.weight", Piece::Up),
    (".lora_linear_layer.down.weight", Piece::Down),
    (".lora_linear_layer.up.weight", Piece::Up),
    (".alpha", Piece::Alpha),
];

/// Names of layers, as they are and with `_` for `.`, to the name of the weight.
struct Layers(HashMap<(Part, String), String>);

impl Layers {
    fn of(text: &Component, unet: &Component) -> Self {
        let mut names = HashMap::new();
        for (part, component) in [(Part::Text, text), (Part::Unet, unet)] {
            for slot in &component.tensors {
                let Some(layer) = slot.name.strip_suffix(".weight") else {
                    continue;
                };
                let mut spellings = vec![layer.to_owned(), layer.replace('.', "_")];
                if let Some(bare) = layer.strip_prefix("text_model.") {
                    spellings.push(bare.to_owned());
                }
                for spelling in spellings {
                    names.insert((part, spelling), slot.name.clone());
                }
            }
        }
        Self(names)
    }

    fn find(&self, path: &str) -> Option<(Part, &String)> {
        const PREFIXES: &[(&str, Part)] = &[
            ("base_model.model.unet.", Part::Unet),
            ("unet.", Part::Unet),
            ("text_encoder.", Part::Text),
            ("lora_unet_", Part::Unet),
            ("lora_te1_", Part::Text),
            ("lora_te_", Part::Text),
        ];
        PREFIXES.iter().find_map(|(prefix, part)| {
            let layer = path.strip_prefix(prefix)?;
            // Older files name the processor between the attention and its matrix.
            let layer = layer.replace(".processor.", ".");
            let older = layer.replace("_lora", "");
            let closed = layer.strip_suffix("to_out").map(|head| format!("{head}to_out.0"));
            [Some(layer), Some(older), closed]
                .into_iter()
                .flatten()
                .find_map(|layer| self.0.get(&(*part, layer)).map(|name| (*part, name)))
        })
    }
}

impl Changes {
    /// Reads `adapters` and multiplies out what they change in `text` and `unet`.
    pub(crate) fn read(adapters: &[Adapter], text: &Component, unet: &Component) -> Result<Self, Failure> {
        let layers = Layers::of(text, unet);
        let shapes: HashMap<(Part, &str), &[usize]> = [(Part::Text, text), (Part::Unet, unet)]
            .into_iter()
            .flat_map(|(part, component)| {
                component
                    .tensors
                    .iter()
                    .map(move |slot| ((part, slot.name.as_str()), slot.shape.as_slice()))
            })
            .collect();
        let mut changes = Self::default();
        for adapter in adapters {
            if !adapter.weight.is_finite() {
                return Err(invalid(format!(
                    "the weight of LoRA `{}` is not a number",
                    adapter.id
                )));
            }
            for ((part, name), pair) in pairs(adapter, &layers)? {
                let shape = shapes.get(&(part, name.as_str())).copied().unwrap_or_default();
                let change = pair
                    .multiplied(shape, adapter.weight)
                    .map_err(|why| misfit(adapter, &name, &why))?;
                changes.by_tensor.entry((part, name)).or_default().push(change);
            }
        }
        Ok(changes)
    }

    /// Whether anything in `part` changes.
    pub(crate) fn touch(&self, part: Part) -> bool {
        self.by_tensor.keys().any(|(of, _)| *of == part)
    }

    /// Adds the changes of one tensor.
    pub(crate) fn apply(&self, part: Part, name: &str, values: &mut [f32]) {
        for change in self.by_tensor.get(&(part, name.to_owned())).into_iter().flatten() {
            for (value, change) in values.iter_mut().zip(change) {
                *value += change;
            }
        }
    }
}

fn pairs(adapter: &Adapter, layers: &Layers) -> Result<BTreeMap<(Part, String), Pair>, Failure> {
    let file = WeightFile::open(Path::new(&adapter.path))?;
    let mut keys: Vec<&str> = file.names().collect();
    keys.sort_unstable();
    let mut pairs: BTreeMap<(Part, String), Pair> = BTreeMap::new();
    for key in keys {
        let unknown = || {
            detailed(
                calotype_protocol::Outcome::InvalidInput,
                format!(
                    "the LoRA `{}` does not fit this model: unknown key `{key}`",
                    adapter.id
                ),
                format!("{}: {key}", adapter.path),
            )
        };
        let (path, piece) = SUFFIXES
            .iter()
            .find_map(|(suffix, piece)| key.strip_suffix(suffix).map(|path| (path, piece)))
            .ok_or_else(unknown)?;
        let (part, name) = layers.find(path).ok_or_else(unknown)?;
        let (shape, values) = file.read(key)?;
        let pair = pairs.entry((part, name.clone())).or_default();
        match piece {
            Piece::Down => pair.down = Some((shape, values)),
            Piece::Up => pair.up = Some((shape, values)),
            Piece::Alpha => pair.alpha = values.first().copied(),
        }
    }
    if pairs.is_empty() {
        return Err(bad_model("the LoRA is empty", adapter.path.clone()));
    }
    Ok(pairs)
}

fn misfit(adapter: &Adapter, name: &str, why: &str) -> Failure {
    detailed(
        calotype_protocol::Outcome::InvalidInput,
        format!(
            "the LoRA `{}` does not fit this model: `{name}` {why}",
            adapter.id
        ),
        format!("{}: {name}", adapter.path),
    )
}

impl Pair {
    /// `weight * (alpha / rank) * up x down`, flat, for a weight of `shape`.
    fn multiplied(self, shape: &[usize], weight: f32) -> Result<Vec<f32>, String> {
        let (Some((down_shape, down)), Some((up_shape, up))) = (self.down, self.up) else {
            return Err("has only one of its two matrices".into());
        };
        let rank = down_shape.first().copied().unwrap_or(0);
        let outputs = shape.first().copied().unwrap_or(0);
        let inputs: usize = shape.iter().skip(1).product();
        if rank == 0
            || down.len() != rank * inputs
            || up.len() != outputs * rank
            || up_shape.first() != Some(&outputs)
        {
            return Err(format!(
                "has shapes {down_shape:?} and {up_shape:?}, the weight has {shape:?}"
            ));
        }
        let scale = weight * self.alpha.map_or(1.0, |alpha| alpha / rank as f32);
        let up = Tensor::from_data(&[outputs, rank], up);
        let down = Tensor::from_data(&[rank, inputs], down);
        let product = up
            .matmul(down.view().as_dyn())
            .map_err(|error| error.to_string())?;
        Ok(product.iter().map(|value| value * scale).collect())
    }
}
