//! Makes a model resident: reads its configs, finds its graphs, binds them to its weights.

use std::cell::OnceCell;
use std::collections::{BTreeMap, VecDeque};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread::{self, Builder, ScopedJoinHandle};
use std::time::Instant;

use calotype_protocol::{Failure, Load, ModelFormat, ModelSpec, Outcome};
use serde_json::Value;

use super::graphs::{self, Component};
use super::tokenizer::Tokenizer;
use super::weights::Weights;
use super::{Bound, LateGraph, Model, Origin};
use crate::failure::{bad_model, detailed, unsupported};
use crate::runtime::{Engine, Graph, Source};
use crate::sampler::NoiseSchedule;

/// Parts of a larger model are made one after the other: side by side they would all be in memory twice at once.
const SIDE_BY_SIDE_MOST_BYTES: u64 = 1 << 30;

/// The folder of a role: said, or below the root.
fn place(spec: &ModelSpec, role: &str) -> Result<PathBuf, Failure> {
    if let Some(path) = spec.components.get(role) {
        return Ok(PathBuf::from(path));
    }
    let root = spec.components.get("root");
    root.map(|root| Path::new(root).join(role)).ok_or_else(|| {
        bad_model(
            "the model has a part missing",
            format!("no component `{role}` and no `root`"),
        )
    })
}

