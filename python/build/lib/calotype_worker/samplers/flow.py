"""The noise of models that were trained on straight flows from picture to noise: SD3, FLUX.

Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024. A latent is
`(1 - sigma) * picture + sigma * noise`, the timestep is `1000 * sigma`, and sigmas are shifted toward the noise: by a
constant, or by more the larger the picture is.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from calotype_worker.errors import NotSupported
from calotype_worker.samplers import plan
from calotype_worker.samplers.level import Level
from calotype_worker.samplers.multistep import DpmPp2m
from calotype_worker.samplers.run import Plan
from calotype_worker.samplers.schedule import flag, number, whole
from calotype_worker.samplers.solvers import FirstOrder, Solver
from calotype_worker.wire.words import Sampler, Schedule

SAMPLERS: tuple[Sampler, ...] = ("euler", "dpmpp_2m")
"""What runs on a flow."""


@dataclass(frozen=True)
class FlowSchedule:
    """The schedule of a flow, from its `scheduler_config.json`."""

    train_timesteps: int
    shift: float
    dynamic: bool
    base_shift: float
    max_shift: float
    base_tokens: int
    max_tokens: int

    @staticmethod
    def of_config(config: Mapping[str, Any]) -> "FlowSchedule":
        """Read a `scheduler_config.json`; says which field is not supported."""
        for field in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas"):
            if flag(config, field, False):
                raise NotSupported(f"`{field}` is not supported")
        if config.get("shift_terminal") is not None:
            raise NotSupported("`shift_terminal` is not supported")
        if config.get("time_shift_type") not in (None, "exponential"):
            raise NotSupported("`time_shift_type` is not supported")
        return FlowSchedule(
            train_timesteps=whole(config, "num_train_timesteps", 1000),
            shift=number(config, "shift", 1.0),
            dynamic=flag(config, "use_dynamic_shifting", False),
            base_shift=number(config, "base_shift", 0.5),
            max_shift=number(config, "max_shift", 1.15),
            base_tokens=whole(config, "base_image_seq_len", 256),
            max_tokens=whole(config, "max_image_seq_len", 4096),
        )

    def shifted(self, sigma: float, tokens: int) -> float:
        """A sigma moved toward the noise, for a picture of so many tokens."""
        if self.dynamic:
            slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
            factor = math.exp(self.base_shift + slope * (tokens - self.base_tokens))
            return factor / (factor + 1.0 / sigma - 1.0)
        return self.shift * sigma / (1.0 + (self.shift - 1.0) * sigma)

    def planned(self, sampler: Sampler, schedule: Schedule, steps: int, tokens: int, down_to_steps: bool) -> Plan:
        """Plan a run; `down_to_steps` ends the spacing at `1 / steps` (FLUX) and not at the training's last (SD3)."""
        if sampler not in SAMPLERS or schedule != "default":
            raise NotSupported(f'a flow has the samplers {", ".join(SAMPLERS)} with the schedule "default" only')
        if not 1 <= steps <= self.train_timesteps:
            raise NotSupported(f"{steps} steps are not supported, only 1 to {self.train_timesteps}")
        last = 1.0 / steps
        if not down_to_steps:
            # The reference shifts the training's last sigma once as such, and once more with the others.
            last = 1.0 / self.train_timesteps
            last = last if self.dynamic else self.shifted(last, tokens)
        spaced = np.linspace(1.0, last, steps)
        sigmas = [float(np.float32(self.shifted(float(sigma), tokens))) for sigma in spaced]
        timesteps = [sigma * self.train_timesteps for sigma in sigmas]
        solver: Solver = FirstOrder() if sampler == "euler" else DpmPp2m(stochastic=False)
        return Plan("flow", plan.single(timesteps, sigmas, Level.flow), solver, 1.0, steps)
