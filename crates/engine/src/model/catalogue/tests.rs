use super::super::header::tests::write;
use super::*;

fn embedded() -> Catalogue {
    Catalogue::scan(&[PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../models"
    ))])
}

#[test]
fn the_embedded_model_is_found_with_its_presets_and_its_graphs() {
    let catalogue = embedded();
    let model = catalogue.default_model().unwrap();
    assert_eq!(model.problem, None);
    assert_eq!(
        (model.id.as_str(), model.architecture.as_deref()),
        ("calotype-tiny", Some("calotype-tiny"))
    );
    assert_eq!(
        (model.size, model.size_multiple, model.default_preset.as_deref()),
        ((256, 256), 32, Some("fast"))
    );
    assert_eq!(
        catalogue.lora("pixel").unwrap().id.as_str(),
        "calotype-tiny-pixel"
    );
}

#[test]
fn an_unknown_name_is_answered_with_its_neighbours() {
    let catalogue = embedded();
    let error = catalogue.model("calotype-tny").unwrap_err();
    assert_eq!(
        (error.code, error.field.as_deref()),
        (Code::UnknownModel, Some("model"))
    );
    assert!(error.advice.unwrap().contains("calotype-tiny"));
    assert!(
        catalogue
            .lora("pixl")
            .unwrap_err()
            .advice
            .unwrap()
            .contains("pixel")
    );
}

/// A folder of models with small files of these tensors in it.
fn folder_with(files: &[(&str, Tensors<'_>)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (place, tensors) in files {
        let path = dir.path().join(place);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        write(&path, tensors, &[]);
    }
    dir
}

/// Names and shapes.
type Tensors<'a> = &'a [(&'a str, &'a [usize])];

const LORA: Tensors<'_> = &[("unet.x.lora_A.weight", &[2, 4])];
const CHECKPOINT: Tensors<'_> = &[
    ("cond_stage_model.x", &[1]),
    ("first_stage_model.decoder.conv_in.weight", &[8, 4, 1, 1]),
    ("model.diffusion_model.input_blocks.0.0.weight", &[8, 4, 1, 1]),
    ("model.diffusion_model.y.attn2.to_k.weight", &[8, 768]),
];

#[test]
fn every_place_is_looked_into_and_look_ups_keep_to_their_kind() {
    let dir = folder_with(&[
        ("root.safetensors", CHECKPOINT),
        ("checkpoints/other.safetensors", CHECKPOINT),
        ("loras/ink.safetensors", LORA),
        (
            "controlnets/edges.safetensors",
            &[("control_model.input_hint_block.0.weight", &[1])],
        ),
        (
            "vaes/clear.safetensors",
            &[("decoder.conv_in.weight", &[8, 4, 3, 3])],
        ),
        ("embeddings/bad-hands.safetensors", &[("emb_params", &[2, 768])]),
    ]);
    let catalogue = Catalogue::scan(&[dir.path().to_owned()]);
    assert_eq!(catalogue.models().count(), 6);
    for name in ["root", "other"] {
        let model = catalogue.model(name).unwrap();
        assert_eq!((model.kind, &model.problem), (ModelKind::Checkpoint, &None));
    }
    assert_eq!(catalogue.lora("ink").unwrap().kind, ModelKind::Lora);
    assert_eq!(catalogue.controlnet("edges").unwrap().kind, ModelKind::Controlnet);
    assert_eq!(catalogue.vae("clear").unwrap().kind, ModelKind::Vae);
    assert_eq!(
        catalogue.embedding("bad-hands").unwrap().kind,
        ModelKind::Embedding
    );
    assert_eq!(catalogue.embeddings().count(), 1);
    assert!(catalogue.model("ink").is_err() && catalogue.lora("root").is_err());
    assert!(catalogue.loadable("edges").is_ok() && catalogue.loadable("ink").is_err());
    for (error, field) in [
        (catalogue.controlnet("edge"), "control"),
        (catalogue.vae("clean"), "vae"),
        (catalogue.embedding("bad-hand"), "prompt"),
    ] {
        let error = error.unwrap_err();
        assert_eq!(error.field.as_deref(), Some(field));
        assert!(error.advice.unwrap().contains("did you mean"));
    }
}

