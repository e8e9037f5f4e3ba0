"""A job that this worker holds, and how far it is."""

from dataclasses import dataclass, field

import torch

from calotype_worker.device import Fence
from calotype_worker.job import Sampling, Tally
from calotype_worker.pixels import Blobs
from calotype_worker.wire.down import Run, VaePlan
from calotype_worker.wire.work import Generate, Work


@dataclass(frozen=True)
class Waiting:
    """As it came."""

    work: Work
    blobs: Blobs


@dataclass(frozen=True)
class Delivering:
    """Its pictures, `[height, width, 3]` of u8 on the host, are there when `fence` is."""

    pictures: list[torch.Tensor]
    fence: Fence
    started: float
    steps_done: int
    seeds: list[int]
    source: Sampling | None
    """Held until the pictures are there: the decoding, on a stream of its own, still reads its latents."""


Stage = Waiting | Sampling | Delivering


@dataclass
class Held:
    """A job with its stage."""

    job: str
    attempt: int
    priority: int
    arrival: int
    model: str
    stage: Stage
    vae: VaePlan = "whole"
    paused: bool = False
    offloaded: bool = False
    tally: Tally = field(default_factory=Tally)

    @staticmethod
    def of(run: Run, blobs: Blobs, arrival: int) -> "Held":
        """A job that has just come."""
        stage = Waiting(run.work, blobs)
        return Held(run.job, run.attempt, run.priority, arrival, run.work.model, stage, run.vae)

    def uses(self, model: str) -> bool:
        """Whether it needs this model, refiner, ControlNet or preprocessor.

        A preprocessor is needed until its pictures are made, which they are when the sampling begins.
        """
        others: list[str] = []
        if isinstance(self.stage, Waiting) and isinstance(self.stage.work, Generate):
            work = self.stage.work
            others = [unit.model for unit in work.control]
            others += [unit.preprocess.model for unit in work.control if unit.preprocess is not None]
            others += [] if work.refiner is None else [work.refiner.model]
        elif isinstance(self.stage, Sampling):
            others = [leg.model for leg in self.stage.legs] + [unit.net.id for unit in self.stage.units]
        return model in (self.model, *others)

    @property
    def steps_done(self) -> int:
        """Whole steps done."""
        return 0 if isinstance(self.stage, Waiting) else self.stage.steps_done