fn config(folder: &Path, name: &str) -> Result<Value, Failure> {
    // A component may be given as its file; its config lies beside it.
    let folder = if folder.is_file() {
        folder.parent().unwrap_or(folder)
    } else {
        folder
    };
    let path = folder.join(name);
    let wrong = |why: String| {
        bad_model(
            "a model's config cannot be read",
            format!("{}: {why}", path.display()),
        )
    };
    let text = std::fs::read(&path).map_err(|error| wrong(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

struct Parts {
    text: Box<dyn Graph>,
    unet: Box<dyn Graph>,
    vae_decoder: Box<dyn Graph>,
    late_encoder: LateGraph,
    origin: Origin,
    bytes: u64,
    phases_ms: BTreeMap<String, f64>,
}

impl Model {
    /// Loads what `load` asks for; `progress` hears of bytes done and bytes in all.
    pub fn load(
        engine: &dyn Engine,
        load: &Load,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, Failure> {
        let spec = &load.model;
        if spec.family != "sd" {
            return Err(unsupported(format!(
                "models of the family `{}` need a PyTorch worker",
                spec.family
            )));
        }
        let started = Instant::now();
        let scheduler = config(&place(spec, "scheduler")?, "scheduler_config.json")?;
        let schedule = NoiseSchedule::from_config(&scheduler).map_err(|why| {
            detailed(
                Outcome::NotSupported,
                "the model's scheduler is not supported",
                why,
            )
        })?;
        let tokenizer = Tokenizer::open(&place(spec, "tokenizer")?)?;
        let read_ms = ms(started);
        let (vae, text, parts) = match spec.format {
            ModelFormat::Diffusers => {
                let mut configs = BTreeMap::new();
                for role in ["unet", "vae", "text_encoder"] {
                    configs.insert(role.to_owned(), config(&place(spec, role)?, "config.json")?);
                }
                let parts = diffusers(engine, load, &configs, progress)?;
                (configs.remove("vae"), configs.remove("text_encoder"), parts)
            }
            ModelFormat::Onnx => {
                let vae = config(&place(spec, "vae_decoder")?, "config.json").ok();
                let text = config(&place(spec, "text_encoder")?, "config.json").ok();
                (vae, text, optimum(engine, spec, progress)?)
            }
            ModelFormat::Checkpoint => {
                return Err(unsupported(
                    "single-file checkpoints need a PyTorch worker, or their diffusers folder",
                ));
            }
        };
        let (vae, text) = (vae.unwrap_or_default(), text.unwrap_or_default());
        let number = |config: &Value, field: &str| config.get(field).and_then(Value::as_f64);
        let blocks = vae
            .get("block_out_channels")
            .and_then(Value::as_array)
            .map_or(4, Vec::len);
        let mut phases_ms = parts.phases_ms;
        *phases_ms.entry("read".into()).or_default() += read_ms;
        Ok(Self {
            id: spec.id.clone(),
            resident_bytes: parts.bytes,
            phases_ms,
            schedule,
            latent_channels: number(&vae, "latent_channels").unwrap_or(4.0) as usize,
            scale: 1 << blocks.clamp(1, 6).saturating_sub(1),
            scaling_factor: number(&vae, "scaling_factor").unwrap_or(0.18215) as f32,
            shift_factor: number(&vae, "shift_factor").unwrap_or(0.0) as f32,
            tokens: number(&text, "max_position_embeddings")
                .map_or(77, |tokens| tokens as usize)
                .clamp(3, 1024),
            tokenizer,
            origin: parts.origin,
            base: Rc::new(Bound {
                adapters: String::new(),
                text: Rc::from(parts.text),
                unet: Rc::from(parts.unet),
            }),
            sets: VecDeque::new(),
            texts: VecDeque::new(),
            vae_decoder: parts.vae_decoder,
            vae_encoder: OnceCell::new(),
            late_encoder: parts.late_encoder,
        })
    }
}

fn bind(engine: &dyn Engine, layout: &Component, weights: Vec<u8>) -> Result<Box<dyn Graph>, Failure> {
    engine
        .bind(Source::Bound {
            graph: &layout.graph,
            weights,
        })
        .map_err(|error| {
            detailed(
                error.outcome(),
                "a graph could not be bound",
                format!("{}: {error}", layout.graph.display()),
            )
        })
}

fn diffusers(
    engine: &dyn Engine,
    load: &Load,
    configs: &BTreeMap<String, Value>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Parts, Failure> {
    let spec = &load.model;
    let folder = spec
        .components
        .get("graphs")
        .or_else(|| spec.components.get("root"));
    let folder = folder.ok_or_else(|| bad_model("the model has a part missing", "no component `graphs`"))?;
    let architecture = graphs::find(Path::new(folder), configs)?;
    let layout = |name: &str| architecture.component(name).cloned();
    let (text_layout, unet_layout) = (layout("text_encoder")?, layout("unet")?);
    let (decoder_layout, encoder_layout) = (layout("vae_decoder")?, layout("vae_encoder")?);
    let text = Weights::open(&place(spec, "text_encoder")?)?;
    let unet = Weights::open(&place(spec, "unet")?)?;
    let vae = Weights::open(&place(spec, "vae")?)?;
    // What is wrong anywhere is said before anything is converted.
    text.check(&text_layout)?;
    unet.check(&unet_layout)?;
    vae.check(&decoder_layout)?;
    vae.check(&encoder_layout)?;
    let total = (text_layout.bytes + unet_layout.bytes + decoder_layout.bytes + encoder_layout.bytes) as u64;
    if load.budget_bytes > 0 && total > load.budget_bytes {
        return Err(detailed(
            Outcome::OutOfMemory,
            "the model does not fit its budget",
            format!(
                "{total} bytes of f32 are needed, {} are granted",
                load.budget_bytes
            ),
        ));
    }
    // The small parts beside the large one, because a start to the first picture waits for this; so the phases overlap, and the
    // longest of each is told.
    let mut done = 0;
    let mut told = |part: &Made| {
        done += part.bytes;
        progress(done, total);
    };
    let make_text = || make(engine, &text, &text_layout);
    let make_decoder = || make(engine, &vae, &decoder_layout);
    let (text_made, unet_made, decoder_made) = thread::scope(|scope| {
        let side_by_side = total <= SIDE_BY_SIDE_MOST_BYTES;
        // Where no thread can be had either, they follow.
        let text = side_by_side.then(|| Builder::new().spawn_scoped(scope, make_text).ok());
        let decoder = side_by_side.then(|| Builder::new().spawn_scoped(scope, make_decoder).ok());
        let unet = make(engine, &unet, &unet_layout).inspect(&mut told);
        let text = text.flatten().map_or_else(make_text, joined).inspect(&mut told);
        let decoder = decoder
            .flatten()
            .map_or_else(make_decoder, joined)
            .inspect(&mut told);
        Ok::<_, Failure>((text?, unet?, decoder?))
    })?;
    let parts = [&text_made, &unet_made, &decoder_made];
    let longest = |phase: fn(&Made) -> f64| parts.into_iter().map(phase).fold(0.0, f64::max);
    let phases_ms = BTreeMap::from([
        ("convert".into(), longest(|part| part.convert_ms)),
        ("upload".into(), longest(|part| part.upload_ms)),
    ]);
    Ok(Parts {
        text: text_made.graph,
        unet: unet_made.graph,
        vae_decoder: decoder_made.graph,
        late_encoder: Box::new(move |engine| {
            bind(engine, &encoder_layout, vae.fill(&encoder_layout, |_, _| Ok(()))?)
        }),
        origin: Origin::Safetensors {
            text,
            unet,
            text_layout,
            unet_layout,
        },
        bytes: done,
        phases_ms,
    })
}

/// A part of a model, ready to run.
struct Made {
    graph: Box<dyn Graph>,
    bytes: u64,
    convert_ms: f64,
    upload_ms: f64,
}

fn make(engine: &dyn Engine, weights: &Weights, layout: &Component) -> Result<Made, Failure> {
    let started = Instant::now();
    let bytes = weights.fill(layout, |_, _| Ok(()))?;
    let convert_ms = ms(started);
    let started = Instant::now();
    Ok(Made {
        graph: bind(engine, layout, bytes)?,
        bytes: layout.bytes as u64,
        convert_ms,
        upload_ms: ms(started),
    })
}

fn joined(part: ScopedJoinHandle<'_, Result<Made, Failure>>) -> Result<Made, Failure> {
    // As on the thread that loads: the process says it and ends.
    part.join().unwrap_or_else(|panic| resume_unwind(panic))
}

fn optimum(
    engine: &dyn Engine,
    spec: &ModelSpec,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Parts, Failure> {
    let file = |role: &str| {
        let place = place(spec, role)?;
        let file = if place.is_dir() {
            place.join("model.onnx")
        } else {
            place
        };
        match std::fs::metadata(&file) {
            Ok(metadata) => Ok((file, metadata.len())),
            Err(error) => Err(bad_model(
                "the model has a part missing",
                format!("{}: {error}", file.display()),
            )),
        }
    };
    let started = Instant::now();
    let open = |engine: &dyn Engine, path: &Path| {
        engine.bind(Source::Plain(path)).map_err(|error| {
            bad_model(
                "an ONNX file cannot be used",
                format!("{}: {error}", path.display()),
            )
        })
    };
    let (text, unet, decoder) = (file("text_encoder")?, file("unet")?, file("vae_decoder")?);
    let encoder = file("vae_encoder")?;
    let total = text.1 + unet.1 + decoder.1;
    let text_graph = open(engine, &text.0)?;
    progress(text.1, total);
    let unet_graph = open(engine, &unet.0)?;
    progress(text.1 + unet.1, total);
    let vae_decoder = open(engine, &decoder.0)?;
    progress(total, total);
    Ok(Parts {
        text: text_graph,
        unet: unet_graph,
        vae_decoder,
        late_encoder: Box::new(move |engine| open(engine, &encoder.0)),
        origin: Origin::Onnx,
        bytes: total,
        phases_ms: BTreeMap::from([("upload".into(), ms(started))]),
    })
}
