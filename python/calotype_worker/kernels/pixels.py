"""What happens to channels-last pictures between convolutions: biases, residuals, nearest upsampling.

PyTorch adds the bias of each cuDNN convolution in a pass of its own, value by value. Here a convolution may leave its
bias to the operation after it (`Convolution`), and `total` adds biases and a residual in one pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from calotype_worker.kernels.group_norm import BLOCK_CHANNELS, BLOCK_ROWS, remember, store_moments
from calotype_worker.kernels.serve import blocks, computed, jit, serves

try:
    import triton.language as tl
except ImportError:
    tl: Any = None  # type: ignore[no-redef]

BLOCK_PIXELS = 64
LEAST_REMEMBERED = 32 * 32
"""Pixels of the largest picture whose norm needs no moments."""


class Convolution(nn.Conv2d):
    """A convolution whose bias may be added later."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`input` is `[n, channels, height, width]`."""
        output, bias = self._apart(input)
        return output if bias is None else total(output, bias)

    def _apart(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.bias is None or not serves(input):
            return nn.Conv2d.forward(self, input), None
        # A layer's bias may be on the device during its own `forward` only: what is returned keeps that copy.
        return self._conv_forward(input, self.weight, None), self.bias.detach()


class ConvolutionApart(Convolution):
    """A convolution whose bias is always added by what comes after it."""

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:  # type: ignore[override]
        """The output without the bias, and the bias; None where the output has it."""
        return self._apart(input)


class Pointwise(nn.Conv2d):
    """A convolution of one pixel: on channels-last pictures a matrix product, which adds the bias itself."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`input` is `[n, channels, height, width]`."""
        if not serves(input) or input.element_size() != 2 or not is_channels_last(input):
            return nn.Conv2d.forward(self, input)
        images, channels, height, width = input.shape
        rows = input.permute(0, 2, 3, 1).reshape(-1, channels)
        output = functional.linear(rows, self.weight.flatten(1), self.bias)
        return output.view(images, height, width, -1).permute(0, 3, 1, 2)


def is_channels_last(picture: torch.Tensor) -> bool:
    """Whether the channels of a pixel lie together."""
    return picture.is_contiguous(memory_format=torch.channels_last)


def is_usual(layer: Any) -> bool:
    """Whether a module is a convolution that may be exchanged."""
    return type(layer) is nn.Conv2d and layer.padding_mode == "zeros"


def exchange(layer: Any, apart: bool = False) -> None:
    """Give a convolution the class here that computes the same; `apart`: its user adds the bias."""
    if not is_usual(layer):
        return
    if apart:
        layer.__class__ = ConvolutionApart
    elif layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding == (0, 0) and _aligned(layer):
        layer.__class__ = Pointwise
    else:
        layer.__class__ = Convolution


def _aligned(layer: nn.Conv2d) -> bool:
    # Matrix products of half precision are fast with rows of whole 16 bytes only.
    return layer.groups == 1 and layer.in_channels % 8 == 0 and layer.out_channels % 8 == 0


def total(fresh: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None = None) -> torch.Tensor:
    """`fresh + bias + residual`: `[n, channels, height, width]` and `[channels]`. `fresh` may be written to."""
    return computed(fresh, lambda: fused_total(fresh, bias, residual), lambda: _plain_total(fresh, bias, residual))


def _plain_total(fresh: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None) -> torch.Tensor:
    biased = fresh if bias is None else fresh + bias[:, None, None]
    return biased if residual is None else biased + residual


def fused_total(fresh: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None) -> torch.Tensor:
    """The same by the kernel, in the place of `fresh` where that is channels-last.

    A group norm that comes next finds the moments of a large picture.
    """
    output = fresh.contiguous(memory_format=torch.channels_last)
    images, channels, height, width = output.shape
    rows = height * width
    splits, across = blocks(rows, BLOCK_ROWS), blocks(channels, BLOCK_CHANNELS)
    added = output if residual is None else residual.contiguous(memory_format=torch.channels_last)
    moments, measured = output, rows > LEAST_REMEMBERED
    if measured:
        moments = torch.empty((images, splits, 2, channels), dtype=torch.float32, device=output.device)
    _total[(splits, across, images)](
        output, output if bias is None else bias, added, moments, rows, channels, splits,
        bias is not None, residual is not None, measured, BLOCK_ROWS, BLOCK_CHANNELS,
    )  # fmt: skip
    if measured:
        remember(output, moments)
    return output


def doubled(picture: torch.Tensor) -> torch.Tensor | None:
    """Each pixel as a square of four: `[n, channels, height, width]` to twice both; None where no kernel serves."""
    return computed(picture, lambda: fused_doubled(picture), lambda: None)


def fused_doubled(picture: torch.Tensor) -> torch.Tensor:
    """The same by the kernel, channels-last."""
    picture = picture.contiguous(memory_format=torch.channels_last)
    images, channels, height, width = picture.shape
    output = torch.empty(
        (images, channels, 2 * height, 2 * width),
        dtype=picture.dtype,
        device=picture.device,
        memory_format=torch.channels_last,
    )
    pixels, across = images * height * width, blocks(channels, BLOCK_CHANNELS)
    _doubled[(blocks(pixels, BLOCK_PIXELS) * across,)](
        picture, output, pixels, width, channels, across, BLOCK_PIXELS, BLOCK_CHANNELS
    )
    return output


@jit
def _total(  # type: ignore[no-untyped-def]
    fresh, bias, residual, moments, rows, channels, splits,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, MEASURED: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The sum of a block of pixels, and the moments of what was written."""
    split, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    row = split * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    inside = (row < rows)[:, None] & known[None, :]
    at = image * rows * channels + row.to(tl.int64)[:, None] * channels + channel[None, :]
    value = tl.load(fresh + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        value += tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    rounded = value.to(fresh.dtype.element_ty)
    tl.store(fresh + at, rounded, mask=inside)
    if MEASURED:
        to = moments + (image * splits + split) * 2 * channels + channel
        store_moments(rounded.to(tl.float32), inside, known, to, channels, tl.minimum(rows - split * ROWS, ROWS))


@jit
def _doubled(  # type: ignore[no-untyped-def]
    picture, output, pixels, width, channels, across, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Rows of all pictures are one run of rows: a row's place in its picture does not matter."""
    pixel = (tl.program_id(0) // across) * PIXELS + tl.arange(0, PIXELS)
    channel = (tl.program_id(0) % across) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    value = tl.load(picture + pixel.to(tl.int64)[:, None] * channels + channel[None, :], mask=inside)
    first = (pixel // width).to(tl.int64) * 4 * width + 2 * (pixel % width)
    to = output + first[:, None] * channels + channel[None, :]
    below = 2 * width * channels
    tl.store(to, value, mask=inside)
    tl.store(to + channels, value, mask=inside)
    tl.store(to + below, value, mask=inside)
    tl.store(to + below + channels, value, mask=inside)
