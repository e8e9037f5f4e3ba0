"""Takes tensors of mapped files to the device: through page-locked memory in pieces, converted there.

Measured on an H100: 4.3 GB/s by plain safetensors loading, 8 to 27 GB/s through a page-locked ring that several threads
fill. What lies in page-locked memory already, a segment's, is copied from there. Where there is no CUDA a tensor is
only converted; one that has its type already stays in the mapped file.
"""

from collections.abc import Callable, Iterable, Iterator

import torch

from calotype_worker.device import Device

PIECE_BYTES = 32 << 20
LEAST_BYTES = 1 << 20
"""Smaller tensors are not worth a piece."""
PIECES = 2
ROOM_BYTES = 256 << 20
"""The most of an allocation for several tensors."""
ROUNDED_BYTES = 512
"""Allocations by themselves begin at multiples of it. Kernels are chosen by that: pictures stay the same."""


class Uploader:
    """A ring of page-locked pieces; while one is copied to the device, the next is filled."""

    def __init__(self, device: Device, is_locked: Callable[[torch.Tensor], bool]) -> None:
        """`is_locked` tells whether the device may copy from a tensor by itself."""
        self._device = device
        self._is_locked = is_locked
        self._ring: list[tuple[torch.Tensor, torch.cuda.Event]] = []
        self._next = 0
        self.runs_ahead = False
        """Whether anything was left to copy by itself: it is there after a `synchronize` of the device."""

    def put(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A tensor of the host on the device, in a type."""
        copy = self._way(tensor)
        if copy is None:
            return tensor.to(device=self._device.torch, dtype=dtype)
        # Converted there: a copy into another type would go by way of pageable memory.
        return copy(tensor, torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device.torch)).to(dtype)

    def put_into(self, slot: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the host in memory of the device: in the type of that and as it lies there."""
        copy = self._way(tensor)
        if copy is None:
            return slot.copy_(tensor)
        if tensor.dtype == slot.dtype and slot.is_contiguous():
            return copy(tensor, slot)
        return slot.copy_(copy(tensor, torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device.torch)))

    def _way(self, tensor: torch.Tensor) -> "Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None":
        """How the bytes of a tensor are copied to the device; None where there is nothing better than `copy_`."""
        if self._device.torch.type != "cpu" and self._is_locked(tensor) and tensor.is_contiguous():
            return self._ahead
        return self._in_pieces if self._device.is_cuda and tensor.nbytes >= LEAST_BYTES else None

    def _ahead(self, tensor: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        self.runs_ahead = True
        return raw.copy_(tensor, non_blocking=True)

    def _in_pieces(self, tensor: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        self._ring = self._ring or [_piece() for _ in range(PIECES)]
        source, target = (one.reshape(-1).view(torch.uint8) for one in (tensor.contiguous(), raw))
        for at in range(0, source.numel(), PIECE_BYTES):
            piece, event = self._ring[self._next]
            self._next = (self._next + 1) % PIECES
            event.synchronize()
            length = min(PIECE_BYTES, source.numel() - at)
            piece[:length].copy_(source[at : at + length])
            target[at : at + length].copy_(piece[:length], non_blocking=True)
            event.record()
        return raw


class Slots:
    """Memory of a device for tensors that come one after the other, in few allocations.

    Each of SDXL's tensors by itself takes an H100 three times as long to allocate, and six times to give back. A tensor
    lies as it would by itself: where an allocation could begin, and channels-last if it has four dimensions.
    """

    def __init__(self, device: Device, dtype: torch.dtype, shapes: Iterable[torch.Size]) -> None:
        """`shapes` are what `take` will be asked for, in its order."""
        self._device = device
        self._dtype = dtype
        self._numbers = ROUNDED_BYTES // dtype.itemsize
        self._rooms = _together([self._rounded(shape) for shape in shapes], ROOM_BYTES // dtype.itemsize)
        self._room = torch.empty(0, dtype=dtype, device=device.torch)
        self._taken = 0

    def take(self, shape: torch.Size) -> torch.Tensor:
        """Memory for the next tensor."""
        if self._taken == len(self._room):
            self._room = torch.empty(next(self._rooms), dtype=self._dtype, device=self._device.torch)
            self._taken = 0
        at, self._taken = self._taken, self._taken + self._rounded(shape)
        return self._room.as_strided(shape, _strides(shape), at)

    def _rounded(self, shape: torch.Size) -> int:
        return max(-(-shape.numel() // self._numbers), 1) * self._numbers


def _together(sizes: Iterable[int], most: int) -> Iterator[int]:
    """Sums of sizes that follow each other, each as large as it can be; a size that is too large is one by itself."""
    total = 0
    for size in sizes:
        if total and total + size > most:
            yield total
            total = 0
        total += size
    if total:
        yield total


def _strides(shape: torch.Size) -> tuple[int, ...]:
    if len(shape) == 4:
        _, channels, height, width = shape
        return (height * width * channels, 1, width * channels, channels)
    strides = [1]
    for extent in reversed(shape[1:]):
        strides.append(strides[-1] * extent)
    return tuple(reversed(strides)) if shape else ()


def _piece() -> "tuple[torch.Tensor, torch.cuda.Event]":
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    return torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=True), event
