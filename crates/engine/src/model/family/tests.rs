use std::path::Path;

use super::super::record::ModelKind;
use super::*;

fn header(tensors: &[(&str, &[usize])], said: &[(&str, &str)]) -> Header {
    Header {
        file_bytes: 0,
        parameters: 0,
        shapes: tensors
            .iter()
            .map(|(name, shape)| ((*name).to_owned(), shape.to_vec()))
            .collect(),
        said: said
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    }
}

fn blank() -> ModelRecord {
    ModelRecord::at(Path::new("x.safetensors"), ModelKind::Checkpoint)
}

/// A checkpoint with a UNet of these channels that attends to text of this width.
fn unet(
    channels: usize,
    width: usize,
    encoder: &str,
    said: &[(&str, &str)],
) -> (Result<(), String>, ModelRecord) {
    let header = header(
        &[
            ("first_stage_model.decoder.conv_in.weight", &[512, 4, 3, 3]),
            (
                "model.diffusion_model.input_blocks.0.0.weight",
                &[320, channels, 3, 3],
            ),
            (
                "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
                &[320, width],
            ),
            (
                "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
                &[1280, width],
            ),
            (encoder, &[1]),
        ],
        said,
    );
    let mut record = blank();
    (of_checkpoint(&header, &mut record), record)
}

const CLIP: &str = "cond_stage_model.transformer.x";
const EMBEDDERS: &str = "conditioner.embedders.0.model.x";

#[test]
fn the_width_of_the_text_tells_checkpoints_apart() {
    for (width, encoder, family, edge, prediction, variant) in [
        (768, CLIP, "sd", 512, "epsilon", Variant::Base),
        (1024, CLIP, "sd", 768, "v_prediction", Variant::Base),
        (2048, EMBEDDERS, "sdxl", 1024, "epsilon", Variant::Base),
        (1280, EMBEDDERS, "sdxl_refiner", 1024, "epsilon", Variant::Refiner),
    ] {
        let (told, record) = unet(4, width, encoder, &[]);
        assert_eq!(told, Ok(()));
        assert_eq!(
            (record.family.as_str(), record.size, record.variant),
            (family, (edge, edge), variant)
        );
        assert_eq!(record.prediction.as_deref(), Some(prediction));
        assert_eq!((record.unet_channels, record.latent_channels), (4, 4));
    }
    assert!(unet(4, 640, CLIP, &[]).0.unwrap_err().contains("640"));
}

#[test]
fn more_channels_than_latents_make_a_variant() {
    for (channels, variant) in [(9, Variant::Inpaint), (8, Variant::Edit), (5, Variant::Depth)] {
        let (told, record) = unet(channels, 768, CLIP, &[]);
        assert_eq!(
            (told, record.variant, record.unet_channels),
            (Ok(()), variant, channels as u32)
        );
    }
}

#[test]
fn what_a_checkpoint_says_of_itself_goes_before_what_is_usual() {
    let (_, record) = unet(4, 1024, CLIP, &[("modelspec.prediction_type", "epsilon")]);
    assert_eq!(
        (record.prediction.as_deref(), record.size),
        (Some("epsilon"), (512, 512))
    );
    let (_, record) = unet(
        4,
        768,
        CLIP,
        &[
            ("modelspec.resolution", "640x768"),
            ("modelspec.predict_key", "v"),
        ],
    );
    assert_eq!(
        (record.prediction.as_deref(), record.size),
        (Some("v_prediction"), (640, 768))
    );
    for nonsense in ["", "x", "0x0", "9999999999x8", "7x7"] {
        let (_, record) = unet(4, 768, CLIP, &[("modelspec.resolution", nonsense)]);
        assert_eq!(record.size, (512, 512));
    }
}

