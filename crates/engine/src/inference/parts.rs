//! The VAE and the text encoders of a request, in place of the model's own or because its file comes without. Pure, as
//! `validate` is, which calls it.

use calotype_protocol::ModelId;

use super::request::GenerateRequest;
use super::validate::usable;
use crate::error::{Code, Error};
use crate::model::{Catalogue, ModelRecord, text_role};

const MOST_TEXT_ENCODERS: usize = 3;

/// Parts of the catalogue that go into a model.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub(super) vae: Option<ModelId>,
    pub(super) text_encoders: Vec<ModelId>,
}

/// Those that are asked for, and for what the model lacks the one that there is.
pub(super) fn parts(
    request: &GenerateRequest,
    model: &ModelRecord,
    catalogue: &Catalogue,
) -> Result<Parts, Error> {
    let mut parts = Parts {
        vae: vae(request, model, catalogue)?,
        text_encoders: Vec::new(),
    };
    let mut roles = Vec::new();
    for encoder in text_encoders(request, model, catalogue)? {
        let (record, role) = encoder;
        if roles.contains(&role) {
            let message = format!("{} takes the same place as another one", record.id);
            return Err(Error::invalid("text_encoders", message));
        }
        roles.push(role);
        parts.text_encoders.push(record.id.clone());
    }
    for lacking in &model.lacks {
        if lacking == "vae" {
            if parts.vae.is_none() {
                let fitting = catalogue.vaes().filter(|vae| latents_fit(vae, model));
                parts.vae = Some(only(fitting.collect(), model, lacking, "vae", "vaes")?);
            }
        } else if !roles.contains(&lacking.as_str()) {
            let fitting = catalogue
                .text_encoders()
                .filter(|encoder| role_of(encoder, model) == Some(lacking.as_str()));
            let only = only(
                fitting.collect(),
                model,
                lacking,
                "text_encoders",
                "text_encoders",
            )?;
            parts.text_encoders.push(only);
        }
    }
    Ok(parts)
}

/// The one that is meant where nobody said which.
fn only(
    fitting: Vec<&ModelRecord>,
    model: &ModelRecord,
    role: &str,
    field: &str,
    folder: &str,
) -> Result<ModelId, Error> {
    match fitting.as_slice() {
        [one] => Ok(one.id.clone()),
        [] => {
            let message = format!(
                "{} comes without its {role}, and none that fits is here",
                model.id
            );
            Err(Error::new(Code::ModelUnusable, message)
                .field(field)
                .advice(format!("put one into models/{folder}")))
        }
        several => {
            let message = format!("{} comes without its {role}, and several fit", model.id);
            let names: Vec<&str> = several.iter().map(|record| record.id.as_str()).collect();
            Err(Error::invalid(field, message).advice(format!("name one of {}", names.join(", "))))
        }
    }
}

fn latents_fit(vae: &ModelRecord, model: &ModelRecord) -> bool {
    vae.latent_channels == model.latent_channels
}

fn vae(
    request: &GenerateRequest,
    model: &ModelRecord,
    catalogue: &Catalogue,
) -> Result<Option<ModelId>, Error> {
    let Some(name) = &request.vae else {
        return Ok(None);
    };
    let record = catalogue.vae(name)?;
    usable(record, "vae")?;
    if !latents_fit(record, model) {
        let (own, wanted) = (record.latent_channels, model.latent_channels);
        let message = format!(
            "{} has latents of {own} channels, {} of {wanted}",
            record.id, model.id
        );
        return Err(Error::invalid("vae", message));
    }
    Ok(Some(record.id.clone()))
}

/// Each with its place in the model.
fn text_encoders<'a>(
    request: &GenerateRequest,
    model: &ModelRecord,
    catalogue: &'a Catalogue,
) -> Result<Vec<(&'a ModelRecord, &'static str)>, Error> {
    let names = request.text_encoders.as_deref().unwrap_or_default();
    if names.len() > MOST_TEXT_ENCODERS {
        let message = format!(
            "{} are given, at most {MOST_TEXT_ENCODERS} are taken",
            names.len()
        );
        return Err(Error::invalid("text_encoders", message));
    }
    let one = |name: &String| {
        let record = catalogue.text_encoder(name)?;
        usable(record, "text_encoders")?;
        let role = role_of(record, model).ok_or_else(|| {
            let width = record.text_width.unwrap_or_default();
            let message = format!(
                "{} ({}, {width} numbers a token) has no place in {}, of the family {}",
                record.id, record.family, model.id, model.family
            );
            Error::invalid("text_encoders", message)
        })?;
        Ok((record, role))
    };
    names.iter().map(one).collect()
}

