//! What is usual for a model where neither the request nor its preset says it. Pure.

use super::record::ModelRecord;

/// Values of a request that none were given for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Usual {
    /// By its name.
    pub(crate) sampler: &'static str,
    pub(crate) steps: u32,
    pub(crate) guidance: f32,
}

/// As the makers of a family publish it: SD3.5's and FLUX's model cards, the customs of SD's programs.
pub(crate) fn usual(model: &ModelRecord) -> Usual {
    let of = |sampler, steps, guidance| Usual {
        sampler,
        steps,
        guidance,
    };
    match model.family.as_str() {
        "flux" if model.few_steps => of("euler", 4, 1.0),
        "flux" => of("euler", 28, 3.5),
        "sd3" => of("euler", 28, 4.5),
        _ => of("dpmpp_2m", 20, 7.0),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::ModelKind;

    #[test]
    fn flow_models_are_sampled_by_euler_and_flux_schnell_in_few_steps_without_guidance() {
        let mut model = ModelRecord::at(Path::new("x.safetensors"), ModelKind::Checkpoint);
        assert_eq!(usual(&model).sampler, "dpmpp_2m");
        model.family = "flux".into();
        assert_eq!((usual(&model).sampler, usual(&model).guidance), ("euler", 3.5));
        model.few_steps = true;
        assert_eq!((usual(&model).steps, usual(&model).guidance), (4, 1.0));
    }
}
