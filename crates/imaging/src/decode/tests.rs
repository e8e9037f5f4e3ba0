use image::codecs::gif::GifEncoder;
use image::{ImageEncoder, RgbaImage};
use proptest::prelude::*;

use super::*;
use crate::encode::tests::{gradient, noise};
use crate::{Format, encode, psnr};

fn limits() -> DecodeLimits {
    DecodeLimits::default()
}

fn written(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// The same small picture in every format that is read.
fn one_of_each() -> Vec<(SourceFormat, Vec<u8>)> {
    let picture = gradient(24, 16);
    let picture = DynamicImage::ImageRgb8(image::RgbImage::from_raw(24, 16, picture.pixels).unwrap());
    [
        SourceFormat::Png,
        SourceFormat::Jpeg,
        SourceFormat::Webp,
        SourceFormat::Gif,
        SourceFormat::Bmp,
        SourceFormat::Tiff,
    ]
    .map(|format| match format {
        SourceFormat::Gif => {
            let mut bytes = Vec::new();
            GifEncoder::new(&mut bytes)
                .encode(
                    picture.to_rgba8().as_raw(),
                    24,
                    16,
                    image::ExtendedColorType::Rgba8,
                )
                .unwrap();
            (format, bytes)
        }
        _ => (format, written(&picture, format.foreign())),
    })
    .to_vec()
}

/// A PNG that ends after its header and the start of its data.
fn png_claiming(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgba);
    let mut writer = encoder.write_header().unwrap();
    writer.write_chunk(png::chunk::IDAT, &[0x78, 0x01]).unwrap();
    std::mem::forget(writer);
    bytes
}

#[test]
fn every_format_is_told_by_its_content_and_decoded() {
    let picture = gradient(24, 16);
    for (format, bytes) in one_of_each() {
        assert_eq!(
            probe(&bytes, &limits()),
            Ok(Probed {
                format,
                width: 24,
                height: 16
            })
        );
        let decoded = decode_rgb(&bytes, &limits()).unwrap();
        assert!(
            psnr(&picture, &decoded) > 25.0,
            "{format:?}: {}",
            psnr(&picture, &decoded)
        );
        assert_eq!(decode_gray(&bytes, &limits()).unwrap().pixels.len(), 24 * 16);
    }
}

#[test]
fn a_bomb_is_refused_by_its_header() {
    let bomb = png_claiming(100_000, 100_000);
    let refused = ImageError::TooLarge {
        what: "longest side in pixels",
        have: 100_000,
        limit: 8192,
    };
    assert_eq!(decode_rgb(&bomb, &limits()), Err(refused.clone()));
    assert_eq!(decode_gray(&bomb, &limits()), Err(refused.clone()));
    assert_eq!(probe(&bomb, &limits()), Err(refused));

    let wide = DecodeLimits {
        max_edge: u32::MAX,
        ..limits()
    };
    let refused = ImageError::TooLarge {
        what: "number of pixels",
        have: 10_000_000_000,
        limit: 64 << 20,
    };
    assert_eq!(decode_rgb(&bomb, &wide), Err(refused));

    // The header of a bitmap lies in plain bytes.
    let (_, mut bitmap) = one_of_each().remove(4);
    bitmap[18..22].copy_from_slice(&60_000_u32.to_le_bytes());
    assert!(matches!(
        decode_rgb(&bitmap, &limits()),
        Err(ImageError::TooLarge { have: 60_000, .. })
    ));

    let tight = DecodeLimits {
        max_bytes: 10,
        ..limits()
    };
    assert!(matches!(
        decode_rgb(&bomb, &tight),
        Err(ImageError::TooLarge {
            what: "encoded bytes",
            ..
        })
    ));
}

#[test]
fn a_truncated_file_is_corrupt_in_every_format() {
    for (format, bytes) in one_of_each() {
        for keep in [bytes.len() / 2, bytes.len() * 3 / 4, 30] {
            let result = decode_rgb(&bytes[..keep], &limits());
            assert!(
                matches!(result, Err(ImageError::Corrupt { .. })),
                "{format:?} {keep}: {result:?}"
            );
        }
    }
}

#[test]
fn what_is_no_picture_is_said_to_be_none() {
    assert_eq!(decode_rgb(b"", &limits()), Err(ImageError::NotAnImage));
    assert_eq!(decode_rgb(b"<html>", &limits()), Err(ImageError::NotAnImage));
    let avif = b"\0\0\0\x20ftypavif\0\0\0\0";
    assert!(matches!(
        decode_rgb(avif, &limits()),
        Err(ImageError::UnsupportedFormat { .. })
    ));
}

