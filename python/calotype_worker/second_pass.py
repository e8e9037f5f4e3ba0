"""The second pass of a job: what the first gave is made larger, noised anew, and sampled again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from calotype_worker.errors import InvalidInput
from calotype_worker.pixels import to_numbers
from calotype_worker.wire.work import Generate

if TYPE_CHECKING:
    from calotype_worker.pipelines.adapted import AdapterSet
    from calotype_worker.pipelines.family import Family
    from calotype_worker.samplers.run import SamplerRun

NOISE_OFFSET = 100_000
"""Step i of the second pass has the noise of offset 100000 + 1 + i of its image's seed: no first pass gets so far."""
INITIAL_NOISE = 99_999
"""Offset of the noise that the enlarged latents are given."""


@dataclass(frozen=True)
class SecondPass:
    """What is to come: its request, its sampler, and the evaluation at which that begins."""

    work: Generate
    bound: AdapterSet
    latent: tuple[int, ...]
    run: SamplerRun
    start: int

    @staticmethod
    def of(work: Generate, model: Family, bound: AdapterSet, latent: tuple[int, ...]) -> SecondPass:
        """The second pass of a request whose sizes were checked; `latent` is its latents' shape."""
        hires = work.hires
        if hires is None:
            raise ValueError("there is no second pass")
        if work.mode == "inpaint":
            raise InvalidInput("a second pass does not go with inpainting")
        if not 0.0 <= hires.strength <= 1.0:
            raise InvalidInput(f"the second pass's strength {hires.strength} is not between 0 and 1")
        run = model.sampler(work.sampler, work.schedule, hires.steps, latent)
        start = run.start_for_strength(hires.strength)
        run.begin_at(start)
        return SecondPass(work, bound, latent, run, start)

    @property
    def total(self) -> int:
        """Its steps."""
        return self.run.step_of(self.run.evaluations - 1) + 1 if self.run.evaluations > self.start else 0

    @property
    def by_latents(self) -> bool:
        """Whether the latents are enlarged; else the decoded picture is."""
        return self.work.hires is not None and self.work.hires.upscaler == "latent"


def larger_latents(latents: torch.Tensor, latent: tuple[int, ...]) -> torch.Tensor:
    """`[n, channels, height, width]` in another size, bilinear."""
    return functional.interpolate(latents, size=latent[1:], mode="bilinear")


def larger_picture(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`[height, width, 3]` of u8 in another size by Lanczos, as `[1, 3, height, width]` from -1 to 1."""
    resized = Image.fromarray(picture.cpu().numpy()).resize((width, height), Image.Resampling.LANCZOS)
    return to_numbers(torch.from_numpy(np.array(resized)))


def larger_control(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A control unit's picture, `[1, 3, height, width]`, in another size."""
    return functional.interpolate(image, size=(height, width), mode="bilinear")
