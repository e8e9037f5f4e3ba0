"""Bytes of images and masks to tensors, and back. Knows no file format and no model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from calotype_worker.errors import InvalidInput
from calotype_worker.wire.words import DTYPE_BYTES, BlobRef, Dtype

Blobs = Sequence[bytearray]


def bytes_of(what: str, ref: BlobRef, blobs: Blobs, dtype: Dtype) -> memoryview:
    """The bytes of `ref`, once index, type, shape and length were found to agree."""
    if ref.dtype != dtype:
        raise InvalidInput(f"{what} is {ref.dtype}, not {dtype}")
    if not 0 <= ref.blob < len(blobs):
        raise InvalidInput(f"{what}: blob {ref.blob} is not in the frame, which has {len(blobs)}")
    wanted = DTYPE_BYTES[dtype]
    for extent in ref.shape:
        if extent < 0:
            raise InvalidInput(f"{what} has the shape {ref.shape}")
        wanted *= extent
    blob = blobs[ref.blob]
    if wanted != len(blob):
        raise InvalidInput(f"{what}: shape {ref.shape} of {dtype} does not match a blob of {len(blob)} bytes")
    return memoryview(blob)


def numbers_of(what: str, ref: BlobRef, blobs: Blobs) -> torch.Tensor:
    """The numbers of `ref` on the host, f32 in its shape; all must be finite."""
    numbers = np.frombuffer(bytes_of(what, ref, blobs, "f32"), dtype="<f4").reshape(ref.shape)
    if not np.isfinite(numbers).all():
        raise InvalidInput(f"{what} holds numbers that are not finite")
    return torch.from_numpy(numbers.astype(np.float32))


def image_of(what: str, ref: BlobRef, blobs: Blobs) -> torch.Tensor:
    """An image on the host: `[height, width, 3]` of u8; an alpha channel is left out."""
    data = bytes_of(what, ref, blobs, "u8")
    if len(ref.shape) != 3 or ref.shape[2] not in (3, 4) or 0 in ref.shape:
        raise InvalidInput(f"{what} has the shape {ref.shape}, not [height, width, 3]")
    image = np.frombuffer(data, dtype=np.uint8).reshape(ref.shape)[..., :3]
    return torch.from_numpy(image.copy())


def to_numbers(image: torch.Tensor) -> torch.Tensor:
    """`[height, width, 3]` of u8 to `[1, 3, height, width]` of f32, -1 to 1."""
    return (image.permute(2, 0, 1)[None].float() / 127.5 - 1.0).contiguous()


def from_numbers(numbers: torch.Tensor) -> torch.Tensor:
    """`[..., 3, height, width]`, -1 to 1, to `[..., height, width, 3]` of u8; what lies outside is clamped."""
    # NaN, which a broken model gives, becomes grey instead of an undefined byte.
    finite = torch.nan_to_num(numbers.float(), nan=0.0)
    return ((finite.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8).movedim(-3, -1).contiguous()


def halved(image: torch.Tensor) -> torch.Tensor:
    """Half the size of `[height, width, 3]` of u8; each pixel the mean of four."""
    height, width = image.shape[0] // 2, image.shape[1] // 2
    quads = image[: 2 * height, : 2 * width].to(torch.int32).reshape(height, 2, width, 2, 3)
    return ((quads.sum(dim=(1, 3)) + 2) // 4).to(torch.uint8)


def image_ref(image: torch.Tensor, blob: int) -> BlobRef:
    """How the wire tells of an image `[height, width, 3]` of u8."""
    return BlobRef(blob=blob, dtype="u8", shape=list(image.shape))


def bytes_from(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor on the host, row-major."""
    return tensor.contiguous().numpy().data.cast("B")


@dataclass(frozen=True)
class Mask:
    """Where to repaint: `[height, width]` of bool on the host."""

    repaint: torch.Tensor

    @staticmethod
    def of(ref: BlobRef, blobs: Blobs, height: int, width: int) -> "Mask":
        """A mask of the image's size; 128 and above is to be repainted."""
        if ref.shape != [height, width]:
            raise InvalidInput(f"the mask has the shape {ref.shape}, not [{height}, {width}]")
        data = np.frombuffer(bytes_of("the mask", ref, blobs, "u8"), dtype=np.uint8).reshape(height, width)
        return Mask(torch.from_numpy(data >= 128))

    def of_latents(self, scale: int) -> torch.Tensor:
        """The mask of latents of `scale` pixels each, by the nearest pixel: `[height / scale, width / scale]`."""
        return self.repaint[::scale, ::scale].contiguous()

    def keep(self, original: torch.Tensor, painted: torch.Tensor) -> torch.Tensor:
        """`painted` with the original put back where the mask leaves it; `[height, width, 3]` of u8, on one device."""
        return torch.where(self.repaint.to(painted.device)[..., None], painted, original.to(painted.device))
