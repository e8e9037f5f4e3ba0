"""Layer norms that add a residual or biases before them, in one pass: a transformer block needs both sum and norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from calotype_worker.kernels.serve import blocks, computed, jit, power_of_two

try:
    import triton.language as tl
except ImportError:
    tl: Any = None  # type: ignore[no-redef]

BLOCK_VALUES = 2048
"""Values of a program: 16 for each thread, which are two loads of the widest kind."""
MOST_WIDTH = 8192
"""The widest row that a program holds in its registers."""


class LayerNorm(nn.LayerNorm):
    """A layer norm over the last dimension, also of a sum."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`input` is `[..., width]`."""
        return computed(input, lambda: fused(input, None, self)[1], lambda: nn.LayerNorm.forward(self, input))


class SumNorm(LayerNorm):
    """A layer norm of the sum of two tensors."""

    def forward(self, input: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        """The sum of the two, `[..., width]`, and its norm."""
        return computed(input, lambda: fused(input, residual, self), lambda: self._plain(input + residual))

    def _plain(self, total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return total, functional.layer_norm(total, self.normalized_shape, self.weight, self.bias, self.eps)


def normed_with(
    sum: torch.Tensor, biases: Sequence[torch.Tensor], norm: nn.LayerNorm, then: torch.Tensor | None = None
) -> torch.Tensor:
    """The norm of `sum`, `[..., width]` and contiguous, with one or two biases added to it.

    `sum` itself gets them only where there is a `then`, with that: so residuals need no pass of their own.
    """
    return computed(sum, lambda: fused_with(sum, biases, norm, then), lambda: _plain_with(sum, biases, norm, then))


def _plain_with(
    sum: torch.Tensor, biases: Sequence[torch.Tensor], norm: nn.LayerNorm, then: torch.Tensor | None
) -> torch.Tensor:
    biased = sum
    for bias in biases:
        biased = biased + bias
    if then is not None:
        torch.add(biased, then, out=sum)
    return nn.LayerNorm.forward(norm, biased)


def is_usual(norm: Any) -> bool:
    """Whether a module is a layer norm that the kernel knows."""
    return (
        type(norm) is nn.LayerNorm
        and len(norm.normalized_shape) == 1
        and norm.normalized_shape[0] <= MOST_WIDTH
        and norm.weight is not None
        and norm.bias is not None
    )


def fused(input: torch.Tensor, residual: torch.Tensor | None, norm: nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum (`input` itself where there is no residual) and its norm, by the kernel."""
    input = input.contiguous()
    added = input if residual is None else residual.contiguous()
    total = input if residual is None else torch.empty_like(input)
    normed = torch.empty_like(input)
    width = input.shape[-1]
    rows, columns = input.numel() // width, power_of_two(width)
    per_program = max(BLOCK_VALUES // columns, 1)
    _sum_norm[(blocks(rows, per_program),)](
        input, added, norm.weight, norm.bias, total, normed, rows, width, norm.eps,
        residual is not None, per_program, columns, num_warps=4 if columns <= 2 * BLOCK_VALUES else 8,
    )  # fmt: skip
    return total, normed


def fused_with(
    sum: torch.Tensor, biases: Sequence[torch.Tensor], norm: nn.LayerNorm, then: torch.Tensor | None
) -> torch.Tensor:
    """The same by the kernel."""
    normed = torch.empty_like(sum)
    width = sum.shape[-1]
    rows, columns = sum.numel() // width, power_of_two(width)
    per_program = max(BLOCK_VALUES // columns, 1)
    _biased_norm[(blocks(rows, per_program),)](
        sum, biases[0], biases[-1], sum if then is None else then, norm.weight, norm.bias, normed,
        rows, width, norm.eps,
        len(biases) > 1, then is not None, per_program, columns, num_warps=4 if columns <= 2 * BLOCK_VALUES else 8,
    )  # fmt: skip
    return normed


@jit
def _biased_norm(  # type: ignore[no-untyped-def]
    sum, first, second, then, weight, offset, normed, rows, width, eps,
    TWO: tl.constexpr, STORES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The norm of `sum + first + second`."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    known = column < width
    inside = (row < rows)[:, None] & known[None, :]
    at = row.to(tl.int64)[:, None] * width + column[None, :]
    bias = tl.load(first + column, mask=known, other=0.0).to(tl.float32)
    if TWO:
        bias += tl.load(second + column, mask=known, other=0.0).to(tl.float32)
    value = tl.load(sum + at, mask=inside, other=0.0).to(tl.float32) + bias[None, :]
    if STORES:
        later = tl.load(then + column, mask=known, other=0.0).to(tl.float32)
        tl.store(sum + at, (value + later[None, :]).to(sum.dtype.element_ty), mask=inside)
    _store_norm(value, inside, known, weight + column, offset + column, normed + at, width, eps)


@jit
def _store_norm(value, inside, known, weight, offset, to, width, eps):  # type: ignore[no-untyped-def]
    """The norm of rows, written."""
    mean = tl.sum(value, axis=1) / width
    off = tl.where(inside, value - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(off * off, axis=1) / width + eps)
    factor = tl.load(weight, mask=known, other=0.0).to(tl.float32)
    shift = tl.load(offset, mask=known, other=0.0).to(tl.float32)
    value = off * scale[:, None] * factor[None, :] + shift[None, :]
    tl.store(to, value.to(to.dtype.element_ty), mask=inside)


@jit
def _sum_norm(  # type: ignore[no-untyped-def]
    input, residual, weight, offset, total, normed, rows, width, eps,
    HAS_RESIDUAL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`input + residual` as it is rounded when it is written, and the norm of that."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    known = column < width
    inside = (row < rows)[:, None] & known[None, :]
    at = row.to(tl.int64)[:, None] * width + column[None, :]
    value = tl.load(input + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + at, rounded, mask=inside)
        value = rounded.to(tl.float32)
    _store_norm(value, inside, known, weight + column, offset + column, normed + at, width, eps)
