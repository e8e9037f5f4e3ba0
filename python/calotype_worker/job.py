"""One generation under way: its latents and conditioning, and how far it is. Knows no other job and no pipe."""

import math
from dataclasses import dataclass, field, replace

import torch

from calotype_worker import noise as noises
from calotype_worker.conditions import FindControl, FindModel, FindPreprocessor, Leg, Unit, leg_of, legs_of, units_of
from calotype_worker.errors import InvalidInput, WorkerError
from calotype_worker.offload import moved
from calotype_worker.pipelines.adapted import PLAIN, AdapterSet
from calotype_worker.pipelines.family import Family
from calotype_worker.pixels import Blobs, Mask, image_of, numbers_of, to_numbers
from calotype_worker.samplers.run import SamplerRun
from calotype_worker.second_pass import INITIAL_NOISE, NOISE_OFFSET, SecondPass, larger_control
from calotype_worker.wire.words import Phase
from calotype_worker.wire.work import Generate

MAX_EDGE = 4096
"""Largest edge of an image."""
MOST_IMAGES = 16
"""Most images of one job."""
MOST_RESULT_BYTES = 512 << 20
"""What a reader of frames takes at once."""


@dataclass(frozen=True)
class Shape:
    """What must agree for two jobs to share a run of the denoiser."""

    model: str
    latent: tuple[int, ...]
    adapters: str
    context: tuple[int, ...]
    control: tuple[str, ...] = ()


@dataclass(frozen=True)
class StepDone:
    """A step that has ended: how many there are now, and in all."""

    done: int
    total: int


@dataclass(frozen=True)
class Share:
    """What a job brings to a run of the denoiser: samples without the prompt first, where there are 2 `sides`.

    `sample` is `[n, channels, height, width]`, `timesteps` `[n]`, `states` `[n, tokens, width]`.
    """

    sample: torch.Tensor
    timesteps: torch.Tensor
    states: torch.Tensor
    added: dict[str, torch.Tensor]
    units: list[Unit]
    sides: int


@dataclass(frozen=True)
class Kept:
    """What is kept of the picture that an inpainting starts from. `mask` is true where to repaint."""

    encoded: torch.Tensor
    noise: torch.Tensor
    mask: torch.Tensor
    original: torch.Tensor
    pixel_mask: Mask


@dataclass
class Tally:
    """What a result tells of how it came about."""

    timings_ms: dict[Phase, float] = field(default_factory=dict)
    batch_sizes: list[int] = field(default_factory=list)
    plan: set[str] = field(default_factory=set)
    phase_peaks: dict[Phase, int] = field(default_factory=dict)
    peak_bytes: int = 0
    """The most that was held since the job came; 0 where that is not told apart."""

    def spend(self, phase: Phase, ms: float) -> None:
        """Add to a phase's time."""
        self.timings_ms[phase] = self.timings_ms.get(phase, 0.0) + ms


