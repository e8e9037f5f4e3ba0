"""Gated units: half of a projection times GELU of its other half, in one pass.

Shazeer, "GLU Variants Improve Transformer", 2020 (GEGLU). Diffusers computes GELU of a strided half, writes it, and
reads both again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from calotype_worker.kernels.serve import blocks, computed, jit

try:
    import triton.language as tl
except ImportError:
    tl: Any = None  # type: ignore[no-redef]

BLOCK_ROWS, BLOCK_COLUMNS = 8, 256


def gated(projected: torch.Tensor) -> torch.Tensor:
    """`[..., 2 * width]` to `[..., width]`: the first half times GELU of the second."""
    return computed(projected, lambda: fused(projected), lambda: _plain(projected))


def _plain(projected: torch.Tensor) -> torch.Tensor:
    values, gate = projected.chunk(2, dim=-1)
    return values * functional.gelu(gate)


def fused(projected: torch.Tensor) -> torch.Tensor:
    """The same by the kernel."""
    projected = projected.contiguous()
    width = projected.shape[-1] // 2
    output = projected.new_empty((*projected.shape[:-1], width))
    rows, across = output.numel() // width, blocks(width, BLOCK_COLUMNS)
    _gate[(blocks(rows, BLOCK_ROWS) * across,)](projected, output, rows, width, across, BLOCK_ROWS, BLOCK_COLUMNS)
    return output


@jit
def _gate(  # type: ignore[no-untyped-def]
    projected, output, rows, width, across, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // across) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) % across) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    start = row.to(tl.int64)[:, None] * width
    values = tl.load(projected + 2 * start + column[None, :], mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(projected + 2 * start + width + column[None, :], mask=inside, other=0.0).to(tl.float32)
    # GELU by the error function, as PyTorch computes it: x / 2 * (1 + erf(x / sqrt(2))).
    values *= 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(output + start + column[None, :], values.to(output.dtype.element_ty), mask=inside)