fn role_of(encoder: &ModelRecord, model: &ModelRecord) -> Option<&'static str> {
    let role = text_role(&model.family, &encoder.family)?;
    // Of the others the width of the text is that of several encoders together.
    let alone = model.family == "sd" && model.text_width.is_some() && encoder.text_width.is_some();
    (!alone || encoder.text_width == model.text_width).then_some(role)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::write_weights;

    /// FLUX in one file with nothing else in it, and beside it what is named.
    fn flux(beside: &[(&str, &str, &[usize])]) -> (tempfile::TempDir, Catalogue) {
        let dir = tempfile::tempdir().unwrap();
        let flux: [(&str, &[usize]); 2] = [
            ("double_blocks.0.img_attn.qkv.weight", &[6, 2]),
            ("img_in.weight", &[2, 64]),
        ];
        write_weights(&dir.path().join("flux.safetensors"), &flux, &[]);
        for (place, tensor, shape) in beside {
            let path = dir.path().join(place);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            write_weights(&path, &[(*tensor, *shape)], &[]);
        }
        let catalogue = Catalogue::scan(&[dir.path().to_owned()]);
        (dir, catalogue)
    }

    const VAE: (&str, &str, &[usize]) = ("vaes/ae.safetensors", "decoder.conv_in.weight", &[8, 16, 3, 3]);
    const CLIP: (&str, &str, &[usize]) = (
        "text_encoders/clip_l.safetensors",
        "text_model.embeddings.token_embedding.weight",
        &[9, 768],
    );
    const OPEN_CLIP: (&str, &str, &[usize]) = (
        "text_encoders/big.safetensors",
        "token_embedding.weight",
        &[9, 1280],
    );
    const T5: (&str, &str, &[usize]) = (
        "text_encoders/t5xxl.safetensors",
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        &[8, 8],
    );

    fn asked(catalogue: &Catalogue, encoders: &[&str]) -> Result<Vec<String>, Error> {
        let request = GenerateRequest {
            text_encoders: Some(encoders.iter().map(|name| (*name).to_owned()).collect()),
            ..GenerateRequest::default()
        };
        let parts = parts(&request, catalogue.model("flux")?, catalogue)?;
        let all = parts.vae.into_iter().chain(parts.text_encoders);
        Ok(all.map(|id| id.0).collect())
    }

    #[test]
    fn what_a_file_comes_without_is_the_only_one_that_fits() {
        let (_dir, catalogue) = flux(&[VAE, CLIP, OPEN_CLIP, T5]);
        let model = catalogue.model("flux").unwrap();
        assert_eq!((&model.problem, model.lacks.len()), (&None, 3));
        assert_eq!(asked(&catalogue, &[]).unwrap(), ["ae", "clip_l", "t5xxl"]);
        let whole = catalogue.loadable("flux+vae:ae+text:clip_l+text:t5xxl").unwrap();
        assert!(whole.lacks.is_empty());
        assert!(whole.components["text_encoder_2"].ends_with("t5xxl.safetensors"));
        assert!(whole.components["vae"].ends_with("ae.safetensors"));
        assert!(whole.weights_bytes > model.weights_bytes);
        assert!(catalogue.loadable("flux+text:big").is_err() && catalogue.loadable("flux+vae:no").is_err());
    }

    #[test]
    fn what_is_not_here_or_here_twice_must_be_brought_or_named() {
        let (_dir, catalogue) = flux(&[VAE, CLIP]);
        let error = asked(&catalogue, &[]).unwrap_err();
        assert_eq!(
            (error.code, error.field.as_deref()),
            (Code::ModelUnusable, Some("text_encoders"))
        );
        let other = ("text_encoders/other.safetensors", CLIP.1, CLIP.2);
        let (_dir, catalogue) = flux(&[VAE, CLIP, other, T5]);
        let error = asked(&catalogue, &[]).unwrap_err();
        assert_eq!(error.code, Code::InvalidInput);
        assert!(error.advice.unwrap().contains("clip_l, other"));
        assert_eq!(asked(&catalogue, &["other"]).unwrap(), ["ae", "other", "t5xxl"]);
    }

    #[test]
    fn an_encoder_without_a_place_in_the_model_or_a_second_one_for_it_is_refused() {
        let (_dir, catalogue) = flux(&[VAE, CLIP, OPEN_CLIP, T5]);
        for encoders in [
            &["big"][..],
            &["clip_l", "clip_l"],
            &["clip_l", "t5xxl", "clip_l", "big"],
        ] {
            let error = asked(&catalogue, encoders).unwrap_err();
            assert_eq!(
                (error.code, error.field.as_deref()),
                (Code::InvalidInput, Some("text_encoders"))
            );
        }
        assert_eq!(
            asked(&catalogue, &["nobody"]).unwrap_err().code,
            Code::UnknownModel
        );
    }
}
