use proptest::prelude::*;

use super::*;
use crate::encode::tests::gradient;
use crate::{DecodeLimits, Format, decode_rgb, encode, parse_parameters};

const FORMATS: [Format; 3] = [Format::Png, Format::Jpeg, Format::Webp];

pub(crate) fn sample() -> Metadata {
    Metadata {
        software: "calotype 0.1.0".to_owned(),
        prompt: "a cat, \"in oil\",\nby the sea — 猫 🐈".to_owned(),
        negative_prompt: "blurry, low quality".to_owned(),
        steps: 4,
        sampler: "euler".to_owned(),
        schedule: "karras".to_owned(),
        guidance: 7.5,
        seed: u64::MAX,
        width: 512,
        height: 768,
        model: "calotype-tiny".to_owned(),
        loras: vec![LoraUse {
            name: "ink, wash".to_owned(),
            weight: 0.8,
        }],
        mode: "txt2img".to_owned(),
        strength: Some(0.6),
        clip_skip: Some(2),
        preset: Some("draft".to_owned()),
        engine: Some("native".to_owned()),
        ..Metadata::default()
    }
}

fn any_metadata() -> impl Strategy<Value = Metadata> {
    let words = (
        any::<String>(),
        any::<String>(),
        any::<String>(),
        any::<String>(),
        any::<String>(),
    );
    let numbers = (
        any::<u32>(),
        any::<u64>(),
        -1e6_f32..1e6,
        prop::option::of(0.0_f32..1.0),
    );
    let loras = prop::collection::vec((any::<String>(), -2.0_f32..2.0), 0..3);
    (words, numbers, loras, prop::option::of(any::<String>())).prop_map(
        |(
            (software, prompt, negative_prompt, sampler, model),
            (steps, seed, guidance, strength),
            loras,
            preset,
        )| {
            let loras = loras
                .into_iter()
                .map(|(name, weight)| LoraUse { name, weight })
                .collect();
            Metadata {
                software,
                prompt,
                negative_prompt,
                sampler,
                model,
                steps,
                seed,
                guidance,
                strength,
                loras,
                preset,
                ..sample()
            }
        },
    )
}

#[test]
fn metadata_is_read_back_from_every_format_and_the_picture_is_whole() {
    let picture = gradient(16, 12);
    for format in FORMATS {
        let bytes = encode(&picture, format, 90, Some(&sample())).unwrap();
        assert_eq!(read_metadata(&bytes), Ok(Some(sample())), "{format:?}");
        let text = read_parameters(&bytes).unwrap();
        assert_eq!(text, sample().to_parameters(), "{format:?}");
        assert_eq!(decode_rgb(&bytes, &DecodeLimits::default()).unwrap().width, 16);
    }
}

#[test]
fn a_picture_without_metadata_has_none() {
    for format in FORMATS {
        let bytes = encode(&gradient(8, 8), format, 90, None).unwrap();
        assert_eq!(read_metadata(&bytes), Ok(None));
        assert_eq!(read_parameters(&bytes), None);
    }
    assert_eq!(read_metadata(b"nothing"), Err(ImageError::NotAnImage));
}

#[test]
fn a_jpeg_without_room_for_both_keeps_the_record() {
    let metadata = Metadata {
        prompt: "word, ".repeat(6000),
        ..sample()
    };
    let bytes = encode(&gradient(8, 8), Format::Jpeg, 90, Some(&metadata)).unwrap();
    assert_eq!(read_metadata(&bytes), Ok(Some(metadata.clone())));
    assert_eq!(
        parse_parameters(&read_parameters(&bytes).unwrap()).prompt,
        metadata.prompt
    );

    let metadata = Metadata {
        prompt: "word, ".repeat(20_000),
        ..sample()
    };
    let refused = encode(&gradient(8, 8), Format::Jpeg, 90, Some(&metadata));
    assert!(matches!(refused, Err(ImageError::TooLarge { .. })));
    for format in [Format::Png, Format::Webp] {
        let bytes = encode(&gradient(8, 8), format, 90, Some(&metadata)).unwrap();
        assert_eq!(read_metadata(&bytes), Ok(Some(metadata.clone())));
    }
}

#[test]
fn metadata_from_a_later_version_is_read_without_what_is_new() {
    let mut record: serde_json::Value = serde_json::from_str(&sample().to_json().unwrap()).unwrap();
    record["format"] = 2.into();
    record["aura"] = "green".into();
    let expected = Metadata {
        format: 2,
        ..sample()
    };
    assert_eq!(serde_json::from_value::<Metadata>(record).unwrap(), expected);
    assert_eq!(
        serde_json::from_str::<Metadata>("{}").unwrap(),
        Metadata::default()
    );
}

#[test]
fn metadata_with_a_number_that_json_lacks_is_refused() {
    for bad in [f32::NAN, f32::INFINITY] {
        let metadata = Metadata {
            guidance: bad,
            ..sample()
        };
        for format in FORMATS {
            let refused = encode(&gradient(8, 8), format, 90, Some(&metadata));
            assert!(matches!(refused, Err(ImageError::BadMetadata { .. })));
        }
    }
}

#[test]
fn parameters_of_other_programs_are_read_from_every_text_chunk() {
    let text = "a cat\nSteps: 20, Sampler: Euler a, Seed: 1";
    for kind in 0..3 {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
        match kind {
            0 => encoder
                .add_text_chunk("parameters".to_owned(), text.to_owned())
                .unwrap(),
            1 => encoder
                .add_ztxt_chunk("parameters".to_owned(), text.to_owned())
                .unwrap(),
            _ => {}
        }
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&[0]).unwrap();
        if kind == 2 {
            let mut chunk = png::text_metadata::ITXtChunk::new("parameters", text);
            chunk.compress_text().unwrap();
            chunk.compressed = true;
            writer.write_text_chunk(&chunk).unwrap();
        }
        writer.finish().unwrap();
        assert_eq!(read_parameters(&bytes).as_deref(), Some(text), "kind {kind}");
        assert_eq!(read_metadata(&bytes), Ok(None));
    }
}

proptest! {
    #[test]
    fn metadata_read_equals_metadata_written(metadata in any_metadata()) {
        for format in FORMATS {
            let bytes = encode(&gradient(4, 4), format, 90, Some(&metadata)).unwrap();
            prop_assert_eq!(&read_metadata(&bytes).unwrap().unwrap(), &metadata);
            let text = read_parameters(&bytes).unwrap();
            prop_assert_eq!(&text, &metadata.to_parameters());
        }
    }
}
