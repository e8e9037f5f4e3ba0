"""Group norms over channels-last tensors, with a bias before them and SiLU after them, in one go.

PyTorch's CUDA group norm knows only channels-first: each norm of a UNet copies its input there and the convolution
after it copies it back, at a fraction of the memory's speed. Three Triton kernels do the same where the tensor lies:
means of blocks of pixels by channel, their sum by group, and `silu(x * scale + shift)`. Where Triton does not run (no
CUDA, no C compiler) and while torch.compile looks, PyTorch's own operations are used: the compiler fuses them itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

try:
    import triton
    import triton.language as tl
except ImportError:  # Triton is a part of torch's CUDA builds only.
    triton = None

BLOCK_ROWS, BLOCK_CHANNELS, BLOCK_SPLITS = 128, 64, 64


class GroupNorm(nn.GroupNorm):
    """A group norm that adds `bias`, `[n, channels]`, to its input, and is followed by SiLU where `silu` says so."""

    silu = False

    def forward(self, input: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """`input` is `[n, channels, height, width]`."""
        if input.is_cuda and not torch.compiler.is_compiling() and _kernels.work(input):
            try:
                return fused(input, bias, self)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                # For instance no C compiler, which Triton needs once; PyTorch's own kernels remain.
                _kernels.problem = f"{type(error).__name__}: {error}"
        shifted = input if bias is None else input + bias[:, :, None, None]
        normed = functional.group_norm(shifted, self.num_groups, self.weight, self.bias, self.eps)
        return functional.silu(normed) if self.silu else normed


class _Kernels:
    """Whether the kernels serve, and why not."""

    problem: str | None = None if triton is not None else "there is no Triton"

    def work(self, input: torch.Tensor) -> bool:
        return self.problem is None and input.ndim == 4 and input.is_floating_point()


_kernels = _Kernels()


def problem() -> str | None:
    """Why the kernels are not used; None where they are."""
    return _kernels.problem


def fused(input: torch.Tensor, bias: torch.Tensor | None, norm: GroupNorm) -> torch.Tensor:
    """What `norm` gives, channels-last, by the kernels."""
    input = input.contiguous(memory_format=torch.channels_last)
    images, channels, height, width = input.shape
    rows, per_group = height * width, channels // norm.num_groups
    splits, blocks = -(-rows // BLOCK_ROWS), -(-channels // BLOCK_CHANNELS)
    moments = torch.empty((images, splits, 2, channels), dtype=torch.float32, device=input.device)
    factors = torch.empty((images, 2, channels), dtype=torch.float32, device=input.device)
    output = torch.empty_like(input)
    shift = input if bias is None else bias.contiguous()
    _moments[(splits, blocks, images)](
        input, shift, moments, rows, channels, splits, bias is not None, BLOCK_ROWS, BLOCK_CHANNELS
    )
    _factors[(norm.num_groups, images)](
        moments, shift, norm.weight, norm.bias, factors, rows, channels, splits, norm.eps, per_group,
        bias is not None, BLOCK_ROWS, BLOCK_SPLITS, triton.next_power_of_2(per_group),
    )  # fmt: skip
    _apply[(splits, blocks, images)](input, factors, output, rows, channels, norm.silu, BLOCK_ROWS, BLOCK_CHANNELS)
    return output


def _jit(kernel: Any) -> Any:
    return kernel if triton is None else triton.jit(kernel)


@_jit
def _moments(  # type: ignore[no-untyped-def]
    input, bias, moments, rows, channels, splits,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared distances from it, of a block of pixels, by channel."""
    split, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    row = split * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    inside = (row < rows)[:, None] & known[None, :]
    at = image * rows * channels + row.to(tl.int64)[:, None] * channels + channel[None, :]
    value = tl.load(input + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        value += tl.load(bias + image * channels + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    count = tl.minimum(rows - split * ROWS, ROWS)
    mean = tl.sum(tl.where(inside, value, 0.0), axis=0) / count
    off = tl.where(inside, value - mean[None, :], 0.0)
    to = moments + (image * splits + split) * 2 * channels + channel
    tl.store(to, mean, mask=known)
    tl.store(to + channels, tl.sum(off * off, axis=0), mask=known)


@_jit
def _factors(  # type: ignore[no-untyped-def]
    moments, bias, weight, offset, factors, rows, channels, splits, eps, per_group,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Scale and shift of each channel, from the moments of its group's blocks; exact as two passes are."""
    group, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    own = tl.arange(0, GROUP)
    channel = group * per_group + own
    known = own < per_group
    base = moments + image * splits * 2 * channels
    total = 0.0
    for start in range(0, splits, SPLITS):
        split = start + tl.arange(0, SPLITS)
        inside = (split < splits)[:, None] & known[None, :]
        count = tl.minimum(rows - split * ROWS, ROWS)[:, None]
        means = tl.load(base + split[:, None] * 2 * channels + channel[None, :], mask=inside, other=0.0)
        total += tl.sum(tl.where(inside, means * count, 0.0))
    mean = total / (rows * per_group)
    squares = 0.0
    for start in range(0, splits, SPLITS):
        split = start + tl.arange(0, SPLITS)
        inside = (split < splits)[:, None] & known[None, :]
        count = tl.minimum(rows - split * ROWS, ROWS)[:, None]
        at = base + split[:, None] * 2 * channels + channel[None, :]
        means = tl.load(at, mask=inside, other=0.0)
        within = tl.load(at + channels, mask=inside, other=0.0)
        squares += tl.sum(tl.where(inside, within + count * (means - mean) * (means - mean), 0.0))
    scale = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
    scale = scale / tl.sqrt(squares / (rows * per_group) + eps)
    moved = tl.zeros([GROUP], dtype=tl.float32) - mean
    if HAS_BIAS:
        moved += tl.load(bias + image * channels + channel, mask=known, other=0.0).to(tl.float32)
    shift = tl.load(offset + channel, mask=known, other=0.0).to(tl.float32) + moved * scale
    to = factors + image * 2 * channels + channel
    tl.store(to, scale, mask=known)
    tl.store(to + channels, shift, mask=known)


@_jit
def _apply(  # type: ignore[no-untyped-def]
    input, factors, output, rows, channels,
    SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """`input * scale + shift`, and SiLU of it."""
    image = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    inside = (row < rows)[:, None] & known[None, :]
    at = image * rows * channels + row.to(tl.int64)[:, None] * channels + channel[None, :]
    scale = tl.load(factors + image * 2 * channels + channel, mask=known, other=0.0)
    shift = tl.load(factors + (image * 2 + 1) * channels + channel, mask=known, other=0.0)
    value = tl.load(input + at, mask=inside, other=0.0).to(tl.float32) * scale[None, :] + shift[None, :]
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    tl.store(output + at, value.to(output.dtype.element_ty), mask=inside)
