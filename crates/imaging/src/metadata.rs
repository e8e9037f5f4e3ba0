//! How a picture was made, written into it: our own record as JSON, which is read back exactly, and beside it a text
//! that other programs read (`parameters`).
//!
//! | Format | The record | The text |
//! | --- | --- | --- |
//! | PNG | `iTXt` with the keyword `calotype` | `iTXt` with the keyword `parameters` |
//! | JPEG, WebP | EXIF `MakerNote`, after `calotype` and a zero | EXIF `UserComment` |

use std::io::Cursor;

use serde::{Deserialize, Serialize};

use crate::container::{jpeg_parts, webp_exif};
use crate::decode::SourceFormat;
use crate::{ImageError, exif};

/// The version of the record that is written. A reader takes any version and leaves out fields that it does not know.
pub const METADATA_FORMAT: u32 = 1;

/// The keyword of the text for other programs.
pub(crate) const PNG_PARAMETERS: &str = "parameters";
/// The keyword of our record.
pub(crate) const PNG_RECORD: &str = "calotype";
/// What tells our `MakerNote` from a camera's.
const MAKER_NOTE_HEADER: &[u8] = b"calotype\0";
/// How much a PNG may hold in text, unpacked.
const PNG_TEXT_BYTES: usize = 64 << 20;

/// How a picture was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metadata {
    /// Version of this record: `METADATA_FORMAT`.
    pub format: u32,
    /// The program that made the picture, with its version.
    pub software: String,
    /// What was asked for.
    pub prompt: String,
    /// What was to be avoided; empty for nothing.
    pub negative_prompt: String,
    /// Denoising steps.
    pub steps: u32,
    /// Name of the sampler.
    pub sampler: String,
    /// Name of the noise schedule.
    pub schedule: String,
    /// Guidance scale.
    pub guidance: f32,
    /// The seed that gives this very picture.
    pub seed: u64,
    /// Width that was asked for, in pixels.
    pub width: u32,
    /// Height that was asked for, in pixels.
    pub height: u32,
    /// Name of the model.
    pub model: String,
    /// The LoRAs, in the order in which they were laid on.
    pub loras: Vec<LoraUse>,
    /// What kind of work it was, such as `txt2img`.
    pub mode: String,
    /// How far it was allowed to leave the picture it began with.
    pub strength: Option<f32>,
    /// Layers of the text encoder that were left out.
    pub clip_skip: Option<u32>,
    /// The preset that filled in what the request left out.
    pub preset: Option<String>,
    /// The engine that ran the model.
    pub engine: Option<String>,
}

/// A LoRA and how strongly it was laid on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraUse {
    /// The file without its ending, as prompts call it.
    pub name: String,
    /// Its weight.
    pub weight: f32,
}

impl Default for Metadata {
    fn default() -> Self {
        Self {
            format: METADATA_FORMAT,
            software: String::new(),
            prompt: String::new(),
            negative_prompt: String::new(),
            steps: 0,
            sampler: String::new(),
            schedule: String::new(),
            guidance: 0.0,
            seed: 0,
            width: 0,
            height: 0,
            model: String::new(),
            loras: Vec::new(),
            mode: String::new(),
            strength: None,
            clip_skip: None,
            preset: None,
            engine: None,
        }
    }
}

impl Metadata {
    pub(crate) fn to_json(&self) -> Result<String, ImageError> {
        let numbers = [Some(self.guidance), self.strength];
        let weights = self.loras.iter().map(|lora| lora.weight);
        if !numbers.into_iter().flatten().chain(weights).all(f32::is_finite) {
            // JSON has no word for it: it would be written as null and not read back.
            return Err(ImageError::BadMetadata {
                reason: "a number is not finite".to_owned(),
            });
        }
        serde_json::to_string(self).map_err(|error| ImageError::BadMetadata {
            reason: error.to_string(),
        })
    }
}

/// Our record in a picture that we made. `None` for a picture that has none; an error for one that cannot be read.
pub fn read_metadata(bytes: &[u8]) -> Result<Option<Metadata>, ImageError> {
    let record = match SourceFormat::of(bytes)? {
        SourceFormat::Png => png_text(bytes, PNG_RECORD)?.map(String::into_bytes),
        SourceFormat::Jpeg | SourceFormat::Webp => exif_of(bytes)
            .and_then(exif::maker_note)
            .and_then(|note| note.strip_prefix(MAKER_NOTE_HEADER))
            .map(<[u8]>::to_vec),
        SourceFormat::Gif | SourceFormat::Bmp | SourceFormat::Tiff => None,
    };
    record
        .map(|record| serde_json::from_slice(&record))
        .transpose()
        .map_err(|error| ImageError::BadMetadata {
            reason: error.to_string(),
        })
}

/// The text for other programs, from us or from them; `parse_parameters` reads it. `None` also for what cannot be read.
pub fn read_parameters(bytes: &[u8]) -> Option<String> {
    let text = match SourceFormat::of(bytes).ok()? {
        SourceFormat::Png => png_text(bytes, PNG_PARAMETERS).ok()?,
        SourceFormat::Jpeg | SourceFormat::Webp => exif_of(bytes).and_then(exif::user_comment),
        SourceFormat::Gif | SourceFormat::Bmp | SourceFormat::Tiff => None,
    };
    // A JPEG without room for both has only the record.
    text.or_else(|| {
        read_metadata(bytes)
            .ok()
            .flatten()
            .map(|metadata| metadata.to_parameters())
    })
}

/// The EXIF block for a JPEG or a WebP.
pub(crate) fn exif_block(metadata: &Metadata, parameters: Option<&str>) -> Result<Vec<u8>, ImageError> {
    let record = metadata.to_json()?;
    let note = [MAKER_NOTE_HEADER, record.as_bytes()].concat();
    Ok(exif::write(&metadata.software, parameters, &note))
}

fn exif_of(bytes: &[u8]) -> Option<&[u8]> {
    jpeg_parts(bytes)
        .and_then(|parts| parts.exif)
        .or_else(|| webp_exif(bytes))
}

/// The text under `keyword`, in whichever of the three kinds of text chunk it lies, before or after the pixels.
fn png_text(bytes: &[u8], keyword: &str) -> Result<Option<String>, ImageError> {
    let corrupt = |error: png::DecodingError| ImageError::Corrupt {
        reason: error.to_string(),
    };
    let limits = png::Limits {
        bytes: PNG_TEXT_BYTES,
    };
    let decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    let mut reader = decoder.read_info().map_err(corrupt)?;
    if let Some(text) = text_in(reader.info(), keyword) {
        return Ok(Some(text));
    }
    // Pixels that are cut off take no words with them that stand before.
    if reader.finish().is_err() {
        return Ok(None);
    }
    Ok(text_in(reader.info(), keyword))
}

fn text_in(info: &png::Info<'_>, keyword: &str) -> Option<String> {
    if let Some(chunk) = info.utf8_text.iter().find(|chunk| chunk.keyword == keyword) {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(PNG_TEXT_BYTES).ok()?;
        return chunk.get_text().ok();
    }
    if let Some(chunk) = info
        .uncompressed_latin1_text
        .iter()
        .find(|chunk| chunk.keyword == keyword)
    {
        return Some(chunk.text.clone());
    }
    let mut chunk = info
        .compressed_latin1_text
        .iter()
        .find(|chunk| chunk.keyword == keyword)?
        .clone();
    chunk.decompress_text_with_limit(PNG_TEXT_BYTES).ok()?;
    chunk.get_text().ok()
}

#[cfg(test)]
pub(crate) mod tests;
