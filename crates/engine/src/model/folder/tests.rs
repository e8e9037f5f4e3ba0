use super::super::graphs;
use super::*;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/calotype-tiny");

fn architectures() -> Vec<Graphs> {
    let all = Path::new(TINY).parent().unwrap().join("graphs");
    ["sd15", "sd21", "calotype-tiny"]
        .iter()
        .map(|name| graphs::read(&all.join(name)).unwrap())
        .collect()
}

/// Sets one number of a config.
fn change(config: &Path, field: &str, value: u32) {
    let mut json: Value = serde_json::from_slice(&std::fs::read(config).unwrap()).unwrap();
    json[field] = value.into();
    std::fs::write(config, json.to_string()).unwrap();
}

/// A copy of the embedded model that may be broken.
fn copy(dir: &Path) -> PathBuf {
    let to = dir.join("copy");
    for part in ["", "unet", "vae", "text_encoder", "tokenizer", "scheduler"] {
        std::fs::create_dir_all(to.join(part)).unwrap();
        for entry in std::fs::read_dir(Path::new(TINY).join(part)).unwrap().flatten() {
            if entry.path().is_file() {
                std::fs::copy(entry.path(), to.join(part).join(entry.file_name())).unwrap();
            }
        }
    }
    to
}

#[test]
fn every_weight_is_counted_once() {
    let whole = record(Path::new(TINY), &architectures());
    assert_eq!(whole.problem, None);
    assert!(
        (22_000_000..23_500_000).contains(&whole.parameters),
        "{}",
        whole.parameters
    );
    let dir = tempfile::tempdir().unwrap();
    let path = copy(dir.path());
    let unet = path.join("unet");
    std::fs::copy(
        unet.join("diffusion_pytorch_model.safetensors"),
        unet.join("diffusion_pytorch_model.fp16.safetensors"),
    )
    .unwrap();
    assert_eq!(record(&path, &architectures()).parameters, whole.parameters);
}

#[test]
fn an_architecture_without_graphs_is_no_problem_and_has_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = copy(dir.path());
    change(&path.join("unet/config.json"), "norm_num_groups", 8);
    let record = record(&path, &architectures());
    assert_eq!((&record.problem, &record.architecture), (&None, &None));
    assert!(!record.has_graphs() && !record.components.contains_key("graphs"));
}

#[test]
fn a_unet_that_takes_more_than_latents_is_recorded_as_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = copy(dir.path());
    for (channels, variant) in [(9, Variant::Inpaint), (8, Variant::Edit), (5, Variant::Depth)] {
        change(&path.join("unet/config.json"), "in_channels", channels);
        let record = record(&path, &architectures());
        assert_eq!((record.problem, record.architecture), (None, None));
        assert_eq!(
            (record.unet_channels, record.latent_channels, record.variant),
            (channels, 4, variant)
        );
    }
}

/// An SDXL whose parts are those of the embedded model.
fn sdxl(dir: &Path) -> PathBuf {
    let path = copy(dir);
    std::fs::remove_file(path.join("calotype.json")).unwrap();
    for (from, to) in [("text_encoder", "text_encoder_2"), ("tokenizer", "tokenizer_2")] {
        std::fs::create_dir(path.join(to)).unwrap();
        for entry in std::fs::read_dir(path.join(from)).unwrap().flatten() {
            std::fs::copy(entry.path(), path.join(to).join(entry.file_name())).unwrap();
        }
    }
    change(&path.join("unet/config.json"), "cross_attention_dim", 2048);
    change(&path.join("unet/config.json"), "sample_size", 128);
    let index = r#"{"_class_name":"StableDiffusionXLPipeline"}"#;
    std::fs::write(path.join("model_index.json"), index).unwrap();
    path
}

#[test]
fn sdxl_has_two_encoders_and_its_refiner_only_the_second() {
    let dir = tempfile::tempdir().unwrap();
    let path = sdxl(dir.path());
    let base = record(&path, &architectures());
    assert_eq!(
        (base.problem.as_deref(), base.architecture.as_deref()),
        (None, None)
    );
    assert_eq!(
        (base.family.as_str(), base.variant, base.size, base.text_width),
        ("sdxl", Variant::Base, (1024, 1024), Some(2048))
    );
    assert!(base.components.contains_key("text_encoder") && base.components.contains_key("tokenizer_2"));
    for part in ["text_encoder", "tokenizer"] {
        std::fs::remove_dir_all(path.join(part)).unwrap();
    }
    let refiner = record(&path, &architectures());
    assert_eq!(refiner.problem, None);
    assert_eq!(
        (refiner.family.as_str(), refiner.variant),
        ("sdxl_refiner", Variant::Refiner)
    );
    assert!(!refiner.components.contains_key("text_encoder"));
}

#[test]
fn a_pipeline_that_is_not_known_is_a_problem_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("model_index.json"),
        r#"{"_class_name":"KandinskyPipeline"}"#,
    )
    .unwrap();
    let record = record(dir.path(), &[]);
    assert!(record.problem.unwrap().contains("KandinskyPipeline"));
    assert_eq!(record.family, "unknown");
}

#[test]
fn a_defaulted_field_may_be_missing_and_a_structural_one_may_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = copy(dir.path());
    let config = path.join("unet/config.json");
    let mut value: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    value.as_object_mut().unwrap().remove("act_fn");
    std::fs::write(&config, value.to_string()).unwrap();
    assert_eq!(
        record(&path, &architectures()).architecture.as_deref(),
        Some("calotype-tiny")
    );
    value.as_object_mut().unwrap().remove("block_out_channels");
    std::fs::write(&config, value.to_string()).unwrap();
    assert_eq!(record(&path, &architectures()).architecture, None);
}

#[test]
fn without_a_sidecar_the_size_comes_from_the_unet_and_there_is_no_preset() {
    let dir = tempfile::tempdir().unwrap();
    let path = copy(dir.path());
    std::fs::remove_file(path.join("calotype.json")).unwrap();
    let record = record(&path, &architectures());
    assert_eq!(
        (record.problem, record.size, record.size_multiple),
        (None, (256, 256), 8)
    );
    assert!(record.presets.is_empty() && record.default_preset.is_none());
}

#[test]
fn a_part_without_weights_is_a_problem() {
    let dir = tempfile::tempdir().unwrap();
    let path = copy(dir.path());
    std::fs::rename(
        path.join("vae/diffusion_pytorch_model.safetensors"),
        path.join("vae/pytorch_model.bin"),
    )
    .unwrap();
    assert!(
        record(&path, &architectures())
            .problem
            .unwrap()
            .contains("no safetensors")
    );
    std::fs::write(path.join("unet/model.onnx"), "").unwrap();
    assert!(
        record(&path, &architectures())
            .problem
            .unwrap()
            .contains("vae_decoder")
    );
}
