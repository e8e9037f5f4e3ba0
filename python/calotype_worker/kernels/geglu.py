"""Gated units: half of a projection times GELU of its other half, in one pass.

Shazeer, "GLU Variants Improve Transformer", 2020 (GEGLU). Diffusers computes GELU of a strided half, writes it, and
reads both again. Where inputs are narrow, writing and reading the projection takes as long as computing it: there the
matrix product itself ends in the gate.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from calotype_worker.kernels.serve import INTERPRETED, blocks, computed, jit

try:
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:
    tl: Any = None  # type: ignore[no-redef]
    TensorDescriptor = None

BLOCK_ROWS, BLOCK_COLUMNS = 8, 256
PRODUCT_ROWS, PRODUCT_COLUMNS, PRODUCT_INPUTS = 128, 64, 64
MOST_INPUTS = 640
"""With 1280 inputs an H100 computes the product and the gate apart as fast."""
TENSOR_MEMORY = (9, 0)
"""The first CUDA capability whose blocks of matrices are copied by the memory itself; without, cuBLAS is faster."""


def projected(input: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    """`gated` of what a layer makes of `[..., inputs]`."""
    if not _suits(input, layer):
        return gated(layer(input))
    return computed(input, lambda: fused_product(input, layer), lambda: gated(layer(input)))


def _suits(input: torch.Tensor, layer: nn.Linear) -> bool:
    return (
        input.element_size() == 2
        and layer.weight.dtype == input.dtype
        and layer.bias is not None
        and layer.in_features <= MOST_INPUTS
        # Blocks begin at whole 16 bytes, and hold values or gates only.
        and layer.in_features % 8 == 0
        and layer.out_features % (2 * PRODUCT_COLUMNS) == 0
        and layer.weight.is_contiguous()
        and (INTERPRETED or (input.is_cuda and _capability(input.device) >= TENSOR_MEMORY))
    )


@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def fused_product(input: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    """The same by the kernel."""
    inputs, width = layer.in_features, layer.out_features // 2
    rows = input.reshape(-1, inputs).contiguous()
    output = input.new_empty((*input.shape[:-1], width))
    across = width // PRODUCT_COLUMNS
    _gated_product[(blocks(len(rows), PRODUCT_ROWS) * across,)](
        TensorDescriptor.from_tensor(rows, [PRODUCT_ROWS, PRODUCT_INPUTS]),
        TensorDescriptor.from_tensor(layer.weight, [PRODUCT_COLUMNS, PRODUCT_INPUTS]),
        layer.bias,
        TensorDescriptor.from_tensor(output.view(-1, width), [PRODUCT_ROWS, PRODUCT_COLUMNS]),
        inputs, width, across, PRODUCT_ROWS, PRODUCT_COLUMNS, PRODUCT_INPUTS, num_stages=3, num_warps=8,
    )  # fmt: skip
    return output


@jit
def _gated_product(  # type: ignore[no-untyped-def]
    rows, weight, bias, output, inputs, width, across, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // across) * ROWS
    column = (tl.program_id(0) % across) * COLUMNS
    values = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    gate = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for at in range(0, inputs, INPUTS):
        block = rows.load([row, at])
        values = tl.dot(block, weight.load([column, at]).T, values)
        gate = tl.dot(block, weight.load([width + column, at]).T, gate)
    own = column + tl.arange(0, COLUMNS)
    values += tl.load(bias + own).to(tl.float32)[None, :]
    gate += tl.load(bias + width + own).to(tl.float32)[None, :]
    output.store([row, column], _times_gelu(values, gate).to(output.dtype))


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
def _times_gelu(values, gate):  # type: ignore[no-untyped-def]
    # By the error function, as PyTorch computes it: x / 2 * (1 + erf(x / sqrt(2))).
    return values * 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))


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
    values = _times_gelu(values, gate)
    tl.store(output + start + column[None, :], values.to(output.dtype.element_ty), mask=inside)
