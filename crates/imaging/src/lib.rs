//! Pixels in, pixels out: decode with limits, resize, encode, and the words that travel inside a picture.
//! Pure: knows no file, no clock, no async and no network. All bytes that come in are taken as hostile.
//!
//! | File | What it does |
//! | --- | --- |
//! | `decode` | bytes from anyone to pixels; the only place that meets foreign picture data |
//! | `resize` | pixels to pixels of another size |
//! | `mask` | where to repaint, made larger, smaller, softer or the opposite |
//! | `area` | a rectangle of a picture: chosen from a mask, cut out, pasted back |
//! | `canny` | the edges of a picture, for ControlNets |
//! | `lines` | a picture as line art or as a scribble, likewise |
//! | `encode` | pixels to PNG, JPEG or WebP |
//! | `metadata` | how a picture was made, written into it and read back |
//! | `parameters` | the same as a line of text that other programs read |
//! | `exif`, `container` | the bytes in which JPEG and WebP carry it |
//! | `phash`, `compare` | how alike two pictures are |

mod area;
mod canny;
mod compare;
mod container;
mod decode;
mod encode;
mod error;
mod exif;
mod lines;
mod mask;
mod metadata;
mod parameters;
mod phash;
mod picture;
mod resize;

pub use area::{Area, crop_gray, crop_rgb, paste, repaint_area};
pub use canny::canny;
pub use compare::psnr;
pub use decode::{DecodeLimits, Probed, SourceFormat, decode_gray, decode_rgb, probe};
pub use encode::{Format, encode};
pub use error::ImageError;
pub use lines::{lineart, scribble};
pub use metadata::{LoraUse, METADATA_FORMAT, Metadata, read_metadata, read_parameters};
pub use parameters::{Parameters, parse_parameters};
pub use phash::{distance, perceptual_hash};
pub use picture::{Gray, Rgb};
pub use resize::{resize_gray, resize_rgb};
