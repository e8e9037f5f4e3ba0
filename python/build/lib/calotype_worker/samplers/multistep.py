"""Solvers that remember earlier evaluations: DPM-Solver++ 2M and its SDE, UniPC, LMS, PNDM.

Lu et al., "DPM-Solver++", 2022; Zhao et al., "UniPC", 2023 (second order, variant B2); Katherine Crowson's
k-diffusion (LMS); Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022, in its linear
multistep form.
"""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch

from calotype_worker.samplers.level import Level, Prediction, beyond, blend
from calotype_worker.samplers.plan import Evaluation
from calotype_worker.samplers.solvers import Answer, StepNoise


@dataclass(frozen=True)
class Past:
    """An evaluation that has been: its level and its denoised picture."""

    level: Level
    denoised: torch.Tensor


def extrapolated(before: Past | None, at: Evaluation, denoised: torch.Tensor) -> torch.Tensor:
    """The denoised picture in the middle of the step, as the line through the last two pictures tells it.

    The last picture itself for the step that ends without noise: there the middle is infinitely far.
    """
    if before is None or at.end.noise <= 0.0:
        return denoised
    step = at.end.log_ratio - at.level.log_ratio
    step_before = at.level.log_ratio - before.level.log_ratio
    return beyond(denoised, before.denoised, 0.5 * step / step_before)


class DpmPp2m:
    """DPM-Solver++ of second order with two steps of memory, midpoint variant."""

    def __init__(self, stochastic: bool) -> None:
        """`stochastic` solves the equation with new noise in every step but the last."""
        self.stochastic = stochastic
        self.before: Past | None = None

    def forget(self) -> None:
        """Begin with a first-order step."""
        self.before = None

    def step(self, at: Evaluation, answer: Answer, latents: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        """One evaluation."""
        target = extrapolated(self.before, at, answer.denoised)
        self.before = Past(at.level, answer.denoised)
        here, end = at.level, at.end
        if not self.stochastic:
            return blend(latents, here.toward(end), target)
        # `exp(-h)`, which is zero where h is infinite.
        shrink = (end.noise / here.noise) * (here.signal / end.signal)
        renewed = 1.0 - shrink * shrink
        latents = blend(latents, (end.noise / here.noise * shrink, end.signal * renewed), target)
        added = end.noise * math.sqrt(max(renewed, 0.0))
        return blend(latents, (1.0, added), noise()) if added > 0.0 else latents


class UniPc:
    """The predictor is the step of DPM-Solver++ 2M; each evaluation first corrects the step before it."""

    def __init__(self) -> None:
        self.past: deque[Past] = deque(maxlen=2)
        self.last_latents: torch.Tensor | None = None

    def forget(self) -> None:
        """Begin without a correction."""
        self.past.clear()
        self.last_latents = None

    def step(self, at: Evaluation, answer: Answer, latents: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        """One evaluation."""
        if self.past and self.last_latents is not None:
            latents = self._corrected(at.level, answer.denoised, self.last_latents)
        target = extrapolated(self.past[-1] if self.past else None, at, answer.denoised)
        self.last_latents = latents
        self.past.append(Past(at.level, answer.denoised))
        return blend(latents, at.level.toward(at.end), target)

    def _corrected(self, here: Level, denoised: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Take the step to `here` again, now that the denoised picture at its end is known."""
        last = self.past[-1]
        step = here.log_ratio - last.level.log_ratio
        if len(self.past) == 2:
            behind = (self.past[0].level.log_ratio - last.level.log_ratio) / step
            back, forth = _corrector(step, behind)
            target = torch.add(last.denoised, self.past[0].denoised - last.denoised, alpha=back / behind)
        else:
            forth, target = 0.5, last.denoised
        target = torch.add(target, denoised - last.denoised, alpha=forth)
        return blend(latents, last.level.toward(here), target)


def _corrector(step: float, behind: float) -> tuple[float, float]:
    """The weights of the differences to the evaluation before and to the end, exact for parabolas.

    `behind` is where the evaluation before lies, in steps; it is negative.
    """
    h = -step
    scale = math.expm1(h)
    first = scale / h - 1.0
    second = first / h - 0.5
    first, second = first / scale, 2.0 * second / scale
    back = (first - second) / (1.0 - behind)
    return back, first - back


class Lms:
    """Adams and Bashforth's method of fourth order over uneven steps."""

    ORDER = 4

    def __init__(self) -> None:
        self.slopes: deque[tuple[float, torch.Tensor]] = deque(maxlen=self.ORDER)

    def forget(self) -> None:
        """Begin with the first order."""
        self.slopes.clear()

    def step(self, at: Evaluation, answer: Answer, latents: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        """One evaluation."""
        self.slopes.append((at.level.noise, (latents - answer.denoised) / at.level.noise))
        factors = adams_bashforth([sigma for sigma, _ in self.slopes], at.end.noise)
        for factor, (_, slope) in zip(factors, self.slopes):
            latents = torch.add(latents, slope, alpha=factor)
        return latents


def adams_bashforth(points: list[float], end: float) -> list[float]:
    """The integral from the last point to `end` of each point's Lagrange polynomial."""
    factors = []
    for own in points:
        polynomial = np.poly1d([1.0])
        for other in points:
            if other != own:
                polynomial *= np.poly1d([1.0, -other]) / (own - other)
        integral = polynomial.integ()
        factors.append(float(integral(end) - integral(points[-1])))
    return factors


class Pndm:
    """The linear multistep method on the model's outputs; the first step is taken twice."""

    # The weights of the outputs, the newest first, by how many there are.
    WEIGHTS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))

    def __init__(self, prediction: Prediction, second_from: Level) -> None:
        """`second_from` is the level that the second evaluation of the first step counts from."""
        self.prediction: Prediction = prediction
        self.second_from = second_from
        self.outputs: deque[torch.Tensor] = deque(maxlen=4)
        self.first: tuple[int, torch.Tensor] | None = None

    def forget(self) -> None:
        """Begin with the first order."""
        self.outputs.clear()
        self.first = None

    def step(self, at: Evaluation, answer: Answer, latents: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        """One evaluation."""
        if self.first is not None and self.first[0] == at.step:
            output, start = (answer.output + self.outputs[-1]) / 2, self.first[1]
            self.first = None
            return self._transfer(self.second_from, at.end, start, output)
        self.first = (at.step, latents) if not self.outputs else None
        self.outputs.append(answer.output)
        weights = self.WEIGHTS[len(self.outputs) - 1]
        output = torch.zeros_like(answer.output)
        for weight, past in zip(weights, reversed(self.outputs)):
            output = torch.add(output, past, alpha=weight)
        return self._transfer(at.level, at.end, latents, output)

    def _transfer(self, here: Level, end: Level, latents: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        denoised = blend(latents, here.denoising(self.prediction), output)
        return blend(latents, here.toward(end), denoised)
