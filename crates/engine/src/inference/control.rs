//! The ControlNets of a request, and what is done to their images first. Pure, as `validate` is, which calls it.

use calotype_protocol::{ControlImage, ModelId};

use super::extras::fits;
use super::images::{InputImage, input};
use super::plan::PlannedControl;
use super::request::{ControlRequest, GenerateRequest, Preprocessor};
use super::validate::{fraction, usable};
use crate::error::{Code, Error};
use crate::model::{Catalogue, ModelRecord, nearest};

const MOST_UNITS: usize = 8;
const MOST_CONTROL_WEIGHT: f32 = 4.0;

const PREPROCESSORS: [(&str, Preprocessor); 8] = [
    ("none", Preprocessor::None),
    ("canny", Preprocessor::Canny),
    ("lineart", Preprocessor::Lineart),
    ("scribble", Preprocessor::Scribble),
    ("depth", Preprocessor::Network(ControlImage::Depth)),
    ("normal", Preprocessor::Network(ControlImage::Normal)),
    ("softedge", Preprocessor::Network(ControlImage::Softedge)),
    ("pose", Preprocessor::Network(ControlImage::Pose)),
];

/// The ControlNet units, each with its image.
pub(super) fn units(
    request: &GenerateRequest,
    model: &ModelRecord,
    catalogue: &Catalogue,
) -> Result<Vec<(PlannedControl, InputImage)>, Error> {
    let units = request.control.as_deref().unwrap_or_default();
    if units.len() > MOST_UNITS {
        let message = format!("{} units, at most {MOST_UNITS} are taken", units.len());
        return Err(Error::invalid("control", message));
    }
    let mut planned = Vec::with_capacity(units.len());
    for (index, unit) in units.iter().enumerate() {
        let field = |name: &str| format!("control[{index}].{name}");
        let record = catalogue
            .controlnet(&unit.model)
            .map_err(|error| error.field(field("model")))?;
        usable(record, &field("model"))?;
        fits(record, model, &field("model"))?;
        // Transformers have no one width of text by which to tell.
        if model.text_width.is_none() && record.family != model.family {
            let message = format!(
                "{} is a ControlNet for {}, {} is of the family {}",
                record.id, record.family, model.id, model.family
            );
            return Err(
                Error::invalid(field("model"), message).advice("choose one of the model's own family")
            );
        }
        let weight = fraction(
            &field("weight"),
            unit.weight.unwrap_or(1.0),
            0.0,
            MOST_CONTROL_WEIGHT,
        )?;
        let start = fraction(&field("start"), unit.start.unwrap_or(0.0), 0.0, 1.0)?;
        let end = fraction(&field("end"), unit.end.unwrap_or(1.0), 0.0, 1.0)?;
        if start > end {
            let message = format!("it begins at {start}, behind its end at {end}");
            return Err(Error::invalid(field("start"), message));
        }
        let preprocessor = preprocessor(unit.preprocessor.as_deref(), &field("preprocessor"))?;
        let unit_planned = PlannedControl {
            model: record.id.clone(),
            image: None,
            preprocessor,
            preprocessor_model: network(preprocessor, unit, catalogue, &field)?,
            weight,
            start,
            end,
            mode: unit.mode.unwrap_or_default(),
        };
        planned.push((unit_planned, input(&unit.image, &field("image"))?));
    }
    Ok(planned)
}

fn preprocessor(name: Option<&str>, field: &str) -> Result<Preprocessor, Error> {
    let name = name.unwrap_or("none");
    let found = PREPROCESSORS.iter().find(|(known, _)| *known == name);
    found.map(|(_, preprocessor)| *preprocessor).ok_or_else(|| {
        let shown: String = name.chars().take(100).collect();
        let known = PREPROCESSORS.iter().map(|(known, _)| *known);
        Error::invalid(field, format!("unknown preprocessor `{shown}`")).advice(nearest(name, known))
    })
}

