//! A resident model: its graphs bound to its weights, with and without LoRAs, and what they do to text, latents and
//! pixels. Knows no job and no queue.

mod graphs;
mod load;
mod lora;
mod mapped;
pub mod text;
mod tokenizer;
mod weights;

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::rc::Rc;

use calotype_protocol::{Adapter, Failure, ModelId, Outcome, Span};

use crate::failure::{bad_model, detailed, unsupported};
use crate::runtime::{Engine, Graph, RuntimeError, Source, Tensor, Value};
use crate::sampler::NoiseSchedule;
use lora::{Changes, Part};
use text::Embedding;

/// LoRA sets that stay bound beside the plain model.
const KEPT_SETS: usize = 2;
/// Prompts that stay encoded.
const KEPT_TEXTS: usize = 64;

/// Where the weights come from again when a LoRA set is bound.
#[expect(clippy::large_enum_variant, reason = "one a model")]
enum Origin {
    Safetensors {
        text: weights::Weights,
        unet: weights::Weights,
        text_layout: graphs::Component,
        unet_layout: graphs::Component,
    },
    /// Weights inside the ONNX files: there is nothing to sum a LoRA into.
    Onnx,
}

/// Opens the VAE's encoder when it is first needed.
type LateGraph = Box<dyn Fn(&dyn Engine) -> Result<Box<dyn Graph>, Failure>>;

/// The graphs that LoRAs change, bound.
pub struct Bound {
    /// The set of LoRAs that is summed in, by [`adapter_key`].
    pub(crate) adapters: String,
    text: Rc<dyn Graph>,
    unet: Rc<dyn Graph>,
}

/// Sample, timesteps and states of one run of the UNet.
pub struct UnetInput {
    /// `[n, channels, height, width]`, scaled as the sampler wants it.
    pub sample: Vec<f32>,
    /// One a sample.
    pub timesteps: Vec<f32>,
    /// `[n, tokens, width]`.
    pub states: Vec<f32>,
    /// Channels, height and width of the latents.
    pub latent: [usize; 3],
    /// Rows and columns of a sample's states.
    pub context: [usize; 2],
}

/// The name of a set of LoRAs with their weights; empty for none. A file that was replaced gives another name.
fn adapter_key(adapters: &[Adapter]) -> String {
    adapters
        .iter()
        .map(|adapter| {
            // A file that cannot be looked at cannot be bound either: that error is the better one.
            let file = std::fs::metadata(&adapter.path).ok();
            let stamp = file.map(|file| (file.len(), file.modified().ok()));
            format!(
                "{}\u{0}{}\u{0}{stamp:?}\u{0}",
                adapter.path,
                adapter.weight.to_bits()
            )
        })
        .collect()
}

/// A model that is resident.
pub struct Model {
    /// As the orchestrator calls it.
    pub id: ModelId,
    /// Bytes of its weights as bound.
    pub resident_bytes: u64,
    /// Time by phase of its load.
    pub phases_ms: std::collections::BTreeMap<String, f64>,
    /// The noise levels that it was trained with.
    pub schedule: NoiseSchedule,
    /// Channels of its latents.
    pub latent_channels: usize,
    /// Pixels of a latent's edge.
    pub scale: usize,
    scaling_factor: f32,
    shift_factor: f32,
    tokens: usize,
    tokenizer: tokenizer::Tokenizer,
    origin: Origin,
    base: Rc<Bound>,
    sets: VecDeque<Rc<Bound>>,
    texts: VecDeque<(String, Rc<Embedding>)>,
    vae_decoder: Box<dyn Graph>,
    vae_encoder: OnceCell<Box<dyn Graph>>,
    late_encoder: LateGraph,
}

fn ran(error: RuntimeError, what: &str) -> Failure {
    detailed(error.outcome(), format!("{what} failed"), error.to_string())
}

