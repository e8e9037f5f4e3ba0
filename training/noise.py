"""Gaussian noise that is the same on every device and in every language: Philox 4x32-10 and Box-Muller.

The key is the seed; the counter is (offset, 0, index of the element, 0). The first noise of a picture has offset 0, the
noise of step i has offset 1 + i, and picture n of a batch has seed + n.
"""

import numpy as np

ROUNDS = 10
MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
LOW_32_BITS = np.uint64(0xFFFFFFFF)
# Both factors are rounded to float32 first, as the GPU code that set the convention does.
TO_UNIT = np.float64(np.float32(2.3283064e-10))
TO_CIRCLE = np.float64(np.float32(2.3283064e-10 * 6.2831855))


def philox(seed: int, offset: int, count: int) -> np.ndarray:
    """Return four random words for each of `count` elements, as uint32 [4, count]."""
    key = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF]
    words = [np.zeros(count, np.uint64) for _ in range(4)]
    words[0] += np.uint64(offset)
    words[2] += np.arange(count, dtype=np.uint64)
    for _ in range(ROUNDS):
        product_0 = words[0] * MULTIPLIERS[0]
        product_1 = words[2] * MULTIPLIERS[1]
        words = [
            (product_1 >> np.uint64(32)) ^ words[1] ^ np.uint64(key[0]),
            product_1 & LOW_32_BITS,
            (product_0 >> np.uint64(32)) ^ words[3] ^ np.uint64(key[1]),
            product_0 & LOW_32_BITS,
        ]
        key = [(word + step) & 0xFFFFFFFF for word, step in zip(key, KEY_STEPS, strict=True)]
    return np.stack(words).astype(np.uint32)


def gaussian(seed: int, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 noise of a shape; all arithmetic is in float64 and rounded once."""
    words = philox(seed, offset, int(np.prod(shape))).astype(np.float64)
    u = words[0] * TO_UNIT + TO_UNIT / 2
    v = words[1] * TO_CIRCLE + TO_CIRCLE / 2
    return (np.sqrt(-2.0 * np.log(u)) * np.sin(v)).astype(np.float32).reshape(shape)
