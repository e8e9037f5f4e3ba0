//! Bytes of images and masks to the numbers that the graphs take, and back. Pure; knows no file format.

use calotype_protocol::{BlobRef, Dtype, Failure};

use crate::failure::invalid;
use crate::runtime::Tensor;

/// An RGB image, 8 bits a channel.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Image {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) bytes: Vec<u8>,
}

/// The bytes of `blob`, which must have this type.
pub(crate) fn bytes_of<'a>(
    what: &str,
    blob: &BlobRef,
    blobs: &'a [Vec<u8>],
    dtype: Dtype,
) -> Result<&'a [u8], Failure> {
    if blob.dtype != dtype {
        return Err(invalid(format!("{what} is {:?}, not {dtype:?}", blob.dtype)));
    }
    blob.of(blobs)
        .map_err(|error| invalid(format!("{what}: {error}")))
}

/// The numbers of `blob`; all must be finite.
pub(crate) fn numbers_of(what: &str, blob: &BlobRef, blobs: &[Vec<u8>]) -> Result<Vec<f32>, Failure> {
    let bytes = bytes_of(what, blob, blobs, Dtype::F32)?;
    let numbers: Vec<f32> = bytes
        .chunks_exact(4)
        .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
        .collect();
    match numbers.iter().all(|number| number.is_finite()) {
        true => Ok(numbers),
        false => Err(invalid(format!("{what} holds numbers that are not finite"))),
    }
}

impl Image {
    pub(crate) fn of(what: &str, blob: &BlobRef, blobs: &[Vec<u8>]) -> Result<Self, Failure> {
        let bytes = bytes_of(what, blob, blobs, Dtype::U8)?;
        match blob.shape.as_slice() {
            [height, width, 3] => Ok(Self {
                height: *height,
                width: *width,
                bytes: bytes.to_vec(),
            }),
            [height, width, 4] => Ok(Self {
                height: *height,
                width: *width,
                bytes: bytes
                    .chunks_exact(4)
                    .flat_map(|rgba| rgba[..3].iter().copied())
                    .collect(),
            }),
            other => Err(invalid(format!(
                "{what} has the shape {other:?}, not [height, width, 3]"
            ))),
        }
    }

    /// Channels first, -1 to 1.
    pub(crate) fn to_numbers(&self) -> Vec<f32> {
        let mut numbers = Vec::with_capacity(self.bytes.len());
        for channel in 0..3 {
            numbers.extend(
                self.bytes
                    .iter()
                    .skip(channel)
                    .step_by(3)
                    .map(|byte| f32::from(*byte) / 127.5 - 1.0),
            );
        }
        numbers
    }

    /// From `[1, 3, height, width]`, -1 to 1; what lies outside is clamped.
    pub(crate) fn from_tensor(tensor: &Tensor) -> Self {
        let (height, width) = (tensor.shape[2], tensor.shape[3]);
        let plane = height * width;
        let mut bytes = vec![0; plane * 3];
        for (index, pixel) in bytes.chunks_exact_mut(3).enumerate() {
            for (channel, byte) in pixel.iter_mut().enumerate() {
                let value = tensor.data.get(channel * plane + index).copied().unwrap_or(0.0);
                *byte = ((value.clamp(-1.0, 1.0) + 1.0) * 127.5).round_ties_even() as u8;
            }
        }
        Self { height, width, bytes }
    }

    /// Half the size; each pixel the mean of four.
    pub(crate) fn halved(&self) -> Self {
        let (height, width) = (self.height / 2, self.width / 2);
        let mut bytes = Vec::with_capacity(height * width * 3);
        let at =
            |y: usize, x: usize, channel: usize| u32::from(self.bytes[(y * self.width + x) * 3 + channel]);
        for y in 0..height {
            for x in 0..width {
                for c in 0..3 {
                    let sum = at(2 * y, 2 * x, c)
                        + at(2 * y, 2 * x + 1, c)
                        + at(2 * y + 1, 2 * x, c)
                        + at(2 * y + 1, 2 * x + 1, c);
                    bytes.push(((sum + 2) / 4) as u8);
                }
            }
        }
        Self { height, width, bytes }
    }

    pub(crate) fn blob(&self, index: usize) -> BlobRef {
        BlobRef {
            blob: index,
            dtype: Dtype::U8,
            shape: vec![self.height, self.width, 3],
        }
    }
}

/// A mask: true where to repaint.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Mask {
    width: usize,
    repaint: Vec<bool>,
}

impl Mask {
    pub(crate) fn of(
        blob: &BlobRef,
        blobs: &[Vec<u8>],
        height: usize,
        width: usize,
    ) -> Result<Self, Failure> {
        if blob.shape != [height, width] {
            return Err(invalid(format!(
                "the mask has the shape {:?}, not [{height}, {width}]",
                blob.shape
            )));
        }
        let bytes = bytes_of("the mask", blob, blobs, Dtype::U8)?;
        Ok(Self {
            width,
            repaint: bytes.iter().map(|byte| *byte >= 128).collect(),
        })
    }

    /// The mask of the latents, of `scale` pixels each, by the nearest pixel.
    pub(crate) fn of_latents(&self, scale: usize) -> Vec<bool> {
        let (height, width) = (self.repaint.len() / self.width / scale, self.width / scale);
        (0..height * width)
            .map(|index| self.repaint[(index / width) * scale * self.width + (index % width) * scale])
            .collect()
    }

    /// Puts `original` back where the mask leaves it.
    pub(crate) fn keep(&self, original: &Image, painted: &mut Image) {
        for ((repaint, old), new) in self
            .repaint
            .iter()
            .zip(original.bytes.chunks_exact(3))
            .zip(painted.bytes.chunks_exact_mut(3))
        {
            if !repaint {
                new.copy_from_slice(old);
            }
        }
    }
}