fn first(results: Vec<Tensor>, what: &str) -> Result<Tensor, Failure> {
    results
        .into_iter()
        .next()
        .ok_or_else(|| detailed(Outcome::Failed, format!("{what} failed"), "no output"))
}

impl Model {
    /// The graphs with `adapters` summed in. The plain ones are untouched and come back bit for bit.
    pub fn bind(&mut self, engine: &dyn Engine, adapters: &[Adapter]) -> Result<Rc<Bound>, Failure> {
        if adapters.is_empty() {
            return Ok(self.base.clone());
        }
        let key = adapter_key(adapters);
        if let Some(index) = self.sets.iter().position(|set| set.adapters == key)
            && let Some(bound) = self.sets.remove(index)
        {
            self.sets.push_back(bound.clone());
            return Ok(bound);
        }
        let Origin::Safetensors {
            text,
            unet,
            text_layout,
            unet_layout,
        } = &self.origin
        else {
            return Err(unsupported(
                "LoRAs need a model of safetensors; this one is ONNX with its weights inside",
            ));
        };
        let changes = Changes::read(adapters, text_layout, unet_layout)?;
        let rebind = |part: Part, weights: &weights::Weights, layout: &graphs::Component| {
            let bytes = weights.fill(layout, |name, values| {
                changes.apply(part, name, values);
                Ok(())
            })?;
            let graph = engine.bind(Source::Bound {
                graph: &layout.graph,
                weights: bytes,
            });
            graph
                .map(Rc::from)
                .map_err(|error| ran(error, "binding the LoRAs"))
        };
        let bound = Rc::new(Bound {
            adapters: key,
            text: if changes.touch(Part::Text) {
                rebind(Part::Text, text, text_layout)?
            } else {
                self.base.text.clone()
            },
            unet: if changes.touch(Part::Unet) {
                rebind(Part::Unet, unet, unet_layout)?
            } else {
                self.base.unet.clone()
            },
        });
        self.sets.push_back(bound.clone());
        while self.sets.len() > KEPT_SETS {
            self.sets.pop_front();
        }
        Ok(bound)
    }

    /// Drops merged LoRA weights that no job holds.
    pub(crate) fn forget_idle_sets(&mut self) {
        self.sets.retain(|set| Rc::strong_count(set) > 1);
    }

    /// Drops what can be made again.
    pub fn trim(&mut self) {
        self.sets.clear();
        self.texts.clear();
    }

    /// The states of a prompt, from the cache where it was encoded before.
    pub fn encode_text(
        &mut self,
        bound: &Bound,
        spans: &[Span],
        clip_skip: u32,
    ) -> Result<Rc<Embedding>, Failure> {
        let mut key = format!("{}\u{1}{clip_skip}", bound.adapters);
        for span in spans {
            key.push_str(&format!("\u{1}{}\u{0}{}", span.weight.to_bits(), span.text));
        }
        if let Some((_, found)) = self.texts.iter().find(|(text, _)| *text == key) {
            return Ok(found.clone());
        }
        let embedding = text::encode(
            bound.text.as_ref(),
            &self.tokenizer,
            spans,
            self.tokens,
            clip_skip,
        )?;
        let embedding = Rc::new(embedding);
        self.texts.push_back((key, embedding.clone()));
        while self.texts.len() > KEPT_TEXTS {
            self.texts.pop_front();
        }
        Ok(embedding)
    }

