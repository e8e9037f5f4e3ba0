"""One run of a sampler: its evaluations, and what it remembers from one to the next."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from calotype_worker import noise as noises
from calotype_worker.errors import NotSupported
from calotype_worker.samplers import plan
from calotype_worker.samplers.halves import Dpm2, DpmPp2sAncestral, DpmPpSde, Heun
from calotype_worker.samplers.level import CLEAN, Level, Prediction, blend
from calotype_worker.samplers.multistep import DpmPp2m, Lms, Pndm, UniPc
from calotype_worker.samplers.plan import Evaluation
from calotype_worker.samplers.schedule import Grid, NoiseSchedule
from calotype_worker.samplers.solvers import Answer, Ddpm, EulerAncestral, FirstOrder, Lcm, Solver, Tcd
from calotype_worker.wire.words import Sampler, Schedule

GAMMA = 0.3
"""How stochastic `tcd` is: the default of the reference's pipelines."""
BY_TIMESTEP: frozenset[Sampler] = frozenset({"ddim", "ddpm", "lcm", "tcd", "pndm"})
"""Samplers whose timesteps are their own: they have the default schedule only."""
WITHOUT_SAMPLE_PREDICTION: frozenset[Sampler] = frozenset(
    {"euler_ancestral", "dpm2", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "lms"}
)
PREFERS_KARRAS: frozenset[Sampler] = frozenset(
    {"euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "dpm2", "dpm2_ancestral", "lms", "dpmpp_sde"}
)
"""Samplers for which a model's own `use_karras_sigmas` counts."""


@dataclass(frozen=True)
class Plan:
    """The evaluations of a run and what gets it from one to the next."""

    prediction: Prediction
    evaluations: list[Evaluation]
    solver: Solver
    init_noise_sigma: float
    steps: int


def planned(noise: NoiseSchedule, sampler: Sampler, schedule: Schedule, steps: int) -> Plan:
    """Plan a run of `steps` steps; says what is not supported."""
    if not 1 <= steps <= noise.train_timesteps:
        raise NotSupported(f"{steps} steps are not supported, only 1 to {noise.train_timesteps}")
    if sampler in BY_TIMESTEP and schedule != "default":
        raise NotSupported(f'sampler "{sampler}" does not support the schedule "{schedule}"')
    if sampler in WITHOUT_SAMPLE_PREDICTION and noise.prediction == "sample":
        raise NotSupported(f'sampler "{sampler}" does not support the prediction "sample"')
    if schedule == "default" and noise.prefers_karras and sampler in PREFERS_KARRAS:
        schedule = "karras"
    if sampler in BY_TIMESTEP:
        evaluations, solver = _by_timestep(noise, sampler, steps)
    else:
        evaluations, solver = _by_sigma(noise, sampler, schedule, steps)
    sigma = plan.init_noise_sigma(noise, evaluations[0].level)
    return Plan(noise.prediction, evaluations, solver, sigma, steps)


def _by_timestep(noise: NoiseSchedule, sampler: Sampler, steps: int) -> tuple[list[Evaluation], Solver]:
    last = CLEAN if noise.ends_clean else Level.of_alpha_cumprod(noise.alpha_cumprod(0))
    if sampler == "lcm":
        times = noise.consistency_timesteps(steps, sampler)
        return plan.by_timestep(noise, [float(t) for t in times]), Lcm(noise.timestep_scaling)
    if sampler == "tcd":
        return plan.trajectory(noise, noise.consistency_timesteps(steps, sampler), GAMMA), Tcd(steps - 1)
    timesteps = plan.whole_timesteps(noise, steps)
    if sampler == "ddim":
        return plan.falling_back(noise, timesteps, steps, last), FirstOrder()
    if sampler == "ddpm":
        return plan.by_timestep(noise, timesteps), Ddpm()
    evaluations = plan.warmed_up(noise, timesteps, steps, last)
    back = noise.train_timesteps // steps
    second = evaluations[min(1, len(evaluations) - 1)]
    second_from = Level.of_alpha_cumprod(noise.alpha_cumprod(int(second.timestep) + back))
    return evaluations, Pndm(noise.prediction, second_from)


def _by_sigma(
    noise: NoiseSchedule, sampler: Sampler, schedule: Schedule, steps: int
) -> tuple[list[Evaluation], Solver]:
    preserving = sampler in ("dpmpp_2m", "dpmpp_2m_sde", "unipc")
    grid = Grid.ONE_MORE if preserving else Grid.FRACTIONAL
    rounds = preserving or sampler in ("dpm2", "dpm2_ancestral")
    timesteps, sigmas = plan.sigmas_of(noise, schedule, steps, grid, rounds)
    following = dict(enumerate([*sigmas[1:], 0.0]))
    if preserving:
        solver: Solver = UniPc() if sampler == "unipc" else DpmPp2m(sampler == "dpmpp_2m_sde")
        return plan.single(timesteps, sigmas, Level.preserving), solver
    if sampler == "heun":
        return plan.twice(timesteps, sigmas), Heun()
    if sampler in ("dpm2", "dpmpp_sde"):
        evaluations = plan.with_middle(noise, timesteps, sigmas, ancestral=False)
        return evaluations, Dpm2(None) if sampler == "dpm2" else DpmPpSde()
    if sampler in ("dpm2_ancestral", "dpmpp_2s_ancestral"):
        evaluations = plan.with_middle(noise, timesteps, sigmas, ancestral=True)
        return evaluations, Dpm2(following) if sampler == "dpm2_ancestral" else DpmPp2sAncestral(following)
    evaluations = plan.single(timesteps, sigmas, Level.exploding)
    if sampler == "euler":
        return evaluations, FirstOrder()
    return evaluations, Lms() if sampler == "lms" else EulerAncestral()


class SamplerRun:
    """Takes latents from noise to picture, one evaluation at a time, in order from where the run begins."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._begin_step = 0

    @property
    def evaluations(self) -> int:
        """How often the model is evaluated in the whole schedule."""
        return len(self._plan.evaluations)

    @property
    def init_noise_sigma(self) -> float:
        """The factor of the initial noise when a run begins without a picture."""
        return self._plan.init_noise_sigma

    def timestep(self, i: int) -> float:
        """The timestep that the model is told at evaluation `i`; past the end, that of the last."""
        return self._plan.evaluations[min(i, self.evaluations - 1)].timestep

    def step_of(self, i: int) -> int:
        """The step that evaluation `i` belongs to, counted from 0 where the run begins."""
        step = self._plan.evaluations[i].step if i < self.evaluations else self._plan.steps
        return max(step - self._begin_step, 0)

    def level(self, i: int) -> Level:
        """Of the latents before evaluation `i`; clean past the end."""
        return self._plan.evaluations[i].level if i < self.evaluations else CLEAN

    def start_for_strength(self, strength: float) -> int:
        """The evaluation at which a run begins that keeps part of a given picture: 1 is all, 0 is none at all.

        (Meng et al., "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations", 2021.)
        """
        kept = min(int(self._plan.steps * strength), self._plan.steps)
        left_out = self._plan.steps - kept
        return next((i for i, at in enumerate(self._plan.evaluations) if at.step >= left_out), self.evaluations)

    def begin_at(self, i: int) -> None:
        """Make evaluation `i`, which begins a step, the first, and forget what has been."""
        self._begin_step = self._plan.evaluations[i].step if i < self.evaluations else self._plan.steps
        self._plan.solver.forget()

    def scale_input(self, i: int, latents: torch.Tensor) -> torch.Tensor:
        """The latents as the model wants them at evaluation `i`: with the standard deviation of the training."""
        # A flow's model is trained on the latents as they are.
        return latents if self._plan.prediction == "flow" else latents / self.level(i).magnitude

    def add_noise(self, i: int, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """A clean latent with as much noise as evaluation `i` expects; past the end it stays clean."""
        level = self.level(i)
        return clean.clone() if level == CLEAN else blend(clean, (level.signal, level.noise), noise)

    def step(
        self, i: int, output: torch.Tensor, latents: torch.Tensor, drawn: Callable[[int], torch.Tensor]
    ) -> torch.Tensor:
        """The latents after evaluation `i`, given the model's output there.

        `drawn` gives standard normal numbers of the latents' shape at an offset of the seeds' noise.
        """
        at = self._plan.evaluations[i]
        denoised = blend(latents, at.level.denoising(self._plan.prediction), output)
        step = self.step_of(i)

        def noise(*, half: bool = False) -> torch.Tensor:
            return drawn(noises.of_half_step(step) if half else noises.of_step(step))

        return self._plan.solver.step(at, Answer(output, denoised), latents, noise)
