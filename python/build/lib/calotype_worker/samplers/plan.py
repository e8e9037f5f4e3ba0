"""Which evaluations of the model a run makes: the schedule of the model as each family of samplers reads it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from calotype_worker.errors import NotSupported
from calotype_worker.samplers import spacing
from calotype_worker.samplers.level import CLEAN, Level
from calotype_worker.samplers.schedule import Grid, NoiseSchedule, Spacing
from calotype_worker.wire.words import Schedule

Scaling = Callable[[float], Level]


@dataclass(frozen=True)
class Evaluation:
    """One call of the model."""

    timestep: float
    level: Level
    """Of the latents before it."""
    leads: Level
    """Where the update after it leads: the end of the step, or for the first half of a step, the next evaluation."""
    end: Level
    """Where its step leads, before noise is put back."""
    step: int
    """What the user counts, from 0 over the whole schedule."""


def by_timestep(noise: NoiseSchedule, timesteps: Sequence[float]) -> list[Evaluation]:
    """Evaluations of samplers that look levels up by their timestep, each step ending where the next begins."""
    levels = [Level.of_alpha_cumprod(noise.alpha_cumprod(int(t))) for t in timesteps]
    ends = [*levels[1:], CLEAN]
    return [Evaluation(t, levels[i], ends[i], ends[i], i) for i, t in enumerate(timesteps)]


def falling_back(noise: NoiseSchedule, timesteps: Sequence[float], steps: int, last: Level) -> list[Evaluation]:
    """The same, but each step goes back by the whole part of the training's timesteps over the steps.

    That is not always where the next one begins. `last` is the end of a step that goes below timestep 0.
    """
    back = noise.train_timesteps // steps

    def end(timestep: float) -> Level:
        before = int(timestep) - back
        return last if before < 0 else Level.of_alpha_cumprod(noise.alpha_cumprod(before))

    levels = [Level.of_alpha_cumprod(noise.alpha_cumprod(int(t))) for t in timesteps]
    return [Evaluation(t, levels[i], end(t), end(t), i) for i, t in enumerate(timesteps)]


def whole_timesteps(noise: NoiseSchedule, steps: int) -> list[float]:
    """Whole timesteps in the model's own spacing."""
    return noise.timesteps(steps, noise.spacing or "leading", Grid.WHOLE)


def sigmas_of(
    noise: NoiseSchedule, schedule: Schedule, steps: int, grid: Grid, round_karras: bool
) -> tuple[list[float], list[float]]:
    """Timesteps and ratios of noise to signal of a run, without the end."""
    own: Spacing = noise.spacing or "linspace"
    timesteps = noise.timesteps(steps, own, grid)
    sigmas = [noise.sigma_at(timestep) for timestep in timesteps]
    over_sigmas = {"karras": spacing.karras, "exponential": spacing.exponential, "beta": spacing.beta}
    over_timesteps = {"normal": spacing.normal, "sgm_uniform": spacing.sgm_uniform, "simple": spacing.simple}
    if schedule in over_timesteps:
        timesteps = over_timesteps[schedule](steps, noise.train_timesteps)
        sigmas = [noise.sigma_at(timestep) for timestep in timesteps]
    elif schedule in over_sigmas:
        lowest, highest = sigmas[-1], sigmas[0]
        if grid is Grid.ONE_MORE:
            lowest, highest = noise.sigmas[0], noise.sigmas[-1]
        sigmas = over_sigmas[schedule](steps, lowest, highest)
        timesteps = [noise.timestep_at(sigma) for sigma in sigmas]
        # As the reference does: Karras' timesteps are rounded, the others of this grid lose their fraction.
        if schedule == "karras" and round_karras:
            timesteps = [float(round(timestep)) for timestep in timesteps]
        elif grid is Grid.ONE_MORE:
            timesteps = [float(math.floor(timestep)) for timestep in timesteps]
    sigmas = [float(np.float32(sigma)) for sigma in sigmas]
    if any(after >= before for before, after in pairwise(sigmas)):
        raise NotSupported(f"{steps} steps are too many for this model's noise schedule")
    return timesteps, sigmas


