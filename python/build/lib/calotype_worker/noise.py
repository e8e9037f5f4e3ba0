"""Noise that needs no device: Philox 4x32-10 and the Box-Muller transform in the element order of CUDA's generator.

(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.) The key is the seed, the counter is
(offset, 0, index of the element, 0). Arithmetic between the integers and the final rounding to float32 is in float64,
so that this file and `crates/protocol/src/noise.rs` agree bit for bit; `noise.json` beside the golden conversations
pins both. Offset 0 is an image's initial noise; step i, counted from 0 where the run begins, has offset 1 + i.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
Noise = npt.NDArray[np.float32]

ROUNDS = 10
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF
_HALF = np.uint64(32)
# 2^-32 and 2 pi times it, rounded to float32 first, as CUDA's headers have them.
_UNIT = np.float64(np.float32(2.3283064e-10))
_TURN = np.float64(np.float32(2.3283064e-10 * 6.2831855))

INITIAL = 0
"""Offset of an image's initial noise."""


def of_step(step: int) -> int:
    """Offset of the noise of step `step`, counted from 0 where the run begins."""
    return step + 1


def of_half_step(step: int) -> int:
    """Offset of the second set of noise that the first half of a step of `dpmpp_sde` has."""
    return 0x8000_0000 + of_step(step)


def philox(seed: int, offset: int, count: int) -> Words:
    """Four random words for each of `count` elements: `[4, count]`."""
    key = [seed & _LOW, (seed >> 32) & _LOW]
    low = np.uint64(_LOW)
    a = np.full(count, offset, np.uint64)
    b = np.zeros(count, np.uint64)
    c = np.arange(count, dtype=np.uint64)
    d = np.zeros(count, np.uint64)
    for _ in range(ROUNDS):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            (second >> _HALF) ^ b ^ np.uint64(key[0]),
            second & low,
            (first >> _HALF) ^ d ^ np.uint64(key[1]),
            first & low,
        )
        key = [(key[0] + _KEY_STEPS[0]) & _LOW, (key[1] + _KEY_STEPS[1]) & _LOW]
    return np.stack([a, b, c, d]).astype(np.uint32)


def normal(seed: int, offset: int, shape: Sequence[int]) -> Noise:
    """Standard normal numbers of a shape; element i depends only on (`seed`, `offset`, i)."""
    words = philox(seed, offset, math.prod(shape))[:2].astype(np.float64)
    u = words[0] * _UNIT + _UNIT / 2
    v = words[1] * _TURN + _TURN / 2
    numbers: Noise = (np.sqrt(-2.0 * np.log(u)) * np.sin(v)).astype(np.float32)
    return numbers.reshape(tuple(shape))


def torch_cpu(seed: int, shape: Sequence[int]) -> Noise:
    """Noise in the second convention, `torch_cpu`: MT19937 as torch's CPU generator gives it."""
    import torch  # Only this convention needs it.

    generator = torch.Generator("cpu").manual_seed(seed)
    numbers: Noise = torch.randn(tuple(shape), generator=generator).numpy()
    return numbers
