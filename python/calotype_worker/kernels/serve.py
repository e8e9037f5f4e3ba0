"""Whether the kernels serve, and why not.

Where Triton does not run (no CUDA, no C compiler) and while torch.compile looks, PyTorch's own operations are used: the
compiler fuses them itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch

try:
    import triton
except ImportError:  # Triton is a part of torch's CUDA builds only.
    triton = None

Result = TypeVar("Result")


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton's interpreter runs the kernels: then they compute on the host, for tests."""


class _Kernels:
    problem: str | None = None if triton is not None else "there is no Triton"


_kernels = _Kernels()


def problem() -> str | None:
    """Why the kernels are not used; None where they are."""
    return _kernels.problem


def serves(input: torch.Tensor) -> bool:
    """Whether kernels compute with this tensor."""
    return (
        (input.is_cuda or INTERPRETED)
        and not torch.compiler.is_compiling()
        and _kernels.problem is None
        and input.is_floating_point()
        and input.element_size() <= 4
    )


def computed(input: torch.Tensor, fused: Callable[[], Result], plain: Callable[[], Result]) -> Result:
    """What `fused` gives where the kernels serve `input`, else what `plain` gives."""
    if serves(input):
        try:
            return fused()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # For instance no C compiler, which Triton needs once; PyTorch's own kernels remain.
            _kernels.problem = f"{type(error).__name__}: {error}"
    return plain()


def jit(kernel: Any) -> Any:
    """A function as a kernel, where there is Triton."""
    return kernel if triton is None else triton.jit(kernel)


def power_of_two(least: int) -> int:
    """The smallest power of two that is not less: what a block's extents must be."""
    return 1 << max(least - 1, 0).bit_length()


def blocks(extent: int, block: int) -> int:
    """How many blocks cover an extent."""
    return -(-extent // block)
