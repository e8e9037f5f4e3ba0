//! What a request may ask for beyond a prompt: a refiner, a second pass, a variation, embeddings, and how its mask is
//! treated. Pure, as `validate` is, which calls it. ControlNets are in `control`, parts of a model in `parts`.

use calotype_protocol::Hires;

use super::plan::{MaskTreatment, PlannedEmbedding, PlannedRefiner, Variation};
use super::request::{GenerateRequest, HiresRequest, MaskArea};
use super::validate::{edge, fraction, usable, within};
use crate::error::Error;
use crate::model::{Catalogue, ModelRecord};

const MOST_BLUR_PIXELS: f32 = 256.0;
const MOST_DILATE_PIXELS: i32 = 512;
const MOST_PADDING_PIXELS: u32 = 1024;
const DEFAULT_PADDING_PIXELS: u32 = 32;
const DEFAULT_HIRES_STRENGTH: f32 = 0.5;
const DEFAULT_SWITCH: f32 = 0.8;

/// The model that takes over for the last steps.
pub(super) fn refiner(
    request: &GenerateRequest,
    model: &ModelRecord,
    catalogue: &Catalogue,
) -> Result<Option<PlannedRefiner>, Error> {
    let Some(asked) = &request.refiner else {
        return Ok(None);
    };
    let record = catalogue
        .model(&asked.model)
        .map_err(|error| error.field("refiner.model"))?;
    usable(record, "refiner.model")?;
    if record.latent_channels != model.latent_channels || record.latent_factor != model.latent_factor {
        let message = format!("{} has other latents than {}", record.id, model.id);
        return Err(Error::invalid("refiner.model", message));
    }
    Ok(Some(PlannedRefiner {
        model: record.id.clone(),
        switch_at: fraction(
            "refiner.switch_at",
            asked.switch_at.unwrap_or(DEFAULT_SWITCH),
            0.0,
            1.0,
        )?,
    }))
}

/// The second pass; `size` and `steps` are those of the first.
pub(super) fn hires(
    request: &GenerateRequest,
    size: (u32, u32),
    steps: u32,
    multiple: u32,
    most_edge: u32,
) -> Result<Option<Hires>, Error> {
    let Some(asked) = &request.hires else {
        return Ok(None);
    };
    let HiresRequest {
        scale,
        width,
        height,
        steps: own_steps,
        strength,
        upscaler,
    } = asked;
    if scale.is_some() && (width.is_some() || height.is_some()) {
        let message = "give a scale, or a width and a height";
        return Err(Error::invalid("hires.scale", message));
    }
    let scale = fraction("hires.scale", scale.unwrap_or(2.0), 1.0, 8.0)?;
    let scaled = |edge: u32| {
        let wanted = (edge as f32 * scale) as u32;
        wanted / multiple.max(1) * multiple.max(1)
    };
    let width = edge(
        "hires.width",
        width.unwrap_or(scaled(size.0)),
        multiple,
        most_edge,
    )?;
    let height = edge(
        "hires.height",
        height.unwrap_or(scaled(size.1)),
        multiple,
        most_edge,
    )?;
    if width < size.0 || height < size.1 {
        let message = format!("{width}x{height} is smaller than the first pass");
        return Err(Error::invalid("hires", message));
    }
    Ok(Some(Hires {
        width,
        height,
        steps: within("hires.steps", own_steps.unwrap_or(steps), 1, 150)?,
        strength: fraction(
            "hires.strength",
            strength.unwrap_or(DEFAULT_HIRES_STRENGTH),
            0.0,
            1.0,
        )?,
        upscaler: upscaler.unwrap_or_default(),
    }))
}

/// Noise of another seed, mixed in.
pub(super) fn variation(request: &GenerateRequest, random_seed: u64) -> Result<Option<Variation>, Error> {
    let strength = request.variation_strength.unwrap_or(0.0);
    let strength = fraction("variation_strength", strength, 0.0, 1.0)?;
    if strength == 0.0 {
        return Ok(None);
    }
    let count = u64::from(request.count.unwrap_or(1));
    let seed = request.variation_seed.unwrap_or(random_seed);
    if seed.checked_add(count).is_none() {
        let message = format!("variation_seed + count must stay below 2^64, {seed} + {count} does not");
        return Err(Error::invalid("variation_seed", message));
    }
    Ok(Some(Variation { seed, strength }))
}

/// How the mask is treated. A field without a mask is an error: it would do nothing.
pub(super) fn mask(request: &GenerateRequest) -> Result<MaskTreatment, Error> {
    let asked = [
        ("mask_blur", request.mask_blur.is_some()),
        ("mask_dilate", request.mask_dilate.is_some()),
        ("mask_invert", request.mask_invert.is_some()),
        ("mask_area", request.mask_area.is_some()),
        ("mask_padding", request.mask_padding.is_some()),
    ];
    if request.mask.is_none()
        && let Some((field, _)) = asked.into_iter().find(|(_, asked)| *asked)
    {
        return Err(Error::invalid(field, "there is no mask to treat").advice("send a mask, or leave it out"));
    }
    let area = request.mask_area.unwrap_or_default();
    if request.mask_padding.is_some() && area == MaskArea::Whole {
        return Err(Error::invalid("mask_padding", "it belongs to the area `masked`")
            .advice("set mask_area to `masked`, or leave it out"));
    }
    Ok(MaskTreatment {
        blur_pixels: fraction(
            "mask_blur",
            request.mask_blur.unwrap_or(0.0),
            0.0,
            MOST_BLUR_PIXELS,
        )?,
        dilate_pixels: within(
            "mask_dilate",
            request.mask_dilate.unwrap_or(0),
            -MOST_DILATE_PIXELS,
            MOST_DILATE_PIXELS,
        )?,
        invert: request.mask_invert.unwrap_or(false),
        area,
        padding_pixels: within(
            "mask_padding",
            request.mask_padding.unwrap_or(DEFAULT_PADDING_PIXELS),
            0,
            MOST_PADDING_PIXELS,
        )?,
    })
}

/// The embeddings whose word stands in one of the texts.
pub(super) fn embeddings(
    texts: [&str; 2],
    model: &ModelRecord,
    catalogue: &Catalogue,
) -> Vec<PlannedEmbedding> {
    let named = |word: &str| texts.iter().any(|text| text.contains(word));
    let planned = catalogue.embeddings().filter_map(|record| {
        let word = record.trigger.clone().filter(|word| named(word))?;
        let fits = record.text_width.is_none() || record.text_width == model.text_width;
        fits.then(|| PlannedEmbedding {
            id: record.id.clone(),
            word,
        })
    });
    planned.collect()
}

/// Whether an addition is made for a model of this kind, as far as their headers tell.
pub(super) fn fits(addition: &ModelRecord, model: &ModelRecord, field: &str) -> Result<(), Error> {
    if let (Some(own), Some(wanted)) = (addition.text_width, model.text_width)
        && own != wanted
    {
        let message = format!(
            "{} is made for texts of {own} numbers a token, {} has {wanted}",
            addition.id, model.id
        );
        return Err(Error::invalid(field, message).advice("choose one of the model's own family"));
    }
    Ok(())
}