#[test]
fn alpha_lets_white_through_and_closes_a_mask() {
    let pixels = vec![255, 0, 0, 255, 255, 0, 0, 0, 0, 0, 0, 128, 255, 255, 255, 51];
    let picture = DynamicImage::ImageRgba8(RgbaImage::from_raw(4, 1, pixels).unwrap());
    let bytes = written(&picture, ImageFormat::Png);
    let rgb = decode_rgb(&bytes, &limits()).unwrap();
    assert_eq!(
        rgb.pixels,
        [255, 0, 0, 255, 255, 255, 127, 127, 127, 255, 255, 255]
    );
    let mask = decode_gray(&bytes, &limits()).unwrap();
    assert_eq!(mask.pixels[1..], [0, 0, 51]);
}

#[test]
fn sixteen_bits_become_eight() {
    let deep = image::ImageBuffer::from_raw(2, 1, vec![0_u16, 65535]).unwrap();
    let bytes = written(&DynamicImage::ImageLuma16(deep), ImageFormat::Png);
    assert_eq!(decode_gray(&bytes, &limits()).unwrap().pixels, [0, 255]);
}

#[test]
fn exif_orientation_is_applied_in_jpeg_webp_and_png() {
    // A block whose only entry says: turn by 90 degrees clockwise.
    let block = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0".to_vec();
    // Left half black, right half white: turned, the top is black.
    let pixels: Vec<u8> = (0..16 * 32)
        .flat_map(|at| [if at % 32 < 16 { 0 } else { 255 }; 3])
        .collect();

    let mut jpeg = Vec::new();
    let mut encoder = image::codecs::jpeg::JpegEncoder::new(&mut jpeg);
    encoder.set_exif_metadata(block.clone()).unwrap();
    encoder
        .write_image(&pixels, 32, 16, image::ExtendedColorType::Rgb8)
        .unwrap();
    let mut webp = Vec::new();
    let mut encoder = image::codecs::webp::WebPEncoder::new_lossless(&mut webp);
    encoder.set_exif_metadata(block.clone()).unwrap();
    encoder
        .write_image(&pixels, 32, 16, image::ExtendedColorType::Rgb8)
        .unwrap();
    let mut png = Vec::new();
    let mut encoder = image::codecs::png::PngEncoder::new(&mut png);
    encoder.set_exif_metadata(block).unwrap();
    encoder
        .write_image(&pixels, 32, 16, image::ExtendedColorType::Rgb8)
        .unwrap();

    for bytes in [jpeg, webp, png] {
        let probed = probe(&bytes, &limits()).unwrap();
        assert_eq!((probed.width, probed.height), (16, 32), "{:?}", probed.format);
        let picture = decode_rgb(&bytes, &limits()).unwrap();
        assert_eq!((picture.width, picture.height), (16, 32));
        assert!(picture.pixels[0] < 8 && picture.pixels[picture.pixels.len() - 1] > 247);
    }
}

proptest! {
    #[test]
    fn decode_never_panics_on_arbitrary_bytes(
        start in prop::sample::select(vec![
            &b""[..], b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x40\0\0\0WEBPVP8L", b"RIFF\x40\0\0\0WEBPVP8X",
            b"GIF89a", b"BM", b"II\x2a\0\x08\0\0\0", b"MM\0\x2a\0\0\0\x08",
        ]),
        rest in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let bytes = [start, &rest].concat();
        let limits = DecodeLimits { max_edge: 512, max_pixels: 1 << 16, ..limits() };
        let _ = probe(&bytes, &limits);
        let _ = decode_rgb(&bytes, &limits);
        let _ = decode_gray(&bytes, &limits);
        let _ = crate::read_metadata(&bytes);
        let _ = crate::read_parameters(&bytes);
    }

    #[test]
    fn decode_never_panics_on_a_picture_with_wrong_bytes(
        which in 0_usize..6,
        wrong in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        near_the_start: bool,
        cut in any::<prop::sample::Index>(),
    ) {
        let (_, mut bytes) = one_of_each().remove(which);
        let reach = if near_the_start { bytes.len().min(120) } else { bytes.len() };
        for (at, byte) in wrong {
            bytes[at.index(reach)] = byte;
        }
        bytes.truncate(bytes.len() - cut.index(bytes.len()) / 8);
        let limits = DecodeLimits { max_edge: 512, max_pixels: 1 << 16, ..limits() };
        let _ = decode_rgb(&bytes, &limits);
        let _ = crate::read_metadata(&bytes);
    }

    #[test]
    fn png_and_webp_give_back_every_pixel(width in 1_u32..40, height in 1_u32..40, seed: u64) {
        let picture = noise(width, height, seed);
        for format in [Format::Png, Format::Webp] {
            let bytes = encode(&picture, format, 90, None).unwrap();
            prop_assert_eq!(&decode_rgb(&bytes, &limits()).unwrap(), &picture);
        }
    }
}
