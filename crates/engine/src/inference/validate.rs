//! Bad input ends here, with a code, a field, the allowed range and advice. Pure: what it needs to know it is given.

use calotype_protocol::{Mode, Sampler, Schedule};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::images::{Inputs, input};
use super::loras::loras;
use super::{Abilities, GenerateRequest, Needs, Plan, control, extras, parts, prompt};
use crate::error::{Code, Error};
use crate::model::{Catalogue, ModelRecord, Preset, nearest, usual};

const PROMPT_CHARS: usize = 32_000;
const MOST_STEPS: u32 = 150;
const MOST_GUIDANCE: f32 = 30.0;
const MOST_IMAGES: u32 = 8;
/// CLIP's smaller text encoder has 12 layers, and one must be left.
const MOST_CLIP_SKIP: u32 = 11;
const LEAST_EDGE: u32 = 64;
const DEFAULT_STRENGTH: f32 = 0.75;
const DEFAULT_QUALITY: u8 = 90;

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

pub(super) fn warning(field: &str, message: impl Into<String>) -> Warning {
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

pub(super) fn short(text: &str) -> String {
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

#[cfg(test)]
mod tests;