/// The network that a preprocessor needs: the one that is named, or the first that can do it.
fn network(
    preprocessor: Preprocessor,
    unit: &ControlRequest,
    catalogue: &Catalogue,
    field: &impl Fn(&str) -> String,
) -> Result<Option<ModelId>, Error> {
    let asked = unit.preprocessor_model.as_deref();
    let Preprocessor::Network(into) = preprocessor else {
        return match asked {
            None => Ok(None),
            Some(_) => Err(
                Error::invalid(field("preprocessor_model"), "its preprocessor needs no network").advice(
                    "leave it out, or name one of the preprocessors depth, normal, softedge and pose",
                ),
            ),
        };
    };
    let (word, makes) = match into {
        ControlImage::Depth => ("depth", "depth"),
        // Made out of the depth.
        ControlImage::Normal => ("normal", "depth"),
        ControlImage::Softedge => ("softedge", "softedge"),
        ControlImage::Pose => ("pose", "pose"),
    };
    let record = match asked {
        Some(name) => catalogue
            .preprocessor(name)
            .map_err(|error| error.field(field("preprocessor_model")))?,
        None => catalogue
            .preprocessors()
            .find(|record| record.family == makes && record.problem.is_none())
            .ok_or_else(|| {
                let message = format!("the preprocessor `{word}` is a network, and there is none for it here");
                Error::new(Code::NotSupported, message)
                    .field(field("preprocessor"))
                    .advice(
                        "put one into models/preprocessors, or preprocess the image elsewhere and send it with the \
                         preprocessor `none`; canny, lineart and scribble need no network",
                    )
            })?,
    };
    usable(record, &field("preprocessor_model"))?;
    if record.family != makes {
        let message = format!("{} makes {}, not {word}", record.id, record.family);
        return Err(Error::invalid(field("preprocessor_model"), message));
    }
    Ok(Some(record.id.clone()))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use calotype_imaging::{Format, Rgb, encode};
    use calotype_protocol::ControlMode;

    use super::*;
    use crate::model::write_weights;

    /// An SD model with a ControlNet for it, and a HED network.
    fn folder() -> (tempfile::TempDir, Catalogue) {
        let dir = tempfile::tempdir().unwrap();
        let context = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight";
        let unet = format!("model.diffusion_model.{context}");
        type Tensors<'a> = Vec<(&'a str, &'a [usize])>;
        let files: [(&str, Tensors<'_>); 3] = [
            ("sd.safetensors", vec![(&unet, &[8, 768])]),
            (
                "controlnets/edges.safetensors",
                vec![("input_hint_block.0.weight", &[1]), (context, &[8, 768])],
            ),
            (
                "preprocessors/hed.safetensors",
                vec![("block1.convs.0.weight", &[1])],
            ),
        ];
        for (place, tensors) in files {
            let path = dir.path().join(place);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            write_weights(&path, &tensors, &[]);
        }
        let catalogue = Catalogue::scan(&[dir.path().to_owned()]);
        (dir, catalogue)
    }

    fn asked(unit: ControlRequest) -> Result<PlannedControl, Error> {
        let (_dir, catalogue) = folder();
        let picture = encode(&Rgb::new(1, 1, vec![0; 3]).unwrap(), Format::Png, 90, None).unwrap();
        let request = GenerateRequest {
            control: Some(vec![ControlRequest {
                model: "edges".into(),
                image: base64::engine::general_purpose::STANDARD.encode(picture),
                ..unit
            }]),
            ..GenerateRequest::default()
        };
        let mut units = units(&request, catalogue.model("sd")?, &catalogue)?;
        Ok(units.remove(0).0)
    }

    fn by(preprocessor: &str, model: Option<&str>) -> ControlRequest {
        ControlRequest {
            preprocessor: Some(preprocessor.into()),
            preprocessor_model: model.map(str::to_owned),
            ..ControlRequest::default()
        }
    }

    #[test]
    fn a_controlnet_in_one_file_is_taken_with_its_mode() {
        let unit = asked(ControlRequest {
            mode: Some(ControlMode::Control),
            ..ControlRequest::default()
        });
        let unit = unit.unwrap();
        assert_eq!((unit.model.as_str(), unit.mode), ("edges", ControlMode::Control));
        assert_eq!(unit.preprocessor, Preprocessor::None);
    }

    #[test]
    fn a_preprocessor_that_is_a_network_is_the_one_that_there_is() {
        let unit = asked(by("softedge", None)).unwrap();
        assert_eq!(unit.preprocessor, Preprocessor::Network(ControlImage::Softedge));
        assert_eq!(unit.preprocessor_model, Some("hed".into()));
        assert_eq!(asked(by("lineart", None)).unwrap().preprocessor_model, None);
    }

    #[test]
    fn a_network_that_is_not_here_is_not_supported_and_one_for_something_else_is_invalid() {
        for (unit, code, field) in [
            (by("depth", None), Code::NotSupported, "preprocessor"),
            (
                by("normal", Some("hed")),
                Code::InvalidInput,
                "preprocessor_model",
            ),
            (by("canny", Some("hed")), Code::InvalidInput, "preprocessor_model"),
            (
                by("softedge", Some("no")),
                Code::UnknownModel,
                "preprocessor_model",
            ),
            (by("cany", None), Code::InvalidInput, "preprocessor"),
        ] {
            let error = asked(unit).unwrap_err();
            let field = format!("control[0].{field}");
            assert_eq!((error.code, error.field.as_deref()), (code, Some(field.as_str())));
        }
    }
}