#[test]
fn sd3_and_flux_are_told_from_the_rest() {
    let mut record = blank();
    let sd3 = header(
        &[
            ("first_stage_model.decoder.conv_in.weight", &[512, 16, 3, 3]),
            (
                "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",
                &[1, 1],
            ),
            ("model.diffusion_model.x_embedder.proj.weight", &[1536, 16, 2, 2]),
            ("text_encoders.clip_l.x", &[1]),
        ],
        &[],
    );
    assert_eq!(of_checkpoint(&sd3, &mut record), Ok(()));
    assert_eq!(
        (
            record.family.as_str(),
            record.latent_channels,
            record.unet_channels
        ),
        ("sd3", 16, 16)
    );
    let flux = header(
        &[
            ("double_blocks.0.img_attn.qkv.weight", &[1, 1]),
            ("img_in.weight", &[3072, 64]),
        ],
        &[],
    );
    assert_eq!(record.lacks, ["text_encoder_2"]);
    assert_eq!(of_checkpoint(&flux, &mut record), Ok(()));
    assert_eq!(record.lacks, ["vae", "text_encoder", "text_encoder_2"]);
    assert_eq!(
        (record.family.as_str(), record.unet_channels, record.variant),
        ("flux", 16, Variant::Base)
    );
}

#[test]
fn a_file_in_the_wrong_place_is_told_the_right_one() {
    for (name, place) in [
        ("lora_unet_x.lora_down.weight", "loras"),
        ("controlnet_cond_embedding.conv_in.weight", "controlnets"),
        ("decoder.conv_in.weight", "vaes"),
        ("emb_params", "embeddings"),
    ] {
        let problem = of_checkpoint(&header(&[(name, &[2, 4])], &[]), &mut blank()).unwrap_err();
        assert!(problem.contains(&format!("models/{place}")), "{problem}");
    }
    assert!(of_checkpoint(&header(&[("x", &[1])], &[]), &mut blank()).is_err());
    assert!(of_checkpoint(&header(&[], &[]), &mut blank()).is_err());
}

#[test]
fn a_lora_fits_the_family_whose_text_it_reads() {
    for (name, shape, family) in [
        ("lora_unet_x_attn2_to_k.lora_down.weight", [8, 2048], "sdxl"),
        ("unet.x.attn2.to_k.lora_A.weight", [8, 1024], "sd"),
        ("unet.x.attn2.to_k.lora_B.weight", [2048, 8], "sd"),
        ("lora_te2_x.lora_down.weight", [8, 99], "sdxl"),
        ("lora_unet_double_blocks_0_x.lora_down.weight", [8, 99], "flux"),
        (
            "lora_unet_single_blocks_0_linear1.lora_down.weight",
            [8, 99],
            "flux",
        ),
        (
            "transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight",
            [8, 99],
            "sd3",
        ),
        ("unet.x.lora_A.weight", [8, 99], "sd"),
    ] {
        let mut record = blank();
        of_lora(&header(&[(name, &shape)], &[]), &mut record);
        assert_eq!(record.family, family, "{name}");
    }
}

#[test]
fn an_embedding_fits_the_family_of_its_width() {
    let told = |tensors: &[(&str, &[usize])]| {
        let mut record = blank();
        of_embedding(&header(tensors, &[]), &mut record).map(|()| (record.family, record.text_width))
    };
    assert_eq!(told(&[("emb_params", &[4, 768])]), Ok(("sd".into(), Some(768))));
    assert_eq!(told(&[("<word>", &[1024])]), Ok(("sd".into(), Some(1024))));
    assert_eq!(
        told(&[("clip_g", &[4, 1280]), ("clip_l", &[4, 768])]),
        Ok(("sdxl".into(), Some(2048)))
    );
    assert!(told(&[("x", &[1, 2, 3])]).is_err() && told(&[]).is_err());
}

#[test]
fn a_lora_changes_as_many_numbers_as_the_products_of_its_matrices_have() {
    let changed = |tensors: &[(&str, &[usize])]| {
        let mut record = blank();
        of_lora(&header(tensors, &[]), &mut record);
        record.lora_elements
    };
    let layers: [(&str, &[usize]); 6] = [
        ("unet.a.to_q.lora_A.weight", &[4, 320]),
        ("unet.a.to_q.lora_B.weight", &[640, 4]),
        ("lora_unet_conv.lora_down.weight", &[4, 32, 3, 3]),
        ("lora_unet_conv.lora_up.weight", &[64, 4, 1, 1]),
        ("lora_unet_conv.alpha", &[]),
        // One without its other half: it is refused when it is laid on.
        ("unet.b.lora.down.weight", &[4, 10]),
    ];
    assert_eq!(changed(&layers), 640 * 320 + 64 * 32 * 9);
    assert_eq!(changed(&[("x.lora_A.weight", &[]), ("x.lora_B.weight", &[])]), 0);
}
