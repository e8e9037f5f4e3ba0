"""Solvers with one evaluation and no memory: DDIM, Euler, DDPM, latent and trajectory consistency.

Song, Meng, Ermon, "Denoising Diffusion Implicit Models", 2020; Karras et al., "Elucidating the Design Space of
Diffusion-Based Generative Models", 2022; Ho et al., "Denoising Diffusion Probabilistic Models", 2020; Luo et al.,
"Latent Consistency Models", 2023; Zheng et al., "Trajectory Consistency Distillation", 2024.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from calotype_worker.samplers.level import blend
from calotype_worker.samplers.plan import Evaluation, ancestral_split


class StepNoise(Protocol):
    """Standard normal numbers of the latents' shape; a step has two sets, the second for its first half."""

    def __call__(self, *, half: bool = False) -> torch.Tensor:
        """The set of this step."""


@dataclass(frozen=True)
class Answer:
    """What the model said, and the picture that it means. Both have the latents' shape."""

    output: torch.Tensor
    denoised: torch.Tensor


class Solver(Protocol):
    """How to get from one level to the next. Remembers what it needs from one evaluation to the next."""

    def forget(self) -> None:
        """Begin anew."""

    def step(self, at: Evaluation, answer: Answer, latents: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        """The latents after evaluation `at`; those given are not changed."""


class Memoryless:
    """Remembers nothing."""

    def forget(self) -> None:
        """There is nothing to forget."""


class FirstOrder(Memoryless):
    """DDIM without added noise, and Euler's method: they differ in their levels only."""

    def step(self, at: Evaluation, answer: Answer, latents: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        """All the way to the end of the step."""
        return blend(latents, at.level.toward(at.end), answer.denoised)


class EulerAncestral(Memoryless):
    """Takes away more noise than it should, and puts new noise in its place; the last step adds none."""

    def step(self, at: Evaluation, answer: Answer, latents: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        """Below the end of the step, and up again."""
        down, added = ancestral_split(at.level.noise, at.end.noise)
        latents = blend(latents, at.level.toward(at.end.with_noise(down)), answer.denoised)
        return blend(latents, (1.0, added), noise()) if added > 0.0 else latents


class Ddpm(Memoryless):
    """The posterior of the Markov chain that the training used, with its small variance."""

    def step(self, at: Evaluation, answer: Answer, latents: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        """To the mean of the posterior, with noise except from timestep 0."""
        here, end = at.level, at.end
        alpha = (here.signal / end.signal) ** 2
        keep = math.sqrt(alpha) * end.noise**2 / here.noise**2
        pull = end.signal * (1.0 - alpha) / here.noise**2
        latents = blend(latents, (keep, pull), answer.denoised)
        if at.timestep <= 0:
            return latents
        variance = max(end.noise**2 / here.noise**2 * (1.0 - alpha), 1e-20)
        return blend(latents, (1.0, math.sqrt(variance)), noise())


@dataclass(frozen=True)
class Lcm(Memoryless):
    """Multistep sampling of a latent consistency model, with the boundary condition of its training."""

    timestep_scaling: float
    data_deviation: float = 0.5

    def step(self, at: Evaluation, answer: Answer, latents: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        """All the way to the picture, then back up with new noise."""
        time, deviation = at.timestep * self.timestep_scaling, self.data_deviation
        total = time * time + deviation * deviation
        latents = blend(latents, (deviation * deviation / total, time / math.sqrt(total)), answer.denoised)
        return blend(latents, (at.end.signal, at.end.noise), noise()) if at.end.noise > 0.0 else latents


@dataclass(frozen=True)
class Tcd(Memoryless):
    """Along the trajectory to below the end of the step, then back up with new noise."""

    last_step: int

    def step(self, at: Evaluation, answer: Answer, latents: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        """Down to `leads`, up to `end`; the last step stays down."""
        latents = blend(latents, at.level.toward(at.leads), answer.denoised)
        if at.step == self.last_step:
            return latents
        share = (at.end.signal / at.leads.signal) ** 2
        return blend(latents, (math.sqrt(share), math.sqrt(max(1.0 - share, 0.0))), noise())
