//! What a job asks of a worker, and what a worker lacks for it. Pure.

use std::fmt::Write as _;
use std::sync::Arc;

use calotype_protocol::{Capabilities, Mode, ModelId, Sampler, Schedule};

use super::Plan;
use crate::error::{Code, Error};
use crate::memory::memory_plan::Precision;
use crate::model::Catalogue;

/// What a worker must be able to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Needs {
    /// Family of each model that must be resident.
    pub families: Vec<String>,
    /// Formats in which the model can be had; one of them is enough.
    pub formats: Vec<String>,
    /// Mode of the generation.
    pub mode: Mode,
    /// Its sampler.
    pub sampler: Sampler,
    /// Its schedule.
    pub schedule: Schedule,
    /// Kinds of adapters.
    pub adapters: Vec<String>,
    /// The longer edge of its images, in pixels.
    pub edge: u32,
}

impl Needs {
    /// Of a plan. An error where its model is no longer in the catalogue.
    pub(crate) fn of(plan: &Plan, catalogue: &Catalogue) -> Result<Self, Error> {
        // With the parts that take the place of its own.
        let model = catalogue.loadable(plan.resident().as_str())?;
        let mut families = vec![model.family.clone()];
        let preprocessed = plan.control.iter().any(|unit| unit.preprocessor_model.is_some());
        let asked = [
            ("lora", !plan.loras.is_empty()),
            ("embedding", !plan.embeddings.is_empty()),
            ("controlnet", !plan.control.is_empty()),
            (
                "controlnet_modes",
                plan.control.iter().any(|unit| !unit.mode.is_balanced()),
            ),
            ("preprocessor", preprocessed),
            // One layer is what the graphs of the native worker have an output for.
            ("clip_skip", plan.clip_skip > 1),
            ("refiner", plan.refiner.is_some()),
            ("hires", plan.hires.is_some()),
            ("inpaint_unet", model.unet_channels != model.latent_channels),
        ];
        let adapters = asked.into_iter().filter(|(_, asked)| *asked);
        let adapters = adapters.map(|(name, _)| name.to_owned()).collect();
        if !plan.control.is_empty() {
            families.push("controlnet".into());
        }
        if preprocessed {
            families.push("preprocessor".into());
        }
        if let Some(refiner) = &plan.refiner {
            families.push(catalogue.model(refiner.model.as_str())?.family.clone());
        }
        let (width, height) = plan.final_size();
        Ok(Self {
            families,
            formats: model.formats(),
            mode: plan.mode,
            sampler: plan.sampler,
            schedule: plan.schedule,
            adapters,
            edge: width.max(height),
        })
    }

    /// Of a job that will not be run.
    pub(crate) fn nothing() -> Self {
        Self {
            families: Vec::new(),
            formats: Vec::new(),
            mode: Mode::TextToImage,
            sampler: Sampler::Euler,
            schedule: Schedule::Default,
            adapters: Vec::new(),
            edge: 0,
        }
    }

    /// Of the model that makes the pictures; empty where nothing will be run.
    pub fn family(&self) -> &str {
        self.families.first().map_or("", String::as_str)
    }

    /// The first thing that a worker with these capabilities lacks.
    pub fn missing_feature(&self, can: &Capabilities) -> Option<MissingFeature> {
        let lack = |field, words: String| Some(MissingFeature { field, words });
        if !can.modes.contains(&self.mode) {
            return lack("mode", format!("has no {}", self.mode.name()));
        }
        if !can.samplers.contains(&self.sampler) {
            return lack("sampler", format!("has no sampler `{}`", self.sampler.name()));
        }
        if !can.schedules.contains(&self.schedule) {
            return lack("schedule", format!("has no schedule `{}`", self.schedule.name()));
        }
        if let Some(adapter) = self
            .adapters
            .iter()
            .find(|adapter| !can.adapters.contains(adapter))
        {
            let field = match adapter.as_str() {
                "lora" => "loras",
                "controlnet" | "controlnet_modes" | "preprocessor" => "control",
                "clip_skip" => "clip_skip",
                "refiner" => "refiner",
                "hires" => "hires",
                "inpaint_unet" => "model",
                _ => "prompt",
            };
            return lack(field, format!("has no {adapter}"));
        }
        if let Some(family) = self.families.iter().find(|family| !can.families.contains(family)) {
            return lack("model", format!("has no models of the family `{family}`"));
        }
        if !self.formats.iter().any(|format| can.formats.contains(format)) {
            let (takes, comes) = (can.formats.join(" or "), self.formats.join(" or "));
            return lack(
                "model",
                format!("takes models as {takes}, this one comes as {comes}"),
            );
        }
        if self.edge > can.max_edge {
            let (most, edge) = (can.max_edge, self.edge);
            return lack(
                "width",
                format!("makes edges of {most} pixels at most, {edge} are asked for"),
            );
        }
        None
    }
}

