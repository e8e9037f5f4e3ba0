"""What steers a job's denoising: its prompt's conditioning for each model that it goes through, its control units."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from calotype_worker.errors import InvalidInput
from calotype_worker.pipelines.adapted import PLAIN, AdapterSet
from calotype_worker.pipelines.annotators.preprocessor import Preprocessor
from calotype_worker.pipelines.control import ControlNet, faded
from calotype_worker.pipelines.family import Conditioning, Family
from calotype_worker.pixels import Blobs, image_of
from calotype_worker.wire.work import ControlUnit, Generate

FindModel = Callable[[str], Family]
FindControl = Callable[[str], ControlNet]
FindPreprocessor = Callable[[str], Preprocessor]


@dataclass(frozen=True)
class Leg:
    """A part of a job's steps with one model.

    `states` is `[n, tokens, width]` and each of `added` has `n` rows, for `n` samples: those of the negative prompt
    first, where there are `sides` 2, then those of the prompt.
    """

    model: str
    begins: int
    bound: AdapterSet
    sides: int
    states: torch.Tensor
    added: dict[str, torch.Tensor]


def leg_of(work: Generate, id: str, model: Family, bound: AdapterSet, begins: int, latent: tuple[int, ...]) -> Leg:
    """The conditioning of a job for one model, from step `begins` on."""
    images = len(work.seeds)
    conditioned = model.encode(bound, work.prompt, work.negative_prompt, work.guidance, work.clip_skip)
    sides = [conditioned.cond] if conditioned.uncond is None else [conditioned.uncond, conditioned.cond]
    states = _rows([side.states for side in sides], images).to(model.dtype)
    return Leg(id, begins, bound, len(sides), states, _added(model, sides, latent, work.guidance, images))


def legs_of(
    work: Generate, model: Family, bound: AdapterSet, find: FindModel, latent: tuple[int, ...], total: int
) -> list[Leg]:
    """The models that a job of `total` steps goes through: its own, and the refiner where one takes over."""
    legs = [leg_of(work, work.model, model, bound, 0, latent)]
    if work.refiner is not None:
        if not 0.0 <= work.refiner.switch_at <= 1.0:
            raise InvalidInput(f"the refiner's switch point {work.refiner.switch_at} is not between 0 and 1")
        refiner = find(work.refiner.model)
        if (refiner.latent_channels, refiner.scale) != (model.latent_channels, model.scale):
            raise InvalidInput(f"the refiner `{refiner.id}` has other latents than `{model.id}`")
        begins = int(total * work.refiner.switch_at)
        # LoRAs are made for the base.
        legs.append(leg_of(work, work.refiner.model, refiner, PLAIN, begins, latent))
    return legs


def _rows(sides: Sequence[torch.Tensor], images: int) -> torch.Tensor:
    """Each side's value, repeated for each image."""
    return torch.cat([side.expand(images, *side.shape) for side in sides])


def _added(
    model: Family, sides: Sequence[Conditioning], latent: tuple[int, ...], guidance: float, images: int
) -> dict[str, torch.Tensor]:
    added = [model.added(side, latent, guidance) for side in sides]
    return {name: _rows([side[name] for side in added], images) for name in added[0]}


@dataclass(frozen=True)
class Unit:
    """A control unit of a job: its net, its picture `[1, 3, height, width]` from 0 to 1, and when it works.

    `factors` `[residuals]` are what each of its residuals counts. With `prompted` only the samples of the prompt have
    them, not those of the negative prompt.
    """

    net: ControlNet
    image: torch.Tensor
    weight: float
    start: float
    end: float
    factors: torch.Tensor
    prompted: bool

    def works_at(self, step: int, total: int) -> bool:
        """Whether it adds to step `step` of `total`."""
        return self.weight != 0.0 and step / total >= self.start and (step + 1) / total <= self.end

    def factors_of(self, samples: int, sides: int) -> torch.Tensor:
        """Its factors for each sample, `[samples, residuals]`, where the prompt is the last of so many sides."""
        factors = self.factors.expand(samples, -1)
        if not self.prompted or sides == 1:
            return factors
        own = samples // sides
        return torch.cat([torch.zeros_like(factors[own:]), factors[:own]])


def units_of(
    work: Generate, blobs: Blobs, model: Family, find: FindControl, find_preprocessor: FindPreprocessor
) -> list[Unit]:
    """The control units of a job, checked."""
    units = []
    for number, asked in enumerate(work.control, 1):
        if not model.takes_control():
            raise InvalidInput(f"models of the family `{model.name}` take no ControlNet")
        what, net = f"control unit {number}", find(asked.model)
        _check(what, asked, model, net)
        image = image_of(f"the image of {what}", asked.image, blobs)
        if asked.preprocess is not None:
            preprocessor = find_preprocessor(asked.preprocess.model)
            image = preprocessor.picture(image, asked.preprocess.into, work.height, work.width)
        if image.shape[:2] != (work.height, work.width):
            raise InvalidInput(f"the image of {what} is {image.shape[1]}x{image.shape[0]}")
        units.append(_unit(asked, image, model, net))
    return units


def _check(what: str, asked: ControlUnit, model: Family, net: ControlNet) -> None:
    if not net.fits(model.denoiser):
        raise InvalidInput(f"{what}: the ControlNet `{net.id}` does not fit the model `{model.id}`")
    if not (0.0 <= asked.start <= asked.end <= 1.0 and abs(asked.weight) <= 10.0):
        raise InvalidInput(f"{what}: weight {asked.weight}, start {asked.start} or end {asked.end} is out of range")


def _unit(asked: ControlUnit, image: torch.Tensor, model: Family, net: ControlNet) -> Unit:
    pixels = (image.permute(2, 0, 1)[None].float() / 255.0).to(model.device)
    factors = torch.ones(net.residuals) if asked.mode == "balanced" else faded(net.residuals)
    factors = (factors * asked.weight).to(model.device)
    return Unit(net, pixels, asked.weight, asked.start, asked.end, factors, asked.mode == "control")