#[test]
fn the_same_name_for_two_kinds_is_two_ids_and_still_one_name() {
    let dir = folder_with(&[("ink.safetensors", CHECKPOINT), ("loras/ink.safetensors", LORA)]);
    let catalogue = Catalogue::scan(&[dir.path().to_owned(), dir.path().to_owned()]);
    assert_eq!(catalogue.models().count(), 2);
    assert_eq!(catalogue.model("ink").unwrap().kind, ModelKind::Checkpoint);
    for name in ["ink", "ink.lora"] {
        assert_eq!(catalogue.lora(name).unwrap().id.as_str(), "ink.lora");
    }
}

#[test]
fn every_listed_record_is_found_by_its_id_whatever_its_kind() {
    let dir = folder_with(&[
        ("ink.safetensors", CHECKPOINT),
        ("loras/ink.safetensors", LORA),
        ("controlnets/mynet.safetensors", &[("control_model.broken", &[1])]),
        (
            "vaes/clear.safetensors",
            &[("decoder.conv_in.weight", &[8, 4, 3, 3])],
        ),
        ("embeddings/bad-hands.safetensors", &[("emb_params", &[2, 768])]),
    ]);
    let catalogue = Catalogue::scan(&[dir.path().to_owned()]);
    assert_eq!(catalogue.models().count(), 5);
    for record in catalogue.models() {
        assert_eq!(catalogue.find(record.id.as_str()).unwrap(), record);
    }
    let error = catalogue.find("mynett").unwrap_err();
    assert_eq!(error.code, Code::NotFound);
    assert!(error.advice.unwrap().contains("mynet"));
}

#[test]
fn a_name_that_several_records_have_says_which_they_are() {
    let dir = folder_with(&[("loras/a.safetensors", LORA), ("loras/b.safetensors", LORA)]);
    let mut catalogue = Catalogue::scan(&[dir.path().to_owned()]);
    catalogue.records[0].name = "Ink".into();
    assert_eq!(catalogue.find("Ink").unwrap().id.as_str(), "a");
    catalogue.records[1].name = "Ink".into();
    let error = catalogue.find("Ink").unwrap_err();
    assert_eq!(
        (error.code, error.field.as_deref()),
        (Code::InvalidInput, Some("id"))
    );
    let advice = error.advice.unwrap();
    assert!(advice.contains("`a` (lora), `b` (lora)"), "{advice}");
    // An id is never in doubt.
    catalogue.records[1].name = "a".into();
    assert_eq!(catalogue.find("a").unwrap().id.as_str(), "a");
}

