//! Bytes from anyone to pixels. The format is told by the content, never by a name; sizes are read from the header
//! and refused before pixels are allocated.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use crate::container::{jpeg_parts, webp_exif};
use crate::{Gray, ImageError, Rgb};

/// What a decoder may hold besides a picture's pixels: palettes, profiles, tables.
const OVERHEAD_BYTES: u64 = 64 << 20;
/// The widest pixel that a decoder gives: four channels of 32-bit floats.
const WIDEST_PIXEL_BYTES: u64 = 16;

/// How large a picture may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Longest side, in pixels.
    pub max_edge: u32,
    /// Width × height.
    pub max_pixels: u64,
    /// Bytes of the encoded picture.
    pub max_bytes: u64,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self {
            max_edge: 8192,
            max_pixels: 64 << 20,
            max_bytes: 64 << 20,
        }
    }
}

/// The formats that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceFormat {
    /// Portable Network Graphics.
    Png,
    /// JPEG.
    Jpeg,
    /// WebP, lossy or lossless.
    Webp,
    /// GIF; the first frame.
    Gif,
    /// Windows bitmap.
    Bmp,
    /// TIFF; the first page.
    Tiff,
}

impl SourceFormat {
    /// The name in a `Content-Type`.
    pub fn media_type(self) -> &'static str {
        self.foreign().to_mime_type()
    }

    fn foreign(self) -> ImageFormat {
        match self {
            Self::Png => ImageFormat::Png,
            Self::Jpeg => ImageFormat::Jpeg,
            Self::Webp => ImageFormat::WebP,
            Self::Gif => ImageFormat::Gif,
            Self::Bmp => ImageFormat::Bmp,
            Self::Tiff => ImageFormat::Tiff,
        }
    }

    /// Tells the format by the first bytes.
    pub(crate) fn of(bytes: &[u8]) -> Result<Self, ImageError> {
        match image::guess_format(bytes).map_err(|_| ImageError::NotAnImage)? {
            ImageFormat::Png => Ok(Self::Png),
            ImageFormat::Jpeg => Ok(Self::Jpeg),
            ImageFormat::WebP => Ok(Self::Webp),
            ImageFormat::Gif => Ok(Self::Gif),
            ImageFormat::Bmp => Ok(Self::Bmp),
            ImageFormat::Tiff => Ok(Self::Tiff),
            other => Err(ImageError::UnsupportedFormat {
                format: other.to_mime_type().to_owned(),
            }),
        }
    }
}

/// What the header of a picture says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probed {
    /// What it is.
    pub format: SourceFormat,
    /// Width as it is to be seen: after the turn that EXIF asks for, as `decode_rgb` gives it.
    pub width: u32,
    /// Height as it is to be seen.
    pub height: u32,
}

/// Reads headers only. A picture that passes can still be corrupt further on.
pub fn probe(bytes: &[u8], limits: &DecodeLimits) -> Result<Probed, ImageError> {
    let Opened {
        decoder,
        format,
        orientation,
    } = open(bytes, limits)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = match orientation {
        Orientation::Rotate90
        | Orientation::Rotate270
        | Orientation::Rotate90FlipH
        | Orientation::Rotate270FlipH => (height, width),
        Orientation::NoTransforms
        | Orientation::Rotate180
        | Orientation::FlipHorizontal
        | Orientation::FlipVertical => (width, height),
    };
    Ok(Probed {
        format,
        width,
        height,
    })
}