/// A model that a job needs, with what its weights take.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelNeed {
    /// The model, as the catalogue calls it.
    pub model: ModelId,
    /// Bytes of its weights where a device computes in single precision, estimated.
    pub single_bytes: u64,
    /// Likewise in half precision.
    pub half_bytes: u64,
}

impl ModelNeed {
    /// Of all models of a plan, the one that makes the pictures first.
    pub(crate) fn all_of(plan: &Plan, catalogue: &Catalogue) -> Result<Vec<Self>, Error> {
        let need = |model: ModelId| {
            let found = catalogue.loadable(model.as_str())?;
            Ok(Self {
                single_bytes: found.resident_bytes_estimate(Precision::Single),
                half_bytes: found.resident_bytes_estimate(Precision::Half),
                model,
            })
        };
        plan.models().into_iter().map(need).collect()
    }

    /// Of several together.
    pub fn sum(needs: &[Self], precision: Precision) -> u64 {
        let bytes = needs.iter().map(|need| need.weights_bytes(precision));
        bytes.fold(0, u64::saturating_add)
    }

    /// On a device of this precision.
    pub fn weights_bytes(&self, precision: Precision) -> u64 {
        match precision {
            Precision::Single => self.single_bytes,
            Precision::Half => self.half_bytes,
        }
    }
}

/// The LoRAs that a job lays on its model. What they change lies beside the plain weights as long as a job uses it, once
/// for all jobs with the same set.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AdapterNeed {
    /// The model with the set, each LoRA with its weight.
    pub set: Arc<str>,
    /// Elements of the weights that are changed, at most.
    elements: u64,
}

impl AdapterNeed {
    /// Of a plan; `None` where it has no LoRAs.
    pub(crate) fn of(plan: &Plan, catalogue: &Catalogue) -> Result<Option<Self>, Error> {
        if plan.loras.is_empty() {
            return Ok(None);
        }
        let (mut set, mut elements) = (plan.resident().to_string(), 0u64);
        for lora in &plan.loras {
            let _ = write!(set, " {}:{}", lora.id, lora.weight);
            elements = elements.saturating_add(catalogue.lora(lora.id.as_str())?.lora_elements);
        }
        // Two that change the same weights need one copy.
        let whole = catalogue.loadable(plan.resident().as_str())?.parameters;
        Ok(Some(Self {
            set: set.into(),
            elements: elements.min(whole),
        }))
    }

    /// On a device of this precision.
    pub fn bytes(&self, precision: Precision) -> u64 {
        self.elements.saturating_mul(precision.bytes())
    }

    /// For tests.
    #[cfg(test)]
    pub(crate) fn new(set: &str, elements: u64) -> Self {
        Self {
            set: set.into(),
            elements,
        }
    }
}

/// What a worker lacks for a job.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MissingFeature {
    /// The field of the request that asks for it.
    pub field: &'static str,
    /// The end of a sentence that begins with the worker's name.
    pub words: String,
}

/// The error for a job that none of the workers can do: each by its name with what it lacks.
pub(crate) fn not_served(lacks: &[(String, MissingFeature)]) -> Error {
    let each: Vec<String> = lacks
        .iter()
        .map(|(name, lack)| format!("{name} {}", lack.words))
        .collect();
    let error = Error::new(Code::NotSupported, format!("no worker here can do this: {}", each.join("; "))).advice(
        "`calotype doctor` says which runtimes are here; `calotype setup python` installs the one for PyTorch models",
    );
    match lacks.last() {
        Some((_, lack)) => error.field(lack.field),
        None => error,
    }
}