def single(timesteps: Sequence[float], sigmas: Sequence[float], scaling: Scaling) -> list[Evaluation]:
    """One evaluation a step."""
    levels = [scaling(sigma) for sigma in [*sigmas, 0.0]]
    return [Evaluation(t, levels[i], levels[i + 1], levels[i + 1], i) for i, t in enumerate(timesteps)]


def twice(timesteps: Sequence[float], sigmas: Sequence[float]) -> list[Evaluation]:
    """Two evaluations a step, at its beginning and its end; the last step has one."""
    evaluations = []
    for step, (timestep, sigma) in enumerate(zip(timesteps, sigmas)):
        end = Level.exploding(sigmas[step + 1]) if step + 1 < len(sigmas) else CLEAN
        evaluations.append(Evaluation(timestep, Level.exploding(sigma), end, end, step))
        if step + 1 < len(sigmas):
            evaluations.append(Evaluation(timesteps[step + 1], end, end, end, step))
    return evaluations


def with_middle(
    noise: NoiseSchedule, timesteps: Sequence[float], sigmas: Sequence[float], ancestral: bool
) -> list[Evaluation]:
    """Two evaluations a step, at its beginning and in its middle (of the logarithm); the last step has one."""
    evaluations = []
    for step, (timestep, sigma) in enumerate(zip(timesteps, sigmas)):
        following = sigmas[step + 1] if step + 1 < len(sigmas) else 0.0
        down = ancestral_split(sigma, following)[0] if ancestral else following
        here, end = Level.exploding(sigma), Level.exploding(down)
        if down <= 0.0:
            evaluations.append(Evaluation(timestep, here, CLEAN, CLEAN, step))
            continue
        middle = math.sqrt(sigma * down)
        evaluations.append(Evaluation(timestep, here, Level.exploding(middle), end, step))
        evaluations.append(Evaluation(noise.timestep_at(middle), Level.exploding(middle), end, end, step))
    return evaluations


def ancestral_split(sigma: float, following: float) -> tuple[float, float]:
    """How far down an ancestral step goes, and how much noise it puts back, to arrive at `following`."""
    added = max(following**2 * (sigma**2 - following**2) / sigma**2, 0.0)
    return math.sqrt(max(following**2 - added, 0.0)), math.sqrt(added)


def trajectory(noise: NoiseSchedule, timesteps: Sequence[int], gamma: float) -> list[Evaluation]:
    """The evaluations of trajectory consistency distillation: `leads` lies below `end` by the share `gamma`."""
    evaluations = []
    for step, timestep in enumerate(timesteps):
        following = timesteps[step + 1] if step + 1 < len(timesteps) else 0
        here, leads, end = (
            Level.of_alpha_cumprod(noise.alpha_cumprod(t))
            for t in (timestep, math.floor((1 - gamma) * following), following)
        )
        evaluations.append(Evaluation(float(timestep), here, leads, end, step))
    return evaluations


def warmed_up(noise: NoiseSchedule, timesteps: Sequence[float], steps: int, last: Level) -> list[Evaluation]:
    """The evaluations of PNDM's linear multistep method: the first step is taken twice."""
    evaluations = falling_back(noise, timesteps, steps, last)
    if len(evaluations) < 2:
        return evaluations
    second = evaluations[1]
    return [evaluations[0], Evaluation(second.timestep, second.level, second.level, second.level, 0), *evaluations[1:]]


def init_noise_sigma(noise: NoiseSchedule, first: Level) -> float:
    """The factor of the initial noise. With leading timesteps the first level still holds some of the picture."""
    if noise.spacing == "leading":
        return first.magnitude
    # Variance exploding: sigma; variance preserving: 1.
    return first.noise if first.signal == 1.0 else 1.0
