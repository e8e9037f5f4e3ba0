//! Bad input ends here, with a code, a field, the allowed range and advice. Pure: what it needs to know it is given.

use calotype_protocol::{Capabilities, Mode, Sampler, Schedule};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::images::{Inputs, input};
use super::{GenerateRequest, Lack, Needs, Plan, PlannedLora, control, extras, not_served, parts, prompt};
use crate::error::{Code, Error};
use crate::model::{Catalogue, ModelRecord, Preset, nearest, usual};

const PROMPT_CHARS: usize = 32_000;
const MOST_STEPS: u32 = 150;
const MOST_GUIDANCE: f32 = 30.0;
const MOST_IMAGES: u32 = 8;
/// CLIP's smaller text encoder has 12 layers, and one must be left.
const MOST_CLIP_SKIP: u32 = 11;
const MOST_LORAS: usize = 16;
const MOST_LORA_WEIGHT: f32 = 4.0;
const LEAST_EDGE: u32 = 64;
/// Largest edge while there is a worker that has not said its own.
const MOST_EDGE: u32 = 2048;
const DEFAULT_STRENGTH: f32 = 0.75;
const DEFAULT_QUALITY: u8 = 90;

/// What the workers here can do, together and each.
#[derive(Debug, Clone, PartialEq)]
pub struct Abilities {
    /// Samplers.
    pub samplers: Vec<Sampler>,
    /// Schedules.
    pub schedules: Vec<Schedule>,
    /// Modes.
    pub modes: Vec<Mode>,
    /// Largest edge of an image.
    pub max_edge: u32,
    /// Each worker that has said what it can do.
    pub workers: Vec<(String, Capabilities)>,
    /// Whether there is one that has not: what the others lack may be in it.
    pub unknown: bool,
}

impl Abilities {
    /// Of workers by name. With one that has not said what it can do, everything is possible.
    pub fn of(workers: Vec<(String, Capabilities)>, unknown: bool) -> Self {
        fn union<T: Copy + PartialEq>(
            all: &[T],
            unknown: bool,
            workers: &[(String, Capabilities)],
            list: impl Fn(&Capabilities) -> &Vec<T>,
        ) -> Vec<T> {
            let has = |one: &&T| unknown || workers.iter().any(|(_, can)| list(can).contains(one));
            all.iter().filter(has).copied().collect()
        }
        let own_edge = workers.iter().map(|(_, can)| can.max_edge).max().unwrap_or(0);
        Self {
            samplers: union(Sampler::ALL, unknown, &workers, |can| &can.samplers),
            schedules: union(Schedule::ALL, unknown, &workers, |can| &can.schedules),
            modes: union(Mode::ALL, unknown, &workers, |can| &can.modes),
            max_edge: if unknown {
                own_edge.max(MOST_EDGE)
            } else {
                own_edge
            },
            workers,
            unknown,
        }
    }

    /// Of the native worker.
    #[cfg(test)]
    pub(crate) fn native() -> Self {
        let can = Capabilities {
            engine: "rten".into(),
            families: vec!["sd".into()],
            formats: vec!["graphs".into(), "onnx".into()],
            work: vec!["generate".into()],
            modes: Mode::ALL.to_vec(),
            samplers: vec![
                Sampler::Ddim,
                Sampler::Euler,
                Sampler::EulerAncestral,
                Sampler::Heun,
                Sampler::DpmPp2m,
                Sampler::DpmPp2mSde,
                Sampler::UniPc,
                Sampler::Lcm,
            ],
            schedules: vec![Schedule::Default, Schedule::Karras],
            adapters: vec!["lora".into()],
            plans: Vec::new(),
            segments: false,
            max_batch: 4,
            pauses: true,
            previews: true,
            max_edge: 1024,
        };
        Self::of(vec![("cpu0-native".into(), can)], false)
    }

