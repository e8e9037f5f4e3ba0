"""Curves along which a run's noise levels fall. Pure numbers.

`karras`, `exponential` and `beta` are diffusers' formulas over ratios of noise to signal; `sgm_uniform`, `simple` and
`normal`, which diffusers lacks, are over timesteps, as in the programs that named them.
"""

import math
from collections.abc import Callable

RHO = 7.0
"""The exponent of Karras' schedule."""
BETA = 0.6
"""Both parameters of the beta schedule ("Beta Sampling is All You Need", 2024)."""


def karras(steps: int, lowest: float, highest: float) -> list[float]:
    """Ratios of noise to signal (Karras et al., 2022, equation 5)."""
    low, high = lowest ** (1 / RHO), highest ** (1 / RHO)
    return [(high + along * (low - high)) ** RHO for along in _along(steps)]


def exponential(steps: int, lowest: float, highest: float) -> list[float]:
    """Ratios of noise to signal, evenly spaced in their logarithm."""
    low, high = math.log(lowest), math.log(highest)
    return [math.exp(high + along * (low - high)) for along in _along(steps)]


def beta(steps: int, lowest: float, highest: float) -> list[float]:
    """Ratios of noise to signal at the quantiles of a beta distribution."""
    return [lowest + beta_quantile(1.0 - along, BETA, BETA) * (highest - lowest) for along in _along(steps)]


def normal(steps: int, train: int) -> list[float]:
    """Timesteps, evenly spaced from the last of the training to the first."""
    return [(train - 1) * (1.0 - along) for along in _along(steps)]


def sgm_uniform(steps: int, train: int) -> list[float]:
    """Timesteps, evenly spaced as if there were one more, whose timestep, the lowest, is left out."""
    return [(train - 1) * (1.0 - step / steps) for step in range(steps)]


def simple(steps: int, train: int) -> list[float]:
    """Every so many-th timestep of the training, from the last."""
    return [float(train - 1 - int(step * (train / steps))) for step in range(steps)]


def _along(steps: int) -> list[float]:
    return [step / max(steps - 1, 1) for step in range(steps)]


def beta_quantile(share: float, a: float, b: float) -> float:
    """Where the beta distribution's cumulative share is `share`, by bisection."""
    if share <= 0.0 or share >= 1.0:
        return min(max(share, 0.0), 1.0)
    low, high = 0.0, 1.0
    # Each halving gives one bit; more than a float has cannot help.
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if beta_share(middle, a, b) < share else (low, middle)
    return (low + high) / 2


def beta_share(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by its continued fraction."""
    if x <= 0.0 or x >= 1.0:
        return min(max(x, 0.0), 1.0)
    # The fraction converges fast below the mean; above it, the distribution is mirrored.
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - beta_share(1.0 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    return front / _fraction(lambda n: _coefficient(n, x, a, b))


def _coefficient(n: int, x: float, a: float, b: float) -> float:
    m = n // 2
    if n % 2 == 0:
        return m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
    return -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))


def _fraction(coefficient: Callable[[int], float]) -> float:
    """`1 + c1 / (1 + c2 / (1 + ...))`, from the inside."""
    value = 1.0
    for n in range(200, 0, -1):
        value = 1.0 + coefficient(n) / value
    return value
