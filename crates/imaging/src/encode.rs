//! Pixels to PNG, JPEG or WebP, with the metadata inside.

use image::codecs::jpeg::JpegEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder};
use serde::{Deserialize, Serialize};

use crate::metadata::{PNG_PARAMETERS, PNG_RECORD, exif_block};
use crate::{ImageError, Metadata, Rgb};

/// The longest EXIF block that a JPEG segment takes: 16 bits of length, less the length and the header.
const JPEG_EXIF_BYTES: usize = 65_535 - 2 - 6;
/// A side of a JPEG has 16 bits.
const JPEG_EDGE: u32 = 65_535;
/// A side of a lossless WebP has 14 bits.
const WEBP_EDGE: u32 = 16_384;

/// The formats that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Lossless, compressed for speed. Its metadata is what most programs read.
    Png,
    /// Lossy; the quality counts.
    Jpeg,
    /// Lossless; smaller than PNG and slower to write.
    Webp,
}

impl Format {
    /// The name in a `Content-Type`.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
        }
    }

    /// The end of a file's name, without the dot.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpg",
            Self::Webp => "webp",
        }
    }
}

/// Encodes a picture. `quality` is 1 to 100 (others are moved there) and counts for JPEG alone.
///
/// The metadata goes into PNG as `iTXt` chunks, into JPEG and WebP as an EXIF block. A JPEG takes 64 KiB of it: beyond
/// that the text for other programs is left out, then the picture is refused as too large.
pub fn encode(
    picture: &Rgb,
    format: Format,
    quality: u8,
    metadata: Option<&Metadata>,
) -> Result<Vec<u8>, ImageError> {
    picture.check()?;
    match format {
        Format::Png => encode_png(picture, metadata),
        Format::Jpeg => encode_jpeg(picture, quality, metadata),
        Format::Webp => encode_webp(picture, metadata),
    }
}

fn encode_png(picture: &Rgb, metadata: Option<&Metadata>) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, picture.width, picture.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    if let Some(metadata) = metadata {
        let record = metadata.to_json()?;
        encoder
            .add_itxt_chunk(PNG_PARAMETERS.to_owned(), metadata.to_parameters())
            .map_err(unencodable)?;
        encoder
            .add_itxt_chunk(PNG_RECORD.to_owned(), record)
            .map_err(unencodable)?;
    }
    let mut writer = encoder.write_header().map_err(unencodable)?;
    writer.write_image_data(&picture.pixels).map_err(unencodable)?;
    writer.finish().map_err(unencodable)?;
    Ok(bytes)
}

fn encode_jpeg(picture: &Rgb, quality: u8, metadata: Option<&Metadata>) -> Result<Vec<u8>, ImageError> {
    check_edge(picture, "longest side of a jpeg in pixels", JPEG_EDGE)?;
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut bytes, quality.clamp(1, 100));
    if let Some(metadata) = metadata {
        let mut block = exif_block(metadata, Some(&metadata.to_parameters()))?;
        if block.len() > JPEG_EXIF_BYTES {
            // The text can be made again from the record.
            block = exif_block(metadata, None)?;
        }
        if block.len() > JPEG_EXIF_BYTES {
            let (have, limit) = (block.len() as u64, JPEG_EXIF_BYTES as u64);
            return Err(ImageError::TooLarge {
                what: "metadata of a jpeg in bytes",
                have,
                limit,
            });
        }
        encoder.set_exif_metadata(block).map_err(unencodable)?;
    }
    encoder
        .write_image(
            &picture.pixels,
            picture.width,
            picture.height,
            ExtendedColorType::Rgb8,
        )
        .map_err(unencodable)?;
    Ok(bytes)
}

fn encode_webp(picture: &Rgb, metadata: Option<&Metadata>) -> Result<Vec<u8>, ImageError> {
    check_edge(picture, "longest side of a webp in pixels", WEBP_EDGE)?;
    let mut bytes = Vec::new();
    let mut encoder = WebPEncoder::new_lossless(&mut bytes);
    if let Some(metadata) = metadata {
        encoder
            .set_exif_metadata(exif_block(metadata, Some(&metadata.to_parameters()))?)
            .map_err(unencodable)?;
    }
    encoder
        .write_image(
            &picture.pixels,
            picture.width,
            picture.height,
            ExtendedColorType::Rgb8,
        )
        .map_err(unencodable)?;
    Ok(bytes)
}

fn check_edge(picture: &Rgb, what: &'static str, limit: u32) -> Result<(), ImageError> {
    let edge = picture.width.max(picture.height);
    if edge > limit {
        return Err(ImageError::TooLarge {
            what,
            have: u64::from(edge),
            limit: u64::from(limit),
        });
    }
    Ok(())
}

fn unencodable(error: impl std::error::Error) -> ImageError {
    ImageError::Unencodable {
        reason: error.to_string(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{DecodeLimits, decode_rgb, psnr};

    /// A smooth picture.
    pub(crate) fn gradient(width: u32, height: u32) -> Rgb {
        let pixels = (0..height)
            .flat_map(|y| (0..width).flat_map(move |x| [x * 255 / width, y * 255 / height, 128]))
            .map(|channel| channel as u8)
            .collect();
        Rgb::new(width, height, pixels).unwrap()
    }

    /// A picture in which no pixel follows from its neighbour.
    pub(crate) fn noise(width: u32, height: u32, seed: u64) -> Rgb {
        let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
        let pixels = (0..width * height * 3)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect();
        Rgb::new(width, height, pixels).unwrap()
    }

    #[test]
    fn jpeg_quality_trades_size_for_likeness() {
        let picture = crate::resize_rgb(&noise(16, 16, 1), 128, 128);
        let [poor, good] = [20, 95].map(|quality| encode(&picture, Format::Jpeg, quality, None).unwrap());
        let likeness = |bytes: &[u8]| psnr(&picture, &decode_rgb(bytes, &DecodeLimits::default()).unwrap());
        assert!(poor.len() < good.len());
        assert!(likeness(&poor) < likeness(&good));
        assert!(likeness(&good) > 35.0, "{}", likeness(&good));
        // Qualities out of range are moved into it.
        assert!(encode(&picture, Format::Jpeg, 0, None).is_ok());
        assert!(encode(&picture, Format::Jpeg, 255, None).is_ok());
    }

    #[test]
    fn encode_refuses_pixels_that_do_not_fit_and_sides_the_format_lacks() {
        let broken = Rgb {
            width: 4,
            height: 4,
            pixels: vec![0; 5],
        };
        for format in [Format::Png, Format::Jpeg, Format::Webp] {
            assert_eq!(
                encode(&broken, format, 90, None),
                Err(ImageError::WrongLength { have: 5, want: 48 })
            );
        }
        let long = Rgb::new(70_000, 1, vec![0; 210_000]).unwrap();
        assert!(encode(&long, Format::Png, 90, None).is_ok());
        assert!(matches!(
            encode(&long, Format::Jpeg, 90, None),
            Err(ImageError::TooLarge { .. })
        ));
        assert!(matches!(
            encode(&long, Format::Webp, 90, None),
            Err(ImageError::TooLarge { .. })
        ));
    }

    #[test]
    fn a_format_is_named_as_on_the_wire() {
        assert_eq!(serde_json::to_string(&Format::Jpeg).unwrap(), "\"jpeg\"");
        assert_eq!(
            (Format::Webp.media_type(), Format::Jpeg.extension()),
            ("image/webp", "jpg")
        );
    }
}
