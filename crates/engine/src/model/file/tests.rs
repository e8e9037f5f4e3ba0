use super::super::header::tests::write;
use super::*;

/// A diffusers folder of one part.
fn part(dir: &Path, config: &str) -> PathBuf {
    let path = dir.join("part");
    std::fs::create_dir_all(&path).unwrap();
    std::fs::write(path.join("config.json"), config).unwrap();
    write(
        &path.join("diffusion_pytorch_model.safetensors"),
        &[("x", &[3, 4])],
        &[],
    );
    path
}

#[test]
fn a_folder_of_a_controlnet_is_one_for_the_family_of_its_text() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"_class_name":"ControlNetModel","cross_attention_dim":2048,"in_channels":4}"#;
    let path = part(dir.path(), config);
    let found = record(&path, ModelKind::Controlnet).unwrap();
    assert_eq!(found.problem, None);
    assert_eq!(
        (found.family.as_str(), found.text_width, found.parameters),
        ("sdxl", Some(2048), 12)
    );
    assert_eq!(found.components["controlnet"], path.display().to_string());
    let other = record(&path, ModelKind::Vae).unwrap();
    assert!(other.problem.unwrap().contains("ControlNetModel"));
}

#[test]
fn a_folder_of_a_vae_is_told_by_its_scale() {
    let dir = tempfile::tempdir().unwrap();
    for (scale, family) in [(0.18215, "sd"), (0.13025, "sdxl"), (0.3611, "flux")] {
        let config =
            format!(r#"{{"_class_name":"AutoencoderKL","latent_channels":4,"scaling_factor":{scale}}}"#);
        let path = part(dir.path(), &config);
        let found = record(&path, ModelKind::Vae).unwrap();
        assert_eq!((found.problem.as_deref(), found.family.as_str()), (None, family));
        assert_eq!(found.components["vae"], path.display().to_string());
    }
}

#[test]
fn a_part_without_weights_or_without_a_config_is_a_problem() {
    let dir = tempfile::tempdir().unwrap();
    let path = part(dir.path(), r#"{"_class_name":"AutoencoderKL"}"#);
    std::fs::remove_file(path.join("diffusion_pytorch_model.safetensors")).unwrap();
    let problem = |kind| record(&path, kind).unwrap().problem.unwrap();
    assert!(problem(ModelKind::Vae).contains("no safetensors"));
    std::fs::remove_file(path.join("config.json")).unwrap();
    assert!(problem(ModelKind::Vae).contains("config.json is missing"));
    assert!(problem(ModelKind::Embedding).contains("0 safetensors"));
}

#[test]
fn pickles_are_records_that_say_they_are_never_opened() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.ckpt", "a.PT", "a.bin", "a.pth"] {
        let path = dir.path().join(name);
        // Not even made: that it is a problem is known without a look.
        let found = record(&path, ModelKind::Embedding).unwrap();
        assert_eq!(found.id.as_str(), "a");
        assert!(found.problem.unwrap().contains("never opened"));
    }
    for name in ["a.json", "README.md", "a", ".safetensors"] {
        assert!(
            record(&dir.path().join(name), ModelKind::Checkpoint).is_none(),
            "{name}"
        );
    }
}

#[test]
fn a_sidecar_speaks_for_any_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.hands.safetensors");
    write(&path, &[("emb_params", &[2, 768])], &[]);
    let found = record(&path, ModelKind::Embedding).unwrap();
    assert_eq!(
        (found.id.as_str(), found.trigger.as_deref()),
        ("bad.hands", Some("bad.hands"))
    );
    let sidecar = r#"{"format":1,"name":"Bad hands","trigger":"badhands","family":"sdxl"}"#;
    std::fs::write(dir.path().join("bad.hands.json"), sidecar).unwrap();
    let found = record(&path, ModelKind::Embedding).unwrap();
    assert_eq!(
        (
            found.name.as_str(),
            found.trigger.as_deref(),
            found.family.as_str()
        ),
        ("Bad hands", Some("badhands"), "sdxl")
    );
}

#[test]
fn an_embedding_in_a_folder_is_its_file_under_the_folders_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cat-toy");
    std::fs::create_dir(&path).unwrap();
    let file = path.join("learned_embeds.safetensors");
    write(&file, &[("<cat-toy>", &[768])], &[]);
    let found = record(&path, ModelKind::Embedding).unwrap();
    assert_eq!(found.problem, None);
    assert_eq!(
        (found.id.as_str(), found.path),
        ("cat-toy", file.display().to_string())
    );
    assert_eq!(found.trigger.as_deref(), Some("cat-toy"));
}
