use super::*;
use crate::inference::LoraRequest;
use crate::inference::{ControlRequest, HiresRequest, MaskArea};

fn catalogue() -> Catalogue {
    Catalogue::scan(&[concat!(env!("CARGO_MANIFEST_DIR"), "/../../models").into()])
}

fn request() -> GenerateRequest {
    GenerateRequest {
        prompt: "a red apple".into(),
        ..GenerateRequest::default()
    }
}

fn planned(request: &GenerateRequest) -> Result<Planned, Error> {
    plan(request, &catalogue(), &Abilities::native(), 77)
}

fn refused(change: impl Fn(&mut GenerateRequest)) -> (Code, String) {
    let mut request = request();
    change(&mut request);
    let error = planned(&request).unwrap_err();
    (error.code, error.field.unwrap_or_default())
}

#[test]
fn a_bare_prompt_takes_everything_from_the_models_own_preset() {
    let plan = planned(&request()).unwrap().plan;
    assert_eq!((plan.sampler, plan.steps, plan.guidance), (Sampler::Lcm, 4, 1.0));
    assert_eq!(
        (plan.width, plan.height, plan.seeds.as_slice()),
        (256, 256, &[77][..])
    );
    assert_eq!(plan.loras.len(), 1);
}

#[test]
fn another_sampler_leaves_the_presets_loras_out_and_says_so() {
    let mut request = request();
    request.sampler = Some("euler".into());
    let planned = planned(&request).unwrap();
    assert!(planned.plan.loras.is_empty());
    assert_eq!(planned.warnings[0].field, "sampler");
}

#[test]
fn a_lora_is_added_to_the_presets_and_an_empty_list_takes_them_away() {
    let mut request = request();
    request.loras = Some(vec![LoraRequest {
        name: "pixel".into(),
        weight: Some(0.5),
    }]);
    assert_eq!(planned(&request).unwrap().plan.loras.len(), 2);
    request.loras = Some(Vec::new());
    assert!(planned(&request).unwrap().plan.loras.is_empty());
}

#[test]
fn loras_in_the_prompt_come_after_the_requests_own() {
    let mut request = request();
    request.prompt = "a red apple <lora:pixel:0.25>".into();
    let loras = |request: &GenerateRequest| planned(request).unwrap().plan.loras;
    assert_eq!(loras(&request).len(), 2);
    request.loras = Some(vec![]);
    assert_eq!(loras(&request)[0].weight, 0.25);
    request.loras = Some(vec![LoraRequest {
        name: "pixel".into(),
        weight: Some(0.5),
    }]);
    assert_eq!(loras(&request)[1].weight, 0.25);
    request.negative_prompt = Some("<lora:lcm>".into());
    let warnings = planned(&request).unwrap().warnings;
    assert!(
        warnings
            .iter()
            .any(|warning| warning.message.contains("left out"))
    );
}

#[test]
fn a_lora_in_the_prompt_that_cannot_be_laid_on_is_refused_by_the_prompt() {
    let field = |prompt: &str| refused(|request| request.prompt = prompt.into());
    let prompt = || "prompt".to_owned();
    assert_eq!(field("<lora:pixl>"), (Code::UnknownModel, prompt()));
    assert_eq!(field("<lora:pixel:4.5>"), (Code::InvalidInput, prompt()));
    assert_eq!(field(&"<lora:pixel>".repeat(17)), (Code::InvalidInput, prompt()));
}

#[test]
fn every_field_out_of_range_is_refused_by_its_name() {
    let invalid = |field: &str| (Code::InvalidInput, field.to_owned());
    assert_eq!(refused(|r| r.width = Some(100)), invalid("width"));
    assert_eq!(refused(|r| r.height = Some(0)), invalid("height"));
    assert_eq!(refused(|r| r.height = Some(u32::MAX)), invalid("height"));
    assert_eq!(refused(|r| r.steps = Some(0)), invalid("steps"));
    assert_eq!(refused(|r| r.steps = Some(151)), invalid("steps"));
    assert_eq!(refused(|r| r.guidance = Some(f32::NAN)), invalid("guidance"));
    assert_eq!(refused(|r| r.guidance = Some(f32::INFINITY)), invalid("guidance"));
    assert_eq!(refused(|r| r.strength = Some(1.5)), invalid("strength"));
    assert_eq!(refused(|r| r.count = Some(9)), invalid("count"));
    assert_eq!(refused(|r| r.clip_skip = Some(12)), invalid("clip_skip"));
    assert_eq!(
        refused(|r| r.clip_skip = Some(2)),
        (Code::NotSupported, "clip_skip".into())
    );
    assert_eq!(refused(|r| r.quality = Some(0)), invalid("quality"));
    assert_eq!(refused(|r| r.sampler = Some("eulr".into())), invalid("sampler"));
    assert_eq!(refused(|r| r.schedule = Some("x".into())), invalid("schedule"));
    assert_eq!(refused(|r| r.preset = Some("x".into())), invalid("preset"));
    assert_eq!(refused(|r| r.prompt = "é".repeat(32_001)), invalid("prompt"));
    assert_eq!(refused(|r| r.mask = Some("x".into())), invalid("mask"));
    assert_eq!(refused(|r| r.mode = Some(Mode::Inpaint)), invalid("mode"));
    assert_eq!(
        refused(|r| (r.seed, r.count) = (Some(u64::MAX), Some(2))),
        invalid("seed")
    );
    assert_eq!(
        refused(|r| r.model = Some("x".into())),
        (Code::UnknownModel, "model".into())
    );
    assert_eq!(
        refused(|r| r.sampler = Some("lms".into())),
        (Code::NotSupported, "sampler".into())
    );
    assert_eq!(
        refused(|r| r.control = Some(vec![ControlRequest {
            model: "canny".into(),
            image: "x".into(),
            ..ControlRequest::default()
        }])),
        (Code::NotSupported, "control".into())
    );
    assert_eq!(
        refused(|r| r.init_image = Some("%%%".into())),
        (Code::ImageRefused, "init_image".into())
    );
    assert_eq!(
        refused(|r| r.init_image = Some("AAAA".into())),
        (Code::ImageRefused, "init_image".into())
    );
    assert_eq!(
        refused(|r| r.loras = Some(vec![LoraRequest {
            name: "pixl".into(),
            weight: None
        }])),
        (Code::UnknownModel, "loras[0].name".into())
    );
}

