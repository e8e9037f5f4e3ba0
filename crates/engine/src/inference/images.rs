//! Images of a request: base64, a `data:` URL, or `artifact:HASH`. Checked by their headers before anything is decoded.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use calotype_imaging::{DecodeLimits, ImageError, probe};

use crate::artifact::ArtifactHash;
use crate::error::{Code, Error};

/// An image as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputImage {
    /// A file.
    Bytes(Vec<u8>),
    /// One that is kept already.
    Artifact(ArtifactHash),
}

/// The images of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inputs {
    /// To start from.
    pub init_image: Option<InputImage>,
    /// Where to repaint.
    pub mask: Option<InputImage>,
    /// Of the ControlNet units, in their order.
    pub control: Vec<InputImage>,
}

/// Reads one of the three forms.
pub(super) fn input(text: &str, field: &str) -> Result<InputImage, Error> {
    if let Some(hash) = text.strip_prefix("artifact:") {
        return ArtifactHash::parse(hash)
            .map(InputImage::Artifact)
            .ok_or_else(|| {
                Error::invalid(field, "an artifact's hash has 64 hexadecimal digits")
                    .advice("take it from the job's result")
            });
    }
    let encoded = match text.strip_prefix("data:") {
        None => text,
        Some(url) => match url.split_once(";base64,") {
            Some((_, encoded)) => encoded,
            None => return Err(Error::invalid(field, "a data: URL must be base64")),
        },
    };
    let bytes = STANDARD.decode(encoded.trim()).map_err(|error| {
        Error::new(Code::ImageRefused, format!("the image is not base64: {error}"))
            .field(field)
            .advice("send base64, a data: URL, or artifact:HASH")
    })?;
    check_image(&bytes, field)?;
    Ok(InputImage::Bytes(bytes))
}

/// Refuses what is no image or would be too large, from its header alone.
pub(crate) fn check_image(bytes: &[u8], field: &str) -> Result<(), Error> {
    probe(bytes, &DecodeLimits::default())
        .map(drop)
        .map_err(|error| refused(&error, field))
}

pub(super) fn refused(error: &ImageError, field: &str) -> Error {
    Error::new(Code::ImageRefused, format!("the image cannot be used: {error}"))
        .field(field)
        .advice("PNG, JPEG, WebP, GIF, BMP and TIFF up to 8192 pixels an edge are taken")
}

#[cfg(test)]
mod tests {
    use calotype_imaging::{Format, Rgb, encode};

    use super::*;

    fn png() -> Vec<u8> {
        encode(&Rgb::new(2, 2, vec![9; 12]).unwrap(), Format::Png, 90, None).unwrap()
    }

    #[test]
    fn base64_a_data_url_and_an_artifact_are_taken() {
        let encoded = STANDARD.encode(png());
        assert_eq!(input(&encoded, "mask"), Ok(InputImage::Bytes(png())));
        assert_eq!(
            input(&format!("data:image/png;base64,{encoded}"), "mask"),
            Ok(InputImage::Bytes(png()))
        );
        let hash = ArtifactHash::of(b"x");
        assert_eq!(
            input(&format!("artifact:{}", hash.0), "mask"),
            Ok(InputImage::Artifact(hash))
        );
    }

    #[test]
    fn what_is_no_image_is_refused_by_its_field() {
        for text in [
            "",
            "%%%",
            "AAAA",
            "data:image/png,xx",
            "artifact:../../etc/passwd",
            "artifact:",
        ] {
            assert_eq!(
                input(text, "mask").unwrap_err().field.as_deref(),
                Some("mask"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_bomb_is_refused_by_its_header_alone() {
        let mut bomb = png();
        // Width and height of IHDR, with a checksum that fits.
        bomb[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
        let checksum = crc(&bomb[12..29]);
        bomb[29..33].copy_from_slice(&checksum.to_be_bytes());
        assert_eq!(
            check_image(&bomb, "init_image").unwrap_err().code,
            Code::ImageRefused
        );
    }

    fn crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
            })
        })
    }
}
