"""The noise that a model was trained with, and the timesteps of a run.

Ho et al., "Denoising Diffusion Probabilistic Models", 2020 (betas); Lin et al., "Common Diffusion Noise Schedules and
Sample Steps are Flawed", 2023, table 2 (spacings). The tables are rounded to float32, as the reference's are.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, cast, get_args

import numpy as np
import torch

from calotype_worker.errors import NotSupported
from calotype_worker.samplers.level import Prediction

MOST_TRAIN_TIMESTEPS = 100_000
"""More than any model has; keeps a wrong configuration from taking all the memory."""

Spacing = Literal["leading", "trailing", "linspace"]


class Grid(Enum):
    """What a family of samplers makes of a spacing."""

    WHOLE = "one timestep for each step, whole numbers"
    FRACTIONAL = "one timestep for each step, fractions where the spacing has them"
    ONE_MORE = "as if there were one step more, whose timestep, the lowest, is left out; whole numbers"


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise schedule of a model, from its `scheduler_config.json`.

    Which sampler the configuration names does not matter, nor do the settings that a sampler's name fixes;
    `clip_sample` does not matter either: latents are never clipped.
    """

    prediction: Prediction
    spacing: Spacing | None
    prefers_karras: bool
    ends_clean: bool
    original_inference_steps: int
    timestep_scaling: float
    steps_offset: int
    alphas_cumprod: tuple[float, ...]
    """By timestep, falling: how much of the picture is left, squared."""
    sigmas: tuple[float, ...]
    """By timestep, rising: the ratio of noise to signal."""
    log_sigmas: tuple[float, ...]

    @staticmethod
    def of_config(config: Mapping[str, Any]) -> "NoiseSchedule":
        """Read a `scheduler_config.json`; says which field is missing, wrong or not supported."""
        refuse_unsupported(config)
        count = whole(config, "num_train_timesteps", 1000)
        if not 2 <= count <= MOST_TRAIN_TIMESTEPS:
            raise NotSupported(f"`num_train_timesteps` is {count}, not from 2 to {MOST_TRAIN_TIMESTEPS}")
        alphas = torch.cumprod(1.0 - _betas(config, count), 0)
        sigmas = ((1 - alphas) / alphas) ** 0.5
        if not bool((torch.isfinite(sigmas) & (sigmas > 0)).all()):
            raise NotSupported("`beta_start` and `beta_end` give a noise level of zero or infinity")
        prediction = text(config, "prediction_type", "epsilon")
        if prediction not in ("epsilon", "v_prediction", "sample"):
            raise NotSupported(f'`prediction_type` "{prediction}" is not supported')
        spacing = None
        if config.get("timestep_spacing") is not None:
            spacing = text(config, "timestep_spacing", None)
            if spacing not in get_args(Spacing):
                raise NotSupported(f'`timestep_spacing` "{spacing}" is not supported')
        offset = whole(config, "steps_offset", 0)
        if offset >= count:
            raise NotSupported(f"`steps_offset` {offset} is not less than `num_train_timesteps` {count}")
        return NoiseSchedule(
            prediction=cast(Prediction, prediction),
            spacing=cast("Spacing | None", spacing),
            prefers_karras=flag(config, "use_karras_sigmas", False),
            ends_clean=flag(config, "set_alpha_to_one", True),
            original_inference_steps=whole(config, "original_inference_steps", 50),
            timestep_scaling=number(config, "timestep_scaling", 10.0),
            steps_offset=offset,
            alphas_cumprod=tuple(float(alpha) for alpha in alphas),
            sigmas=tuple(float(sigma) for sigma in sigmas),
            log_sigmas=tuple(float(log) for log in np.log(sigmas.numpy())),
        )

    @property
    def train_timesteps(self) -> int:
        """How many timesteps the training had."""
        return len(self.sigmas)

    def alpha_cumprod(self, timestep: int) -> float:
        """What is left of the picture, squared; timesteps outside the training count as the nearest inside."""
        return self.alphas_cumprod[min(max(timestep, 0), self.train_timesteps - 1)]

    def timesteps(self, steps: int, spacing: Spacing, grid: Grid) -> list[float]:
        """The timesteps of a run, falling."""
        train = self.train_timesteps
        left_out = 1 if grid is Grid.ONE_MORE else 0
        points = steps + left_out

        def timestep(place: int) -> float:
            if spacing == "leading":
                return float(place * (train // points) + self.steps_offset)
            if spacing == "trailing":
                # As numpy.arange counts: first and second value, then multiples of their difference.
                top, ratio = float(train), train / steps
                return float(round(top + (points - 1 - place) * ((top - ratio) - top))) - 1.0
            top = float(train - 1)
            value = place * (top / (points - 1)) if place else 0.0
            return float(np.float32(min(value, top))) if grid is Grid.FRACTIONAL else float(round(value))

        return [timestep(place) for place in range(left_out, points)][::-1]

    def consistency_timesteps(self, steps: int, sampler: str) -> list[int]:
        """The timesteps of consistency models: evenly chosen among those of their training."""
        original = self.original_inference_steps
        if not 1 <= original <= self.train_timesteps:
            raise NotSupported(f"`original_inference_steps` {original} is not from 1 to `num_train_timesteps`")
        if steps > original:
            raise NotSupported(f'sampler "{sampler}" has at most {original} steps with this model, not {steps}')
        skip = self.train_timesteps // original
        return [(original - math.floor(step * (original / steps))) * skip - 1 for step in range(steps)]

    def sigma_at(self, timestep: float) -> float:
        """The ratio of noise to signal at a timestep, between two by straight interpolation."""
        below = max(timestep, 0.0)
        index = min(int(below), self.train_timesteps - 1)
        low, high = self.sigmas[index], self.sigmas[min(index + 1, self.train_timesteps - 1)]
        return low + (high - low) * (below - int(below))

    def timestep_at(self, sigma: float) -> float:
        """The timestep with this ratio of noise to signal, by straight interpolation of the logarithm."""
        log = math.log(max(sigma, 1e-10))
        below = int(np.searchsorted(self.log_sigmas, log, side="right")) - 1
        below = min(max(below, 0), self.train_timesteps - 2)
        low, high = self.log_sigmas[below], self.log_sigmas[below + 1]
        share = min(max((log - low) / (high - low), 0.0), 1.0) if high > low else 0.0
        return below + share


def refuse_unsupported(config: Mapping[str, Any]) -> None:
    """Refuse settings that change the outcome and are not implemented."""
    for field in ("trained_betas", "sigma_min", "sigma_max", "lambda_min_clipped", "shift_terminal"):
        value = config.get(field)
        # Some classes write their default, which clips nothing.
        if value is not None and not (field == "lambda_min_clipped" and value in (-math.inf, "-Infinity")):
            raise NotSupported(f"`{field}` is not supported")
    for field in (
        "rescale_betas_zero_snr",
        "thresholding",
        "use_beta_sigmas",
        "use_dynamic_shifting",
        "use_exponential_sigmas",
        "use_flow_sigmas",
        "use_lu_lambdas",
    ):
        if flag(config, field, False):
            raise NotSupported(f"`{field}` is not supported")
    variance = text(config, "variance_type", "fixed_small")
    if variance.startswith("learned"):
        raise NotSupported(f'`variance_type` "{variance}" is not supported')
    for field, only in (("final_sigmas_type", "zero"), ("interpolation_type", "linear"), ("timestep_type", "discrete")):
        value = text(config, field, only)
        if value != only:
            raise NotSupported(f'`{field}` "{value}" is not supported')


def _betas(config: Mapping[str, Any], count: int) -> torch.Tensor:
    """How much noise each timestep of the training added: `[count]` of float32."""
    start, end = number(config, "beta_start", None), number(config, "beta_end", None)
    for field, beta in (("beta_start", start), ("beta_end", end)):
        if not 0.0 < beta < 1.0:
            raise NotSupported(f"`{field}` is {beta}, not between 0 and 1")
    kind = text(config, "beta_schedule", None)
    if kind == "linear":
        return torch.linspace(start, end, count, dtype=torch.float32)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2
    raise NotSupported(f'`beta_schedule` "{kind}" is not supported')


def number(config: Mapping[str, Any], field: str, default: float | None) -> float:
    """A number of the configuration, or the default where it is missing."""
    value = config.get(field)
    if value is None:
        if default is None:
            raise NotSupported(f"`{field}` is missing")
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise NotSupported(f"`{field}` is {value!r}, not a number")
    return float(value)


def whole(config: Mapping[str, Any], field: str, default: int) -> int:
    """A whole number of the configuration that is not negative."""
    value = float(number(config, field, default))
    if not value.is_integer() or not 0 <= value < 2**32:
        raise NotSupported(f"`{field}` is {value}, not a whole number")
    return int(value)


def text(config: Mapping[str, Any], field: str, default: str | None) -> str:
    """A text of the configuration."""
    value = config.get(field)
    if value is None:
        if default is None:
            raise NotSupported(f"`{field}` is missing")
        return default
    if not isinstance(value, str):
        raise NotSupported(f"`{field}` is {value!r}, not a text")
    return value


def flag(config: Mapping[str, Any], field: str, default: bool) -> bool:
    """True or false of the configuration."""
    value = config.get(field)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise NotSupported(f"`{field}` is {value!r}, not true or false")
    return value
