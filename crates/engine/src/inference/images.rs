//! Images of a request: base64, a `data:` URL, or `artifact:HASH`. Checked by their headers before anything is decoded.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use calotype_imaging::{DecodeLimits, ImageError, probe};

use crate::error::{Code, Error};
use crate::store::ArtifactHash;

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
