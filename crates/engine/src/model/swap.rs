//! A model with parts of the catalogue in place of its own, which to a worker is a model of its own.

use calotype_protocol::ModelId;

use super::catalogue::Catalogue;
use super::family;
use super::record::ModelRecord;
use crate::error::Error;

/// Before the name of a VAE, in the name under which a model is resident.
const VAE: &str = "+vae:";
/// Before that of a text encoder.
const TEXT: &str = "+text:";

/// The name under which a model is resident with these parts.
pub(crate) fn resident_id(model: &ModelId, vae: Option<&ModelId>, text_encoders: &[ModelId]) -> ModelId {
    let mut name = model.0.clone();
    let texts = text_encoders.iter().map(|encoder| (TEXT, encoder));
    for (marker, part) in vae.map(|vae| (VAE, vae)).into_iter().chain(texts) {
        name.push_str(marker);
        name.push_str(part.as_str());
    }
    ModelId(name)
}

/// The model and its parts, each behind its marker; `None` for a name without any.
fn split(name: &str) -> Option<(&str, Vec<(&'static str, &str)>)> {
    let next = |text: &str| {
        let found = [VAE, TEXT]
            .into_iter()
            .filter_map(|marker| Some((text.find(marker)?, marker)));
        found.min()
    };
    let (at, mut marker) = next(name)?;
    let (model, mut rest) = (&name[..at], &name[at..]);
    let mut parts = Vec::new();
    loop {
        rest = &rest[marker.len()..];
        match next(rest) {
            None => {
                parts.push((marker, rest));
                return Some((model, parts));
            }
            Some((at, following)) => {
                parts.push((marker, &rest[..at]));
                rest = &rest[at..];
                marker = following;
            }
        }
    }
}

/// The model of such a name; `None` where it is none.
pub(super) fn swapped(catalogue: &Catalogue, name: &str) -> Option<Result<ModelRecord, Error>> {
    let (model, parts) = split(name)?;
    Some(with_parts(catalogue, name, model, &parts))
}

fn with_parts(
    catalogue: &Catalogue,
    name: &str,
    model: &str,
    parts: &[(&str, &str)],
) -> Result<ModelRecord, Error> {
    let mut whole = catalogue.model(model)?.clone();
    whole.id = ModelId(name.to_owned());
    for (marker, part) in parts {
        let (part, role) = if *marker == VAE {
            (catalogue.vae(part)?, Some("vae"))
        } else {
            let encoder = catalogue.text_encoder(part)?;
            (encoder, family::text_role(&whole.family, &encoder.family))
        };
        let role = role.ok_or_else(|| {
            let message = format!(
                "{} has no place for {} in a model of the family {}",
                model, part.id, whole.family
            );
            Error::invalid("text_encoders", message)
        })?;
        whole.components.insert(role.to_owned(), part.path.clone());
        whole.lacks.retain(|lacking| lacking != role);
        whole.weights_bytes = whole.weights_bytes.saturating_add(part.weights_bytes);
        whole.parameters = whole.parameters.saturating_add(part.parameters);
        whole.problem = whole.problem.or_else(|| part.problem.clone());
        // The graphs of the native worker are made for the model's own parts' shapes, which a part here may not have.
        if role != "vae" {
            whole.architecture = None;
            whole.components.remove("graphs");
        }
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parts_is_taken_apart_as_it_was_put_together() {
        let id = |text: &str| ModelId(text.into());
        let name = resident_id(&id("flux+1"), Some(&id("ae")), &[id("clip_l"), id("t5+xxl")]);
        let parts = vec![(VAE, "ae"), (TEXT, "clip_l"), (TEXT, "t5+xxl")];
        assert_eq!(split(name.as_str()), Some(("flux+1", parts)));
        assert_eq!(split("flux+1"), None);
        assert_eq!(resident_id(&id("a"), None, &[]), id("a"));
    }
}