#[test]
fn a_pickle_never_hides_a_file_that_can_be_opened() {
    let dir = folder_with(&[("a.safetensors", CHECKPOINT)]);
    for name in ["a.ckpt", "b.ckpt"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    let catalogue = Catalogue::scan(&[dir.path().to_owned()]);
    assert_eq!(catalogue.model("a").unwrap().problem, None);
    let problem = catalogue.model("b").unwrap().problem.clone().unwrap();
    assert!(problem.contains("never opened"), "{problem}");
}

#[test]
fn the_default_is_what_the_native_worker_can_take_then_what_needs_only_a_prompt() {
    let mut tensors = CHECKPOINT.to_vec();
    tensors[2].1 = &[8, 9, 1, 1];
    let dir = folder_with(&[("a.safetensors", &tensors), ("b.safetensors", CHECKPOINT)]);
    let own = dir.path().to_owned();
    assert_eq!(
        Catalogue::scan(std::slice::from_ref(&own))
            .default_model()
            .unwrap()
            .id
            .as_str(),
        "b"
    );
    let models = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models"));
    assert_eq!(
        Catalogue::scan(&[own, models])
            .default_model()
            .unwrap()
            .id
            .as_str(),
        "calotype-tiny"
    );
}

#[test]
fn a_worker_is_told_a_checkpoints_file_and_a_controlnets_own_family() {
    let dir = folder_with(&[
        ("a.safetensors", CHECKPOINT),
        (
            "controlnets/edges.safetensors",
            &[("control_model.input_hint_block.0.weight", &[1])],
        ),
    ]);
    let catalogue = Catalogue::scan(&[dir.path().to_owned()]);
    let spec = catalogue.spec(catalogue.model("a").unwrap());
    assert_eq!(
        (spec.family.as_str(), spec.format),
        ("sd", ModelFormat::Checkpoint)
    );
    let file = dir.path().join("a.safetensors").display().to_string();
    assert_eq!(spec.components, [("checkpoint".to_owned(), file)].into());
    let spec = catalogue.spec(catalogue.controlnet("edges").unwrap());
    assert_eq!(spec.family, "controlnet");
}

#[test]
fn hostile_files_become_records_that_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let loras = dir.path().join("loras");
    std::fs::create_dir(&loras).unwrap();
    let mut huge = u64::MAX.to_le_bytes().to_vec();
    huge.extend(b"{}");
    for (name, bytes) in [
        ("empty", vec![]),
        ("huge", huge),
        ("junk", b"\x02\0\0\0\0\0\0\0{]".to_vec()),
    ] {
        std::fs::write(loras.join(format!("{name}.safetensors")), bytes).unwrap();
    }
    let model = dir.path().join("half");
    std::fs::create_dir(&model).unwrap();
    std::fs::write(model.join("model_index.json"), "{}").unwrap();
    let catalogue = Catalogue::scan(&[dir.path().to_owned(), dir.path().join("absent")]);
    assert_eq!(catalogue.models().count(), 4);
    assert!(catalogue.models().all(|record| record.problem.is_some()));
}

/// A diffusers folder of SD with a VAE of these channels, and two small VAEs.
fn with_previewers(vae: &serde_json::Value) -> (tempfile::TempDir, Catalogue) {
    let dir = tempfile::tempdir().unwrap();
    let part = |place: &str, config: &serde_json::Value| {
        let folder = dir.path().join(place);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        write(
            &folder.join("diffusion_pytorch_model.safetensors"),
            &[("a", &[1])],
            &[],
        );
    };
    let nothing = serde_json::json!({});
    for (role, config) in [
        ("unet", &nothing),
        ("vae", vae),
        ("text_encoder", &nothing),
        ("tokenizer", &nothing),
        ("scheduler", &nothing),
    ] {
        part(&format!("drawn/{role}"), config);
    }
    let index = serde_json::json!({ "_class_name": "StableDiffusionPipeline" });
    std::fs::write(dir.path().join("drawn/model_index.json"), index.to_string()).unwrap();
    for name in ["taesdxl", "taesd"] {
        let config = serde_json::json!({ "_class_name": "AutoencoderTiny", "latent_channels": 4 });
        part(&format!("previewers/{name}"), &config);
    }
    part(
        "previewers/other",
        &serde_json::json!({ "_class_name": "AutoencoderKL" }),
    );
    let catalogue = Catalogue::scan(&[dir.path().to_owned()]);
    (dir, catalogue)
}

#[test]
fn previews_are_decoded_by_the_small_vae_of_the_models_latents_and_of_no_others() {
    let usual = serde_json::json!({ "block_out_channels": [128, 256, 512, 512], "scaling_factor": 0.18215 });
    let (dir, catalogue) = with_previewers(&usual);
    let spec = catalogue.spec(catalogue.model("drawn").unwrap());
    let expected = dir.path().join("previewers/taesd").display().to_string();
    assert_eq!(spec.components.get("taesd"), Some(&expected));
    let other = catalogue.models().find(|record| record.id.as_str() == "other");
    assert!(
        other
            .unwrap()
            .problem
            .as_ref()
            .unwrap()
            .contains("AutoencoderTiny")
    );

    let own = serde_json::json!({ "block_out_channels": [32, 64], "scaling_factor": 0.5 });
    let (_dir, catalogue) = with_previewers(&own);
    let spec = catalogue.spec(catalogue.model("drawn").unwrap());
    assert_eq!(spec.components.get("taesd"), None);
}
