"""Group norms over channels-last tensors, with biases before them and SiLU after them, in one go.

PyTorch's CUDA group norm knows only channels-first: each norm of a UNet copies its input there and the convolution
after it copies it back, at a fraction of the memory's speed. Three Triton kernels do the same where the tensor lies:
means of blocks of pixels by channel, their sum by group, and `silu(x * scale + shift)`. Where a group is small, one
kernel reads it once and does all of that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from calotype_worker.kernels.serve import blocks, computed, jit, power_of_two

try:
    import triton.language as tl
except ImportError:
    tl: Any = None  # type: ignore[no-redef]

BLOCK_ROWS, BLOCK_CHANNELS, BLOCK_SPLITS = 128, 64, 64
MOST_HELD = 1 << 15
"""Values of a group, as a block of powers of two, that one program holds in its registers."""
FEW_PROGRAMS = 128
"""Up to so many groups of all images it is launches that cost; with more, the large blocks of few channels do."""
HELD_BY_WARP = 2048


class GroupNorm(nn.GroupNorm):
    """A group norm that adds biases to its input, and is followed by SiLU where `silu` says so."""

    silu = False

    def forward(
        self, input: torch.Tensor, bias: torch.Tensor | None = None, left: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`input` is `[n, channels, height, width]`, `bias` `[n, channels]`, `left`, by a convolution, `[channels]`."""
        if input.ndim != 4:
            return self._plain(input, bias, left)
        return computed(input, lambda: fused(input, bias, self, left), lambda: self._plain(input, bias, left))

    def _plain(self, input: torch.Tensor, bias: torch.Tensor | None, left: torch.Tensor | None) -> torch.Tensor:
        shifted = input if left is None else input + left[:, None, None]
        shifted = shifted if bias is None else shifted + bias[:, :, None, None]
        normed = functional.group_norm(shifted, self.num_groups, self.weight, self.bias, self.eps)
        return functional.silu(normed) if self.silu else normed


def remember(output: torch.Tensor, moments: torch.Tensor) -> None:
    """Have the moments go with the tensor that they are of, to the norm that takes it."""
    output._moments = moments, output._version  # type: ignore[attr-defined]


def remembered(input: torch.Tensor) -> torch.Tensor | None:
    """The moments of a tensor, if the kernel that wrote it told them and nothing wrote to it since."""
    moments, version = getattr(input, "_moments", (None, 0))
    return moments if version == input._version else None