    /// Refuses what no worker has at all, before it is looked at any closer.
    fn have(&self, request: &GenerateRequest) -> Result<(), Error> {
        let asked = [
            (
                "control",
                "controlnet",
                request.control.as_ref().is_some_and(|units| !units.is_empty()),
            ),
            ("refiner", "refiner", request.refiner.is_some()),
            ("hires", "hires", request.hires.is_some()),
        ];
        let has = |name: &str| {
            let own = |can: &Capabilities| can.adapters.iter().any(|adapter| adapter == name);
            self.unknown || self.workers.iter().any(|(_, can)| own(can))
        };
        match asked.into_iter().find(|(_, name, asked)| *asked && !has(name)) {
            None => Ok(()),
            Some((field, name, _)) => {
                let words = format!("has no {name}");
                let lacks = self.workers.iter().map(|(worker, _)| {
                    let words = words.clone();
                    (worker.clone(), Lack { field, words })
                });
                Err(not_served(&lacks.collect::<Vec<_>>()).field(field))
            }
        }
    }

    /// Whether a worker can do all of it, or what each of them lacks.
    fn serve(&self, needs: &Needs) -> Result<(), Error> {
        let lacks: Vec<_> = self
            .workers
            .iter()
            .filter_map(|(name, can)| Some((name.clone(), needs.lack(can)?)))
            .collect();
        if self.unknown || lacks.len() < self.workers.len() {
            return Ok(());
        }
        Err(not_served(&lacks))
    }
}

/// Something that is accepted although it may not be meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Warning {
    /// Which field.
    pub field: String,
    /// What about it.
    pub message: String,
}

/// A plan with what came along.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// Everything decided; the hashes of its images are set once they are kept.
    pub plan: Plan,
    /// What may not be meant.
    pub warnings: Vec<Warning>,
    /// The images.
    pub inputs: Inputs,
}

