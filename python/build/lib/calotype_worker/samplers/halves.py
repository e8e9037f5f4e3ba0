"""Solvers whose steps are two evaluations: Heun, DPM-Solver-2 and its ancestral variant, DPM-Solver++ 2S and SDE.

Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, Algorithms 1 and 2; Lu et al.,
"DPM-Solver++", 2022. All count in ratios of noise to signal. The last step is one evaluation, since nothing is defined
in the middle of a step that ends without noise.
"""

import math
from dataclasses import dataclass

import torch

from calotype_worker.samplers.level import Level, blend
from calotype_worker.samplers.plan import Evaluation, ancestral_split
from calotype_worker.samplers.solvers import Answer, StepNoise


@dataclass(frozen=True)
class Half:
    """What the first half of a step leaves for the second."""

    level: Level
    latents: torch.Tensor
    slope: torch.Tensor
    noise: torch.Tensor | None = None


class TwoHalves:
    """Remembers the first half while the second is awaited."""

    def __init__(self) -> None:
        self.half: Half | None = None

    def forget(self) -> None:
        """Drop a first half."""
        self.half = None

    def take(self) -> Half | None:
        """The first half, which is then forgotten."""
        half, self.half = self.half, None
        return half


def _slope(at: Evaluation, answer: Answer, latents: torch.Tensor) -> torch.Tensor:
    return (latents - answer.denoised) / at.level.noise


class Heun(TwoHalves):
    """An Euler step, then the same step again with the mean of the slopes at both its ends."""

    def step(self, at: Evaluation, answer: Answer, latents: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        """One evaluation."""
        slope, half = _slope(at, answer, latents), self.take()
        if half is not None:
            distance = at.level.noise - half.level.noise
            return torch.add(half.latents, (half.slope + slope) / 2, alpha=distance)
        if at.end.noise > 0.0:
            self.half = Half(at.level, latents, slope)
        return torch.add(latents, slope, alpha=at.end.noise - at.level.noise)


class Dpm2(TwoHalves):
    """To the middle, then the whole step with the slope found there; ancestral when it puts noise back."""

    def __init__(self, following: dict[int, float] | None) -> None:
        """`following` is the noise at which the next step begins, by step; None without ancestral noise."""
        super().__init__()
        self.following = following

    def step(self, at: Evaluation, answer: Answer, latents: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        """One evaluation."""
        slope, half = _slope(at, answer, latents), self.take()
        if half is None:
            if at.end.noise > 0.0:
                self.half = Half(at.level, latents, slope)
            return torch.add(latents, slope, alpha=at.leads.noise - at.level.noise)
        latents = torch.add(half.latents, slope, alpha=at.end.noise - half.level.noise)
        return _with_ancestral_noise(latents, half.level, self.following, at.step, noise)


class DpmPp2sAncestral(TwoHalves):
    """To the middle, then the whole step toward the picture found there, and up with new noise."""

    def __init__(self, following: dict[int, float]) -> None:
        """`following` is the noise at which the next step begins, by step."""
        super().__init__()
        self.following = following

    def step(self, at: Evaluation, answer: Answer, latents: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        """One evaluation."""
        half = self.take()
        if half is None:
            if at.end.noise > 0.0:
                self.half = Half(at.level, latents, answer.denoised)
            return blend(latents, at.level.toward(at.leads), answer.denoised)
        latents = blend(half.latents, half.level.toward(at.end), answer.denoised)
        return _with_ancestral_noise(latents, half.level, self.following, at.step, noise)


class DpmPpSde(TwoHalves):
    """The stochastic equation, with an ancestral step to the middle and one over the whole.

    Both noises come from one Brownian path: that of the whole step continues that of its first half.
    """

    def step(self, at: Evaluation, answer: Answer, latents: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        """One evaluation."""
        half = self.take()
        if half is None and at.end.noise <= 0.0:
            return blend(latents, at.level.toward(at.end), answer.denoised)
        if half is None:
            drawn = noise(half=True)
            self.half = Half(at.level, latents, answer.denoised, drawn)
            return self._toward(at.level, at.leads.noise, latents, answer.denoised, drawn)
        drawn = noise()
        if half.noise is not None:
            share = (half.level.noise - at.level.noise) / (half.level.noise - at.end.noise)
            drawn = blend(half.noise, (math.sqrt(share), math.sqrt(1.0 - share)), drawn)
        return self._toward(half.level, at.end.noise, half.latents, answer.denoised, drawn)

    @staticmethod
    def _toward(
        level: Level, to: float, latents: torch.Tensor, denoised: torch.Tensor, drawn: torch.Tensor
    ) -> torch.Tensor:
        down, added = ancestral_split(level.noise, to)
        return blend(blend(latents, level.toward(Level.exploding(down)), denoised), (1.0, added), drawn)


def _with_ancestral_noise(
    latents: torch.Tensor, level: Level, following: dict[int, float] | None, step: int, noise: StepNoise
) -> torch.Tensor:
    if following is None:
        return latents
    added = ancestral_split(level.noise, following[step])[1]
    return blend(latents, (1.0, added), noise()) if added > 0.0 else latents