def fused(
    input: torch.Tensor, bias: torch.Tensor | None, norm: GroupNorm, left: torch.Tensor | None = None
) -> torch.Tensor:
    """What `norm` gives, channels-last, by the kernels."""
    input = input.contiguous(memory_format=torch.channels_last)
    images, channels, height, width = input.shape
    rows, per_group = height * width, channels // norm.num_groups
    output = torch.empty_like(input)
    shift = input if bias is None else bias.contiguous()
    shared = input if left is None else left
    has = bias is not None, left is not None
    group = power_of_two(per_group)
    held = power_of_two(rows) * group
    few = images * norm.num_groups <= FEW_PROGRAMS
    if held <= (MOST_HELD if few else MOST_HELD // 2):
        _whole[(norm.num_groups, images)](
            input, shift, shared, norm.weight, norm.bias, output, rows, channels, norm.eps, per_group,
            *has, norm.silu, power_of_two(rows), group, num_warps=max(held // HELD_BY_WARP, 4),
        )  # fmt: skip
        return output
    splits, across = blocks(rows, BLOCK_ROWS), blocks(channels, BLOCK_CHANNELS)
    factors = torch.empty((images, 2, channels), dtype=torch.float32, device=input.device)
    moments = None if any(has) else remembered(input)
    if moments is None:
        moments = torch.empty((images, splits, 2, channels), dtype=torch.float32, device=input.device)
        _moments[(splits, across, images)](
            input, shift, shared, moments, rows, channels, splits, *has, BLOCK_ROWS, BLOCK_CHANNELS
        )
    _factors[(norm.num_groups, images)](
        moments, shift, shared, norm.weight, norm.bias, factors, rows, channels, splits, norm.eps, per_group,
        *has, BLOCK_ROWS, BLOCK_SPLITS, group,
    )  # fmt: skip
    _apply[(splits, across, images)](input, factors, output, rows, channels, norm.silu, BLOCK_ROWS, BLOCK_CHANNELS)
    return output


@jit
def _biases(bias, left, image, channel, known, channels, HAS_BIAS: tl.constexpr, HAS_LEFT: tl.constexpr):  # type: ignore[no-untyped-def]
    """What is added to channels of an image before it is normed."""
    added = tl.zeros(channel.shape, dtype=tl.float32)
    if HAS_BIAS:
        added += tl.load(bias + image * channels + channel, mask=known, other=0.0).to(tl.float32)
    if HAS_LEFT:
        added += tl.load(left + channel, mask=known, other=0.0).to(tl.float32)
    return added


@jit
def store_moments(value, inside, known, to, channels, count):  # type: ignore[no-untyped-def]
    """Mean and sum of squared distances from it, of a block of `count` pixels, by channel."""
    mean = tl.sum(tl.where(inside, value, 0.0), axis=0) / count
    off = tl.where(inside, value - mean[None, :], 0.0)
    tl.store(to, mean, mask=known)
    tl.store(to + channels, tl.sum(off * off, axis=0), mask=known)


@jit
def _whole(  # type: ignore[no-untyped-def]
    input, bias, left, weight, offset, output, rows, channels, eps, per_group,
    HAS_BIAS: tl.constexpr, HAS_LEFT: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """All of a group of an image."""
    group, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    own, row = tl.arange(0, GROUP), tl.arange(0, ROWS)
    channel = group * per_group + own
    known = own < per_group
    inside = (row < rows)[:, None] & known[None, :]
    at = image * rows * channels + row[:, None] * channels + channel[None, :]
    value = tl.load(input + at, mask=inside, other=0.0).to(tl.float32)
    value += _biases(bias, left, image, channel, known, channels, HAS_BIAS, HAS_LEFT)[None, :]
    count = rows * per_group
    off = tl.where(inside, value, 0.0)
    off = tl.where(inside, value - tl.sum(off) / count, 0.0)
    scale = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
    scale = scale / tl.sqrt(tl.sum(off * off) / count + eps)
    shift = tl.load(offset + channel, mask=known, other=0.0).to(tl.float32)
    value = off * scale[None, :] + shift[None, :]
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    tl.store(output + at, value.to(output.dtype.element_ty), mask=inside)


@jit
def _moments(  # type: ignore[no-untyped-def]
    input, bias, left, moments, rows, channels, splits,
    HAS_BIAS: tl.constexpr, HAS_LEFT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared distances from it, of a block of pixels, by channel."""
    split, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    row = split * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    inside = (row < rows)[:, None] & known[None, :]
    at = image * rows * channels + row.to(tl.int64)[:, None] * channels + channel[None, :]
    value = tl.load(input + at, mask=inside, other=0.0).to(tl.float32)
    value += _biases(bias, left, image, channel, known, channels, HAS_BIAS, HAS_LEFT)[None, :]
    store_moments(value, inside, known, moments + (image * splits + split) * 2 * channels + channel, channels,
                  tl.minimum(rows - split * ROWS, ROWS))  # fmt: skip


@jit
def _factors(  # type: ignore[no-untyped-def]
    moments, bias, left, weight, offset, factors, rows, channels, splits, eps, per_group,
    HAS_BIAS: tl.constexpr, HAS_LEFT: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr, GROUP: tl.constexpr,
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
    moved = _biases(bias, left, image, channel, known, channels, HAS_BIAS, HAS_LEFT) - mean
    shift = tl.load(offset + channel, mask=known, other=0.0).to(tl.float32) + moved * scale
    to = factors + image * 2 * channels + channel
    tl.store(to, scale, mask=known)
    tl.store(to + channels, shift, mask=known)


@jit
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