/// Decides everything about a request, or says what is wrong with it.
pub(crate) fn plan(
    request: &GenerateRequest,
    catalogue: &Catalogue,
    abilities: &Abilities,
    random_seed: u64,
) -> Result<Planned, Error> {
    abilities.have(request)?;
    text("prompt", &request.prompt)?;
    let negative_prompt = request.negative_prompt.clone().unwrap_or_default();
    text("negative_prompt", &negative_prompt)?;
    let model = match &request.model {
        Some(name) => catalogue.model(name)?,
        None => catalogue.default_model()?,
    };
    usable(model, "model")?;
    let mut warnings = Vec::new();
    let (preset_name, preset) = preset(request, model)?;
    let usual = usual(model);
    let sampler = one_of(
        "sampler",
        request
            .sampler
            .as_deref()
            .or(preset.sampler.as_deref())
            .unwrap_or(usual.sampler),
        &abilities.samplers,
        Sampler::from_name,
        Sampler::name,
    )?;
    let schedule = one_of(
        "schedule",
        request
            .schedule
            .as_deref()
            .or(preset.schedule.as_deref())
            .unwrap_or("default"),
        &abilities.schedules,
        Schedule::from_name,
        Schedule::name,
    )?;
    let steps = within(
        "steps",
        request.steps.or(preset.steps).unwrap_or(usual.steps),
        1,
        MOST_STEPS,
    )?;
    let guidance = fraction(
        "guidance",
        request.guidance.or(preset.guidance).unwrap_or(usual.guidance),
        0.0,
        MOST_GUIDANCE,
    )?;
    let count = within("count", request.count.unwrap_or(1), 1, MOST_IMAGES)?;
    let first_seed = request.seed.unwrap_or(random_seed);
    let last_seed = first_seed.checked_add(u64::from(count) - 1).ok_or_else(|| {
        Error::invalid(
            "seed",
            format!("seed + count must stay below 2^64, {first_seed} + {count} does not"),
        )
    })?;
    let (mode, mut inputs) = mode(request, abilities)?;
    let edge = |field, asked: Option<u32>, default| {
        edge(
            field,
            asked.unwrap_or(default),
            model.size_multiple,
            abilities.max_edge,
        )
    };
    let width = edge("width", request.width, model.size.0)?;
    let height = edge("height", request.height, model.size.1)?;
    let strength = fraction("strength", request.strength.unwrap_or(DEFAULT_STRENGTH), 0.0, 1.0)?;
    if mode != Mode::TextToImage && steps_kept(steps, strength) < 1.0 {
        return Err(Error::invalid(
            "strength",
            format!("{steps} steps at strength {strength} leave no step to run"),
        )
        .advice("raise strength or steps, so that their product is 1 at least"));
    }
    let hires = extras::hires(
        request,
        (width, height),
        steps,
        model.size_multiple,
        abilities.max_edge,
    )?;
    let units = control::units(request, model, catalogue)?;
    let (control, images): (Vec<_>, Vec<_>) = units.into_iter().unzip();
    inputs.control = images;
    let mask_treatment = extras::mask(request)?;
    if hires.is_some() && mode == Mode::Inpaint {
        return Err(
            Error::invalid("hires", "an inpainting has no second pass").advice(
                "leave hires out; mask_area `masked` samples the part around the mask at the full size",
            ),
        );
    }
    let loras = loras(request, preset, sampler, model, catalogue, &mut warnings)?;
    if !prompt::parse(&negative_prompt).loras.is_empty() {
        warnings.push(warning(
            "negative_prompt",
            "the LoRAs that it names are left out: a LoRA is for the whole picture",
        ));
    }
    if guidance <= 1.0 && !negative_prompt.is_empty() {
        warnings.push(warning(
            "negative_prompt",
            "it has no effect at guidance 1 or below; the preset `quality` uses more",
        ));
    }
    let parts = parts::parts(request, model, catalogue)?;
    let embeddings = extras::embeddings([&request.prompt, &negative_prompt], model, catalogue);
    let plan = Plan {
        model: model.id.clone(),
        preset: preset_name,
        mode,
        prompt: request.prompt.clone(),
        negative_prompt,
        width,
        height,
        steps,
        guidance,
        sampler,
        schedule,
        seeds: (first_seed..=last_seed).collect(),
        loras,
        init_image: None,
        mask: None,
        strength,
        clip_skip: within("clip_skip", request.clip_skip.unwrap_or(0), 0, MOST_CLIP_SKIP)?,
        preview_every: within("preview_every", request.preview_every.unwrap_or(0), 0, MOST_STEPS)?,
        format: request.format.unwrap_or_default(),
        quality: within("quality", request.quality.unwrap_or(DEFAULT_QUALITY), 1, 100)?,
        control,
        vae: parts.vae,
        text_encoders: parts.text_encoders,
        refiner: extras::refiner(request, model, catalogue)?,
        hires,
        variation: extras::variation(request, random_seed.rotate_left(17))?,
        mask_treatment,
        embeddings,
        latent_channels: model.latent_channels,
        latent_factor: model.latent_factor,
    };
    abilities.serve(&Needs::of(&plan, catalogue)?)?;
    Ok(Planned {
        plan,
        warnings,
        inputs,
    })
}

/// Whether a record of the catalogue can be used at all.
pub(super) fn usable(record: &ModelRecord, field: &str) -> Result<(), Error> {
    match &record.problem {
        None => Ok(()),
        Some(problem) => {
            let message = format!("{} cannot be used: {problem}", record.id);
            Err(Error::new(Code::ModelUnusable, message).field(field))
        }
    }
}

fn warning(field: &str, message: impl Into<String>) -> Warning {
    Warning {
        field: field.into(),
        message: message.into(),
    }
}

/// By way of the shortest decimal, as the worker counts: 0.7 of 10 steps are 7, though the nearest `f32` lies below 0.7.
fn steps_kept(steps: u32, strength: f32) -> f64 {
    f64::from(steps) * strength.to_string().parse::<f64>().unwrap_or(1.0)
}

fn text(field: &str, text: &str) -> Result<(), Error> {
    let chars = text.chars().count();
    if chars > PROMPT_CHARS {
        return Err(Error::invalid(
            field,
            format!("{chars} characters, at most {PROMPT_CHARS} are taken"),
        ));
    }
    if text.contains('\0') {
        return Err(Error::invalid(field, "it holds a NUL character"));
    }
    Ok(())
}