    /// Runs the UNet; the output has the sample's shape.
    pub fn run_unet(&self, bound: &Bound, input: UnetInput) -> Result<Vec<f32>, Failure> {
        let unet = bound.unet.as_ref();
        let port = unet.inputs().iter().find(|port| port.name == "timestep");
        let declared = port.and_then(|port| port.shape.clone());
        // Optimum's graphs take one timestep for all samples.
        let one_for_all = declared
            .as_ref()
            .is_some_and(|shape| shape.is_empty() || shape[0] == Some(1));
        if one_for_all
            && input
                .timesteps
                .iter()
                .any(|timestep| *timestep != input.timesteps[0])
        {
            let sample_len = input.latent.iter().product::<usize>();
            let state_len = input.context.iter().product::<usize>();
            let mut output = Vec::with_capacity(input.sample.len());
            for (index, timestep) in input.timesteps.iter().enumerate() {
                output.extend(self.run_unet(
                    bound,
                    UnetInput {
                        sample: input.sample[index * sample_len..(index + 1) * sample_len].to_vec(),
                        timesteps: vec![*timestep],
                        states: input.states[index * state_len..(index + 1) * state_len].to_vec(),
                        latent: input.latent,
                        context: input.context,
                    },
                )?);
            }
            return Ok(output);
        }
        let samples = input.timesteps.len();
        let [channels, height, width] = input.latent;
        let timestep = if one_for_all {
            let shape: &[usize] = if declared.is_some_and(|shape| shape.is_empty()) {
                &[]
            } else {
                &[1]
            };
            Value::f32(shape, vec![input.timesteps.first().copied().unwrap_or(0.0)])
        } else {
            Value::f32(&[samples], input.timesteps)
        };
        let wanted = input.sample.len();
        let output = unet.outputs().first().cloned().unwrap_or_default();
        let inputs = [
            (
                "sample",
                Value::f32(&[samples, channels, height, width], input.sample),
            ),
            ("timestep", timestep),
            (
                "encoder_hidden_states",
                Value::f32(&[samples, input.context[0], input.context[1]], input.states),
            ),
        ];
        let results = unet
            .run(&inputs, &[&output])
            .map_err(|error| ran(error, "the UNet"))?;
        let result = first(results, "the UNet")?;
        if result.data.len() != wanted {
            return Err(unsupported(format!(
                "a UNet with outputs of {:?} is not supported",
                result.shape
            )));
        }
        Ok(result.data)
    }

    /// One picture's latents to `[3, height, width]` between -1 and 1, nearly.
    pub fn decode(&self, latents: &[f32], height: usize, width: usize) -> Result<Tensor, Failure> {
        let unscaled = latents
            .iter()
            .map(|x| x / self.scaling_factor + self.shift_factor)
            .collect();
        let input = Value::f32(&[1, self.latent_channels, height, width], unscaled);
        let output = self.vae_decoder.outputs().first().cloned().unwrap_or_default();
        let results = self
            .vae_decoder
            .run(&[("latent_sample", input)], &[&output])
            .map_err(|error| ran(error, "the VAE"))?;
        let result = first(results, "the VAE")?;
        if result.shape.len() != 4 || result.shape[1] != 3 {
            return Err(detailed(
                Outcome::Failed,
                "the VAE failed",
                format!("output {:?}", result.shape),
            ));
        }
        Ok(result)
    }

    /// `[3, height, width]` between -1 and 1 to latents as the UNet sees them: the mean of their distribution.
    pub fn encode(
        &self,
        engine: &dyn Engine,
        pixels: Vec<f32>,
        height: usize,
        width: usize,
    ) -> Result<Vec<f32>, Failure> {
        let graph = match self.vae_encoder.get() {
            Some(graph) => graph,
            None => {
                let opened = (self.late_encoder)(engine)?;
                self.vae_encoder.get_or_init(|| opened)
            }
        };
        let output = graph.outputs().first().cloned().unwrap_or_default();
        let input = Value::f32(&[1, 3, height, width], pixels);
        let results = graph
            .run(&[("sample", input)], &[&output])
            .map_err(|error| ran(error, "the VAE"))?;
        let mut result = first(results, "the VAE")?;
        let count = self.latent_channels * (height / self.scale) * (width / self.scale);
        if result.data.len() < count {
            return Err(bad_model(
                "the VAE's encoder does not fit the model",
                format!("output {:?}", result.shape),
            ));
        }
        result.data.truncate(count);
        Ok(result
            .data
            .into_iter()
            .map(|mean| (mean - self.shift_factor) * self.scaling_factor)
            .collect())
    }
}