/// Decodes to colour. What is transparent lets white through; the EXIF orientation is applied.
pub fn decode_rgb(bytes: &[u8], limits: &DecodeLimits) -> Result<Rgb, ImageError> {
    let picture = decode(bytes, limits)?;
    let (width, height) = (picture.width(), picture.height());
    if !picture.color().has_alpha() {
        return Ok(Rgb {
            width,
            height,
            pixels: picture.into_rgb8().into_raw(),
        });
    }
    let over_white = |channel: u8, alpha: u8| {
        let (channel, alpha) = (u32::from(channel), u32::from(alpha));
        ((channel * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    let pixels = picture
        .into_rgba8()
        .as_raw()
        .chunks_exact(4)
        .flat_map(|pixel| [pixel[0], pixel[1], pixel[2]].map(|channel| over_white(channel, pixel[3])))
        .collect();
    Ok(Rgb {
        width,
        height,
        pixels,
    })
}

/// Decodes to a mask: the brightness, times the opacity where there is one. The EXIF orientation is applied.
pub fn decode_gray(bytes: &[u8], limits: &DecodeLimits) -> Result<Gray, ImageError> {
    let picture = decode(bytes, limits)?;
    let (width, height) = (picture.width(), picture.height());
    if !picture.color().has_alpha() {
        return Ok(Gray {
            width,
            height,
            pixels: picture.into_luma8().into_raw(),
        });
    }
    let pixels = picture
        .into_luma_alpha8()
        .as_raw()
        .chunks_exact(2)
        .map(|pixel| ((u32::from(pixel[0]) * u32::from(pixel[1]) + 127) / 255) as u8)
        .collect();
    Ok(Gray {
        width,
        height,
        pixels,
    })
}

fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<DynamicImage, ImageError> {
    let Opened {
        decoder,
        format,
        orientation,
    } = open(bytes, limits)?;
    if format == SourceFormat::Jpeg {
        check_jpeg_ends(bytes)?;
    }
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|error| translate(&error))?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

/// A decoder that has read the header and found the size within the limits.
struct Opened<D> {
    decoder: D,
    format: SourceFormat,
    orientation: Orientation,
}

fn open<'a>(
    bytes: &'a [u8],
    limits: &DecodeLimits,
) -> Result<Opened<impl ImageDecoder + use<'a>>, ImageError> {
    within("encoded bytes", bytes.len() as u64, limits.max_bytes)?;
    let format = SourceFormat::of(bytes)?;

    let mut reader = ImageReader::with_format(Cursor::new(bytes), format.foreign());
    let mut allocation = Limits::no_limits();
    allocation.max_alloc = Some(
        limits
            .max_pixels
            .saturating_mul(WIDEST_PIXEL_BYTES)
            .saturating_add(OVERHEAD_BYTES),
    );
    reader.limits(allocation);
    let mut decoder = reader.into_decoder().map_err(|error| translate(&error))?;

    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(ImageError::Empty);
    }
    within(
        "longest side in pixels",
        u64::from(width.max(height)),
        u64::from(limits.max_edge),
    )?;
    within(
        "number of pixels",
        u64::from(width) * u64::from(height),
        limits.max_pixels,
    )?;

    let orientation = match format {
        SourceFormat::Jpeg => jpeg_parts(bytes)
            .and_then(|parts| parts.exif)
            .and_then(Orientation::from_exif_chunk),
        // Found by our own walk: the decoder would allocate what the chunk claims to be.
        SourceFormat::Webp => webp_exif(bytes).and_then(Orientation::from_exif_chunk),
        SourceFormat::Png | SourceFormat::Tiff => decoder.orientation().ok(),
        SourceFormat::Gif | SourceFormat::Bmp => None,
    };
    Ok(Opened {
        decoder,
        format,
        orientation: orientation.unwrap_or(Orientation::NoTransforms),
    })
}

fn within(what: &'static str, have: u64, limit: u64) -> Result<(), ImageError> {
    if have > limit {
        Err(ImageError::TooLarge { what, have, limit })
    } else {
        Ok(())
    }
}

/// The decoder fills what is missing of a JPEG with grey and calls it a success.
fn check_jpeg_ends(bytes: &[u8]) -> Result<(), ImageError> {
    let ends =
        jpeg_parts(bytes).is_some_and(|parts| parts.scans.windows(2).rev().any(|pair| pair == [0xff, 0xd9]));
    if ends {
        Ok(())
    } else {
        Err(ImageError::Corrupt {
            reason: "the jpeg has no end".to_owned(),
        })
    }
}

fn translate(error: &image::ImageError) -> ImageError {
    match error {
        image::ImageError::Unsupported(why) => ImageError::UnsupportedFormat {
            format: why.to_string(),
        },
        // Sizes are checked before; what a decoder still finds too much is a header that lies.
        other => ImageError::Corrupt {
            reason: other.to_string(),
        },
    }
}

#[cfg(test)]
mod tests;
