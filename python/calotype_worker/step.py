"""One run of the denoiser for the jobs that fit together, and the report of it once it is really done.

On an accelerator a step is launched and lands later: while one runs, the next is queued behind it, so that the device
never waits for the host's reports. On a CPU each lands at once.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from calotype_worker.device import Device, Fence
from calotype_worker.errors import OutOfMemory, WorkerError, told
from calotype_worker.graphs import StepGraphs
from calotype_worker.grouping import GroupSizes
from calotype_worker.held import Held
from calotype_worker.job import Sampling, Share, StepDone
from calotype_worker.pipelines.family import ControlInput, DenoiseInput, Family

ROOM_S = 0.25
"""How old the figure of free memory may be: the driver is not asked at every step."""


@dataclass(frozen=True)
class Ended:
    """A step of a job that ended in a flight, and its latents then."""

    held: Held
    sampling: Sampling
    step: StepDone
    latents: torch.Tensor


@dataclass(frozen=True)
class Flight:
    """A run of the denoiser that was launched."""

    fence: Fence
    launched: float
    jobs: list[Held]
    samples: int
    ended: list[Ended]


@dataclass(frozen=True)
class Landed:
    """A flight that is over, and the time that it took of the device."""

    flight: Flight
    step_ms: float


class Stepper:
    """Groups jobs, launches their steps, and tells which have landed."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.graphs = StepGraphs(device)
        # Measured on an H100, one run of 32 samples of SD 1.5 at 512² costs little more than one of 16.
        self.max_jobs, self.max_samples = (16, 32) if device.is_cuda else (4, 16)
        self.sizes = GroupSizes(self.max_samples)
        self._flights: deque[Flight] = deque()
        self._landed_at = 0.0
        self._room: tuple[float, int | None] = (-ROOM_S, None)

    def companions(self, order: Sequence[Held]) -> list[tuple[Held, Sampling]]:
        """The first job, and after it those that fit to it, as many as go together."""
        chosen: list[tuple[Held, Sampling]] = []
        samples, most, shape = 0, 0, None
        for held in order:
            sampling = held.stage
            if not isinstance(sampling, Sampling) or sampling.is_done or shape not in (None, sampling.shape):
                continue
            if shape is None:
                shape = sampling.shape
                most = self.sizes.limit(shape, self._room_bytes(), self.graphs.captured_samples(shape))
            if chosen and samples + sampling.samples > most:
                continue
            samples += sampling.samples
            chosen.append((held, sampling))
            if len(chosen) == self.max_jobs:
                break
        return chosen

    def measures(self, chosen: Sequence[tuple[Held, Sampling]]) -> bool:
        """Whether what a run of these jobs takes is to be learned."""
        samples = sum(sampling.samples for _, sampling in chosen)
        return self.device.is_cuda and self.sizes.is_new(chosen[0][1].shape, samples)

    def forget(self, model: str) -> None:
        """A model is gone, and memory with it."""
        self.sizes.forget(model)
        self._room = (-ROOM_S, None)

    def _room_bytes(self) -> int | None:
        """Memory that runs may take beside what the graphs keep for theirs."""
        asked, room = self._room
        now = time.perf_counter()
        if now - asked >= ROOM_S:
            found = self.device.room_bytes()
            # What the pool keeps looks cached, and serves nobody else.
            room = None if found is None else max(found - self.graphs.pool_bytes, 0)
            self._room = (now, room)
        return room

    def launch(self, chosen: Sequence[tuple[Held, Sampling]], model: Family) -> list[tuple[Held, WorkerError]]:
        """Launch a step of these jobs; gives those that failed, none where a smaller group is to be tried."""
        launched = time.perf_counter()
        samples = sum(sampling.samples for _, sampling in chosen)
        shape = chosen[0][1].shape
        measured, alone = self.measures(chosen), not self.graphs.compiler.busy
        held_bytes = self.device.held_bytes() if measured else None
        try:
            rest = self._denoise([sampling for _, sampling in chosen], model)
            for held, _ in chosen:
                held.tally.plan.update(self.graphs.did)
            if measured:
                # A replay takes nothing, and what is compiled meanwhile takes its own.
                seen = held_bytes is not None and alone and "graphs" not in self.graphs.did
                taken = self.device.lap_peak_bytes() - (held_bytes or 0) if seen else None
                self.sizes.ran(shape, samples, taken)
        except Exception as error:
            problem = told(error, self.device.numbers())
        else:
            failed, ended = [], []
            for held, sampling in chosen:
                own, rest = rest[: sampling.samples], rest[sampling.samples :]
                try:
                    step = sampling.take(own)
                except Exception as error:
                    failed.append((held, told(error, self.device.numbers())))
                    continue
                if step is not None:
                    ended.append(Ended(held, sampling, step, sampling.latents))
            self._flights.append(Flight(self.device.fence(), launched, [held for held, _ in chosen], samples, ended))
            return failed
        if isinstance(problem, OutOfMemory) and len(chosen) > 1:
            # The denoiser failed before any job took its part: none has changed.
            self.sizes.halve(shape, samples)
            for held, _ in chosen:
                held.tally.plan.add("halved")
            self.graphs.clear()
            return []
        return [(held, problem) for held, _ in chosen]

    def _denoise(self, group: Sequence[Sampling], model: Family) -> torch.Tensor:
        bound = group[0].leg.bound
        model.activate(bound)
        input = joined([sampling.share() for sampling in group])
        # They take turns within one step: neither makes room for the other.
        self.device.whereabouts.bring(model.denoiser, *(unit.net.module for unit in input.control))
        return self.graphs.denoise(model, bound, input)

    def land(self, most_in_flight: int) -> list[Landed]:
        """Wait until no more than so many are in flight; gives those that are over, in order."""
        landed = []
        while len(self._flights) > most_in_flight:
            flight = self._flights.popleft()
            flight.fence.wait()
            now = time.perf_counter()
            # A step that was queued behind another has the device only from that one's end.
            landed.append(Landed(flight, (now - max(flight.launched, self._landed_at)) * 1e3))
            self._landed_at = now
        return landed


def joined(shares: Sequence[Share]) -> DenoiseInput:
    """What several jobs bring, as one run."""
    if len(shares) == 1:
        share = shares[0]
        return DenoiseInput(share.sample, share.timesteps, share.states, share.added, _control(shares))
    return DenoiseInput(
        torch.cat([share.sample for share in shares]),
        torch.cat([share.timesteps for share in shares]),
        torch.cat([share.states for share in shares]),
        {name: torch.cat([share.added[name] for share in shares]) for name in shares[0].added},
        _control(shares),
    )


def _control(shares: Sequence[Share]) -> list[ControlInput]:
    """The units of all jobs, each net once: jobs of one shape have the same nets in the same order."""
    inputs = []
    for number, unit in enumerate(shares[0].units):
        images, factors = [], []
        for share in shares:
            own, samples = share.units[number], len(share.sample)
            images.append(own.image.expand(samples, -1, -1, -1))
            factors.append(own.factors_of(samples, share.sides))
        inputs.append(ControlInput(unit.net, torch.cat(images), torch.cat(factors)))
    return inputs
