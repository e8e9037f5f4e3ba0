//! The LoRAs of a plan: which, how strong, and whether they fit. Pure.

use calotype_protocol::Sampler;

use super::validate::{fraction, short, usable, warning};
use super::{GenerateRequest, PlannedLora, Warning, extras, prompt};
use crate::error::Error;
use crate::model::{Catalogue, ModelRecord, Preset};

const MOST_LORAS: usize = 16;
const MOST_LORA_WEIGHT: f32 = 4.0;

/// The preset's LoRAs, the request's, and those that its prompt names, in this order. The preset's go where they would
/// do harm: an LCM LoRA draws nothing good with another sampler than the preset's.
pub(super) fn loras(
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