fn preset<'a>(
    request: &GenerateRequest,
    model: &'a ModelRecord,
) -> Result<(Option<String>, &'a Preset), Error> {
    static NONE: Preset = Preset {
        loras: Vec::new(),
        sampler: None,
        schedule: None,
        steps: None,
        guidance: None,
    };
    let Some(name) = request.preset.as_ref().or(model.default_preset.as_ref()) else {
        return Ok((None, &NONE));
    };
    match model.presets.get(name) {
        Some(preset) => Ok((Some(name.clone()), preset)),
        None => Err(
            Error::invalid("preset", format!("{} has no preset `{}`", model.id, short(name)))
                .advice(nearest(name, model.presets.keys().map(String::as_str))),
        ),
    }
}

fn short(text: &str) -> String {
    text.chars().take(100).collect()
}

fn one_of<T: Copy + PartialEq>(
    field: &str,
    name: &str,
    served: &[T],
    from_name: impl Fn(&str) -> Option<T>,
    name_of: impl Fn(T) -> &'static str,
) -> Result<T, Error> {
    let names = || served.iter().map(|one| name_of(*one));
    match from_name(name) {
        Some(known) if served.contains(&known) => Ok(known),
        Some(_) => Err(Error::new(
            Code::NotSupported,
            format!("no worker here has the {field} `{name}`"),
        )
        .field(field)
        .advice(format!("there are: {}", names().collect::<Vec<_>>().join(", ")))),
        None => Err(
            Error::invalid(field, format!("unknown {field} `{}`", short(name)))
                .advice(nearest(name, names())),
        ),
    }
}

pub(super) fn within<T: PartialOrd + std::fmt::Display>(
    field: &str,
    value: T,
    least: T,
    most: T,
) -> Result<T, Error> {
    if value < least || value > most {
        return Err(Error::invalid(
            field,
            format!("{value} is out of range, {least} to {most} are allowed"),
        ));
    }
    Ok(value)
}

pub(super) fn fraction(field: &str, value: f32, least: f32, most: f32) -> Result<f32, Error> {
    if !value.is_finite() {
        return Err(Error::invalid(
            field,
            format!("it must be a number from {least} to {most}"),
        ));
    }
    within(field, value, least, most)
}

pub(super) fn edge(field: &str, edge: u32, multiple: u32, most: u32) -> Result<u32, Error> {
    let multiple = multiple.max(1);
    if edge < LEAST_EDGE || edge > most || !edge.is_multiple_of(multiple) {
        let below = (edge.clamp(LEAST_EDGE, most.max(LEAST_EDGE)) / multiple) * multiple;
        let near = below.max(LEAST_EDGE.next_multiple_of(multiple));
        let message =
            format!("{edge} is not allowed: multiples of {multiple} from {LEAST_EDGE} to {most} are");
        return Err(Error::invalid(field, message).advice(format!("{near} would do")));
    }
    Ok(edge)
}

fn mode(request: &GenerateRequest, abilities: &Abilities) -> Result<(Mode, Inputs), Error> {
    let implied = match (&request.init_image, &request.mask) {
        (None, None) => Mode::TextToImage,
        (Some(_), None) => Mode::ImageToImage,
        (Some(_), Some(_)) => Mode::Inpaint,
        (None, Some(_)) => {
            return Err(
                Error::invalid("mask", "a mask needs an image to repaint").advice("send init_image too")
            );
        }
    };
    let mode = request.mode.unwrap_or(implied);
    if mode != implied {
        let message = format!(
            "`{}` does not go with the images given, `{}` does",
            mode.name(),
            implied.name()
        );
        return Err(
            Error::invalid("mode", message).advice("leave mode out, or send init_image and mask to match")
        );
    }
    if !abilities.modes.contains(&mode) {
        return Err(Error::new(
            Code::NotSupported,
            format!("no worker here can do {}", mode.name()),
        )
        .field("mode"));
    }
    let image = |text: &Option<String>, field| text.as_deref().map(|text| input(text, field)).transpose();
    Ok((
        mode,
        Inputs {
            init_image: image(&request.init_image, "init_image")?,
            mask: image(&request.mask, "mask")?,
            control: Vec::new(),
        },
    ))
}

