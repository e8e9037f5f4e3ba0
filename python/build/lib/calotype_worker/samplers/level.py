"""How much of a latent is picture and how much is noise."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
"""What a model's output means; `flow` is the velocity from picture to noise, `noise - picture`."""


@dataclass(frozen=True)
class Level:
    """A latent is `signal * picture + noise * standard normal numbers`.

    Three scalings occur: variance preserving (`signal² + noise² = 1`), variance exploding (`signal = 1`, noise is
    Karras' sigma), and straight flows (`signal + noise = 1`). Everything here holds for all.
    """

    signal: float
    noise: float

    @staticmethod
    def of_alpha_cumprod(alpha: float) -> "Level":
        """Variance preserving, from the cumulative product of the alphas."""
        return Level(math.sqrt(alpha), math.sqrt(1.0 - alpha))

    @staticmethod
    def preserving(sigma: float) -> "Level":
        """Variance preserving, from the ratio of noise to signal."""
        signal = 1.0 / math.sqrt(sigma * sigma + 1.0)
        return Level(signal, sigma * signal)

    @staticmethod
    def exploding(sigma: float) -> "Level":
        """Variance exploding, from the ratio of noise to signal."""
        return Level(1.0, sigma)

    @staticmethod
    def flow(sigma: float) -> "Level":
        """On the straight line from picture (0) to noise (1)."""
        return Level(1.0 - sigma, sigma)

    @property
    def magnitude(self) -> float:
        """The standard deviation of a latent whose picture has the standard deviation 1."""
        return math.hypot(self.signal, self.noise)

    @property
    def log_ratio(self) -> float:
        """Half the logarithm of the signal-to-noise ratio, the lambda of Lu et al.; infinite at both ends."""
        if self.noise <= 0.0:
            return math.inf
        return math.log(self.signal) - math.log(self.noise) if self.signal > 0.0 else -math.inf

    def denoising(self, prediction: Prediction) -> tuple[float, float]:
        """The factors of the latent and of the model's output whose sum is the picture that the model sees."""
        if prediction == "epsilon":
            return 1.0 / self.signal, -self.noise / self.signal
        if prediction == "v_prediction":
            return self.signal / self.magnitude**2, -self.noise / self.magnitude
        if prediction == "flow":
            return 1.0, -self.noise
        return 0.0, 1.0

    def toward(self, after: "Level") -> tuple[float, float]:
        """The factors of the latent and of the denoised picture whose sum is the latent at `after`.

        This is the first-order step that DDIM, Euler and DPM-Solver++ have in common: the noise in the latent stays
        the same, there is only less of it.
        """
        keep = after.noise / self.noise
        return keep, after.signal - keep * self.signal

    def with_noise(self, noise: float) -> "Level":
        """The same signal with another amount of noise."""
        return replace(self, noise=noise)


CLEAN = Level(1.0, 0.0)
"""The picture itself."""


def blend(latents: torch.Tensor, factors: tuple[float, float], target: torch.Tensor) -> torch.Tensor:
    """`factors[0] * latents + factors[1] * target`."""
    return torch.add(latents * factors[0], target, alpha=factors[1])


def beyond(a: torch.Tensor, b: torch.Tensor, factor: float) -> torch.Tensor:
    """`a + factor * (a - b)`."""
    return torch.add(a, a - b, alpha=factor)
