//! Where a blob's meaning stands: element type and shape, beside the index of the blob in its frame.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Element type of a tensor, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// Unsigned byte; pixels.
    U8,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// IEEE single.
    F32,
}

impl Dtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::U8 => 1,
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::F32 => 4,
        }
    }
}

/// A tensor whose bytes are blob number `blob` of the same frame, row-major. Images are `[height, width, 3 or 4]`
/// of `u8`, several images are `[n, height, width, 3]`; masks are `[height, width]` of `u8`, 255 where to repaint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BlobRef {
    /// Index into the frame's blobs.
    pub blob: usize,
    /// Element type.
    pub dtype: Dtype,
    /// Extent of each dimension.
    pub shape: Vec<usize>,
}

/// The wire calls it a tensor where numbers matter and a blob where bytes do; it is one type.
pub type Tensor = BlobRef;

/// A blob reference that does not fit the blobs that came with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The frame has fewer blobs.
    #[error("blob {blob} is not in the frame, which has {have}")]
    Missing {
        /// Index asked for.
        blob: usize,
        /// Blobs in the frame.
        have: usize,
    },
    /// Shape and length disagree.
    #[error("shape {shape:?} of {dtype:?} does not match a blob of {have_bytes} bytes")]
    Length {
        /// Shape said.
        shape: Vec<usize>,
        /// Type said.
        dtype: Dtype,
        /// Length of the blob.
        have_bytes: usize,
    },
}

impl BlobRef {
    /// Bytes that the shape asks for; `None` when the product overflows.
    pub fn byte_len(&self) -> Option<usize> {
        self.shape
            .iter()
            .try_fold(self.dtype.bytes(), |bytes, extent| bytes.checked_mul(*extent))
    }

    /// The bytes, once index, shape and length were found to agree.
    pub fn of<'a>(&self, blobs: &'a [Vec<u8>]) -> Result<&'a [u8], TensorError> {
        let blob = blobs.get(self.blob).ok_or(TensorError::Missing {
            blob: self.blob,
            have: blobs.len(),
        })?;
        if self.byte_len() != Some(blob.len()) {
            return Err(TensorError::Length {
                shape: self.shape.clone(),
                dtype: self.dtype,
                have_bytes: blob.len(),
            });
        }
        Ok(blob)
    }
}