/// The preset's LoRAs, the request's, and those that its prompt names, in this order. The preset's go where they would
/// do harm: an LCM LoRA draws nothing good with another sampler than the preset's.
fn loras(
    request: &GenerateRequest,
    preset: &Preset,
    sampler: Sampler,
    model: &ModelRecord,
    catalogue: &Catalogue,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<PlannedLora>, Error> {
    let emptied = request.loras.as_ref().is_some_and(Vec::is_empty);
    let same_sampler = preset
        .sampler
        .as_deref()
        .is_none_or(|name| name == sampler.name());
    let mut asked: Vec<(String, String, f32)> = Vec::new();
    if !emptied && same_sampler {
        asked.extend(
            preset
                .loras
                .iter()
                .map(|lora| ("preset".to_owned(), lora.name.clone(), lora.weight)),
        );
    } else if !emptied && !preset.loras.is_empty() {
        warnings.push(warning(
            "sampler",
            "the LoRAs of the preset were left out: they belong to its own sampler",
        ));
    }
    let own = request.loras.as_deref().unwrap_or_default();
    if own.len() > MOST_LORAS {
        return Err(Error::invalid(
            "loras",
            format!("{} LoRAs, at most {MOST_LORAS} are taken", own.len()),
        ));
    }
    for (index, lora) in own.iter().enumerate() {
        let weight = lora.weight.unwrap_or(1.0);
        fraction(
            &format!("loras[{index}].weight"),
            weight,
            -MOST_LORA_WEIGHT,
            MOST_LORA_WEIGHT,
        )?;
        asked.push((format!("loras[{index}].name"), lora.name.clone(), weight));
    }
    let prompt = prompt::parse(&request.prompt);
    if own.len() + prompt.loras.len() > MOST_LORAS {
        let message = format!("with those in it there are more than {MOST_LORAS} LoRAs, which is the most");
        return Err(Error::invalid("prompt", message));
    }
    for tag in &prompt.loras {
        if tag.weight.abs() > MOST_LORA_WEIGHT {
            let message = format!(
                "the weight {} of <lora:{}> is out of range, -{MOST_LORA_WEIGHT} to {MOST_LORA_WEIGHT} are allowed",
                tag.weight,
                short(&tag.name)
            );
            return Err(Error::invalid("prompt", message));
        }
        asked.push(("prompt".to_owned(), tag.name.clone(), tag.weight));
    }
    let mut planned: Vec<PlannedLora> = Vec::new();
    for (field, name, weight) in asked {
        let record = catalogue
            .lora(&name)
            .map_err(|error| error.field(field.clone()))?;
        usable(record, &field)?;
        extras::fits(record, model, &field)?;
        if let Some(base) = record
            .base
            .as_ref()
            .filter(|base| base.as_str() != model.id.as_str())
        {
            return Err(Error::invalid(
                field,
                format!("{name} is made for {base}, not for {}", model.id),
            ));
        }
        match planned.iter_mut().find(|lora| lora.id == record.id) {
            Some(known) => known.weight = weight,
            None => planned.push(PlannedLora {
                id: record.id.clone(),
                weight,
            }),
        }
    }
    planned.retain(|lora| lora.weight != 0.0);
    let prompt = prompt.text().to_lowercase();
    for lora in &planned {
        let record = catalogue.lora(lora.id.as_str())?;
        if let Some(trigger) = record
            .trigger
            .as_ref()
            .filter(|trigger| !prompt.contains(&trigger.to_lowercase()))
        {
            warnings.push(warning(
                "prompt",
                format!("{} works best with `{trigger}` in the prompt", record.name),
            ));
        }
    }
    Ok(planned)
}

#[cfg(test)]
mod tests;