#[test]
fn an_unknown_sampler_is_answered_with_its_neighbours() {
    let mut request = request();
    request.sampler = Some("euler_a".into());
    assert!(
        planned(&request)
            .unwrap_err()
            .advice
            .unwrap()
            .contains("euler_ancestral")
    );
}

#[test]
fn loras_are_refused_where_no_worker_lays_them_on() {
    let mut workers = Abilities::native().workers;
    workers[0].1.adapters.clear();
    let abilities = Abilities::of(workers, false);
    let error = plan(&request(), &catalogue(), &abilities, 77).unwrap_err();
    assert_eq!(
        (error.code, error.field.as_deref()),
        (Code::NotSupported, Some("loras"))
    );
    let without = GenerateRequest {
        loras: Some(Vec::new()),
        ..request()
    };
    assert!(plan(&without, &catalogue(), &abilities, 77).is_ok());
}

#[test]
fn a_trigger_word_is_missed_once_and_only_where_its_lora_counts() {
    let pixel = |weight| {
        Some(vec![LoraRequest {
            name: "pixel".into(),
            weight: Some(weight),
        }])
    };
    let warnings = |prompt: &str, weight| {
        let request = GenerateRequest {
            prompt: prompt.into(),
            loras: pixel(weight),
            ..request()
        };
        planned(&request).unwrap().warnings.len()
    };
    assert_eq!(
        (
            warnings("a fox", 1.0),
            warnings("a fox", 0.0),
            warnings("a fox, Pixel Art", 1.0)
        ),
        (1, 0, 0)
    );
}

#[test]
fn steps_are_counted_as_the_worker_counts_them() {
    assert_eq!(steps_kept(10, 0.7), 7.0);
    assert!(steps_kept(3, 1.0 / 3.0) >= 1.0 && steps_kept(4, 0.2) < 1.0);
}

#[test]
fn what_is_beyond_a_prompt_is_refused_by_its_field() {
    for (field, change) in [
        (
            "mask_blur",
            (|r| r.mask_blur = Some(4.0)) as fn(&mut GenerateRequest),
        ),
        ("mask_area", |r| r.mask_area = Some(MaskArea::Masked)),
        ("variation_strength", |r| r.variation_strength = Some(1.5)),
        ("variation_strength", |r| r.variation_strength = Some(f32::NAN)),
        ("variation_seed", |r| {
            (r.variation_strength, r.variation_seed) = (Some(0.5), Some(u64::MAX));
        }),
    ] {
        let mut request = request();
        change(&mut request);
        let error = planned(&request).unwrap_err();
        assert_eq!(
            (error.code, error.field.as_deref()),
            (Code::InvalidInput, Some(field))
        );
    }
    // Of a worker that has them.
    let mut workers = Abilities::native().workers;
    workers[0]
        .1
        .adapters
        .extend(["hires".into(), "controlnet".into(), "refiner".into()]);
    let able = Abilities::of(workers, false);
    let hires = |hires: HiresRequest| {
        let request = GenerateRequest {
            hires: Some(hires),
            ..request()
        };
        plan(&request, &catalogue(), &able, 77)
    };
    let twice = hires(HiresRequest::default()).unwrap().plan;
    assert_eq!(twice.final_size(), (512, 512));
    for (field, asked) in [
        (
            "hires.scale",
            HiresRequest {
                scale: Some(9.0),
                ..HiresRequest::default()
            },
        ),
        (
            "hires.scale",
            HiresRequest {
                scale: Some(2.0),
                width: Some(512),
                ..HiresRequest::default()
            },
        ),
        (
            "hires.width",
            HiresRequest {
                width: Some(500),
                ..HiresRequest::default()
            },
        ),
        (
            "hires",
            HiresRequest {
                width: Some(128),
                ..HiresRequest::default()
            },
        ),
        (
            "hires.steps",
            HiresRequest {
                steps: Some(0),
                ..HiresRequest::default()
            },
        ),
    ] {
        assert_eq!(hires(asked).unwrap_err().field.as_deref(), Some(field));
    }
    let unit = ControlRequest {
        model: "nobody".into(),
        image: "x".into(),
        ..ControlRequest::default()
    };
    let request = GenerateRequest {
        control: Some(vec![unit]),
        ..request()
    };
    let error = plan(&request, &catalogue(), &able, 77).unwrap_err();
    assert_eq!(
        (error.code, error.field.as_deref()),
        (Code::UnknownModel, Some("control[0].model"))
    );
}