class Sampling:
    """A job in the tick loop."""

    def __init__(
        self,
        work: Generate,
        blobs: Blobs,
        model: Family,
        bound: AdapterSet,
        find_model: FindModel,
        find_control: FindControl,
        find_preprocessor: FindPreprocessor,
    ) -> None:
        """Encode what a job brings. Other models that it names, as refiner or for control, are found by functions."""
        latent = checked(work, model, work.width, work.height, work.steps)
        images = len(work.seeds)
        self.seeds = work.seeds
        self.adapters = work.adapters
        self._adapters_key = bound.key
        self.guidance = work.guidance
        self.preview_every = work.preview_every
        self.latent = latent
        self.run: SamplerRun = model.sampler(work.sampler, work.schedule, work.steps, latent)
        if work.initial_noise.shape != [images, *latent]:
            raise InvalidInput(f"the initial noise has the shape {work.initial_noise.shape}, not {[images, *latent]}")
        noise = numbers_of("the initial noise", work.initial_noise, blobs).to(model.device)
        self.start = 0
        self.kept: Kept | None = None
        self.latents = noise * self.run.init_noise_sigma
        if work.mode != "text_to_image":
            self._begin_from_image(work, blobs, model, noise)
        self.beside = self._beside(model)
        self.run.begin_at(self.start)
        self.before = self.noise_offset = 0
        self._begin(model)
        self.units = units_of(work, blobs, model, find_control, find_preprocessor)
        self.legs = legs_of(work, model, bound, find_model, latent, self._steps)
        self.second: SecondPass | None = None
        if work.hires is not None:
            larger = checked(work, model, work.hires.width, work.hires.height, work.hires.steps)
            self.second = SecondPass.of(work, model, bound, larger)

    def _begin(self, model: Family) -> None:
        """Make `start` the next evaluation of the run."""
        self.at = self.start
        times = [self.run.timestep(i) for i in range(self.run.evaluations)]
        self.times = torch.tensor(times, dtype=torch.float32, device=model.device)

    def _beside(self, model: Family) -> torch.Tensor | None:
        """What an inpainting UNet sees beside the latents: the mask, and latents of the picture without what it hides.

        Where there is no mask all is hidden.
        """
        if not model.extra_channels:
            return None
        height, width = (edge * model.scale for edge in self.latent[1:])
        hidden = torch.ones(self.latent[1:], dtype=torch.bool, device=model.device)
        visible = torch.zeros((1, 3, height, width))
        if self.kept is not None:
            hidden = self.kept.mask
            visible = to_numbers(self.kept.original) * ~self.kept.pixel_mask.repaint
        return torch.cat([hidden[None, None].float(), model.encode_image(visible)], dim=1)

    def begin_second(self, second: SecondPass, larger: torch.Tensor, model: Family) -> None:
        """Go on with the enlarged latents, which are clean. The refiner's part is over with the first pass."""
        self.before, self.noise_offset, self.second = self.before + self._steps, NOISE_OFFSET, None
        self.latent, self.run, self.start = second.latent, second.run, second.start
        noise = self._noise(INITIAL_NOISE)
        self.latents = larger if self.start >= self.run.evaluations else self.run.add_noise(self.start, larger, noise)
        self._begin(model)
        self.beside = self._beside(model)
        height, width = (edge * model.scale for edge in self.latent[1:])
        self.units = [replace(unit, image=larger_control(unit.image, height, width)) for unit in self.units]
        # With the sizes that some models are told; the texts are encoded already.
        self.legs = [leg_of(second.work, second.work.model, model, second.bound, 0, self.latent)]

    def _begin_from_image(self, work: Generate, blobs: Blobs, model: Family, noise: torch.Tensor) -> None:
        if work.init_image is None:
            raise InvalidInput("an initial image is needed")
        image = image_of("the initial image", work.init_image, blobs)
        if image.shape[:2] != (work.height, work.width):
            raise InvalidInput(f"the initial image is {image.shape[1]}x{image.shape[0]}")
        if not 0.0 <= work.strength <= 1.0:
            raise InvalidInput(f"the strength {work.strength} is not between 0 and 1")
        encoded = model.encode_image(to_numbers(image)).expand(len(work.seeds), *self.latent)
        self.start = self.run.start_for_strength(work.strength)
        if work.mode == "image_to_image" or work.strength < 1.0:
            self.latents = self.run.add_noise(self.start, encoded, noise)
        if work.mode == "inpaint":
            if work.mask is None:
                raise InvalidInput("inpainting needs a mask")
            mask = Mask.of(work.mask, blobs, work.height, work.width)
            self.kept = Kept(encoded, noise, mask.of_latents(model.scale).to(noise.device), image, mask)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to sample in the pass that it is in."""
        return self.at >= self.run.evaluations

    @property
    def _steps(self) -> int:
        """Steps of the pass that it is in."""
        end = self.run.evaluations
        return self.run.step_of(end - 1) + 1 if end > self.start else 0

    @property
    def total(self) -> int:
        """Steps in all."""
        return self.before + self._steps + (0 if self.second is None else self.second.total)

    @property
    def steps_done(self) -> int:
        """Whole steps done."""
        return self.before + (self._steps if self.is_done else self.run.step_of(self.at))

    @property
    def leg(self) -> Leg:
        """The part of its steps that it is in."""
        step = self.run.step_of(self.at)
        return next(leg for leg in reversed(self.legs) if leg.begins <= step)

    @property
    def samples(self) -> int:
        """Samples that it brings to a run of the denoiser."""
        return len(self.seeds) * self.leg.sides

    def working_units(self) -> list[Unit]:
        """The control units that add to the next step."""
        step, total = self.run.step_of(self.at), max(self._steps, 1)
        return [unit for unit in self.units if unit.works_at(step, total)] if self.leg is self.legs[0] else []

    @property
    def shape(self) -> Shape:
        """With what it can share the next run of the denoiser."""
        leg = self.leg
        control = tuple(unit.net.id for unit in self.working_units())
        return Shape(leg.model, self.latent, leg.bound.key, tuple(leg.states.shape[1:]), control)

    def share(self) -> Share:
        """What it brings to the next run of the denoiser."""
        leg = self.leg
        scaled = self.run.scale_input(self.at, self.latents)
        if self.beside is not None:
            scaled = torch.cat([scaled, self.beside.expand(len(scaled), -1, -1, -1)], dim=1)
        sample = scaled if leg.sides == 1 else torch.cat([scaled, scaled])
        times = self.times[self.at].expand(len(sample))
        return Share(sample, times, leg.states, leg.added, self.working_units(), leg.sides)

    def take(self, output: torch.Tensor) -> StepDone | None:
        """Take its part of the denoiser's output, f32. Gives the step, if one has ended by it."""
        if self.leg.sides == 2:
            without, prompted = output.chunk(2)
            output = torch.add(without, prompted - without, alpha=self.guidance)
        step = self.run.step_of(self.at)
        self.latents = self.run.step(self.at, output, self.latents, self._drawn)
        self.at += 1
        if not self.is_done and self.run.step_of(self.at) == step:
            return None
        if self.kept is not None and self.beside is None:
            known = self.run.add_noise(self.at, self.kept.encoded, self.kept.noise)
            self.latents = torch.where(self.kept.mask, self.latents, known)
        return StepDone(self.before + step + 1, self.total)

    def _drawn(self, offset: int) -> torch.Tensor:
        """Noise of every image for a step: `[images, channels, height, width]`."""
        return self._noise(self.noise_offset + offset)

    def _noise(self, offset: int) -> torch.Tensor:
        drawn = torch.stack([torch.from_numpy(noises.normal(seed, offset, self.latent)) for seed in self.seeds])
        if self.latents.is_cuda:
            # A copy from pageable memory would wait for the steps that are queued before it.
            drawn = drawn.pin_memory()
        return drawn.to(self.latents.device, non_blocking=True)

    def finished(self, painted: torch.Tensor) -> torch.Tensor:
        """A decoded picture, `[height, width, 3]` of u8, with what is to be kept of the first one."""
        return painted if self.kept is None else self.kept.pixel_mask.keep(self.kept.original, painted)

    def release_adapters(self) -> None:
        """Hold no merged LoRA weights any more; `bind_adapters` comes before the next step."""
        self._bind(PLAIN)

    def bind_adapters(self, model: Family) -> None:
        """Hold merged LoRA weights again, those of the same files."""
        bound = model.bind(self.adapters)
        if bound.key != self._adapters_key:
            raise WorkerError("a LoRA's file was replaced while the job was paused")
        self._bind(bound)

    def _bind(self, bound: AdapterSet) -> None:
        # LoRAs are of the first leg: a refiner has none.
        self.legs = [replace(self.legs[0], bound=bound), *self.legs[1:]]
        if self.second is not None:
            self.second = replace(self.second, bound=bound)

    def move(self, device: torch.device) -> None:
        """Move everything that it holds to a device."""
        for name, value in list(vars(self).items()):
            setattr(self, name, moved(value, device))


def checked(work: Generate, model: Family, width: int, height: int, steps: int) -> tuple[int, ...]:
    """Check the request for a pass of so many steps at a size; gives channels, height and width of its latents."""
    multiple = model.size_multiple()
    for name, edge in (("width", width), ("height", height)):
        if not 0 < edge <= MAX_EDGE or edge % multiple:
            raise InvalidInput(f"the {name} {edge} is not a multiple of {multiple} up to {MAX_EDGE}")
    if not 1 <= steps <= 1000:
        raise InvalidInput(f"{steps} steps are not between 1 and 1000")
    if not math.isfinite(work.guidance):
        raise InvalidInput("the guidance is not a number")
    if not 1 <= len(work.seeds) <= MOST_IMAGES:
        raise InvalidInput(f"{len(work.seeds)} seeds are not between 1 and {MOST_IMAGES}")
    if width * height * 3 * len(work.seeds) > MOST_RESULT_BYTES:
        raise InvalidInput(f"{len(work.seeds)} images of {width}x{height} do not fit one result")
    if any(not 0 <= seed < 2**64 for seed in work.seeds):
        raise InvalidInput("a seed is not between 0 and 2^64 - 1")
    return model.latent_channels, height // model.scale, width // model.scale
