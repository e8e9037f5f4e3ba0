"""A resident network that makes the pictures of control units; the family `preprocessor`.

What it is, its files say: a transformers folder names its class, and what has no `config.json` is HED.
"""

from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from calotype_worker.device import Device
from calotype_worker.errors import ModelLoad, NotSupported
from calotype_worker.pipelines.annotators import depth, hed, pose, stored
from calotype_worker.pipelines.family import Progress
from calotype_worker.pipelines.parts import Loader, config_of
from calotype_worker.weights import Weights
from calotype_worker.wire.down import Load, LoadPlan

ROLE = "preprocessor"


class Annotator(Protocol):
    """A network and what is made of its output."""

    name: str
    makes: tuple[str, ...]

    def modules(self) -> list[nn.Module]:
        """All modules that hold memory of the device."""

    def picture(self, image: torch.Tensor, into: str, height: int, width: int) -> torch.Tensor:
        """One of what it `makes`, of an image `[…, …, 3]` of u8: `[height, width, 3]` of u8, on any device."""


class Preprocessor:
    """A resident network."""

    def __init__(self, id: str, annotator: Annotator, device: Device) -> None:
        self.id = id
        self.annotator = annotator
        self.device = device
        self.resident_bytes = 0
        self.phases_ms: dict[str, float] = {}

    def picture(self, image: torch.Tensor, into: str, height: int, width: int) -> torch.Tensor:
        """The picture of a control unit, made of an image of any size; both `[…, …, 3]` of u8 on the host."""
        if into not in self.annotator.makes:
            makes = " and ".join(self.annotator.makes)
            raise NotSupported(f"the preprocessor `{self.id}` ({self.annotator.name}) makes {makes}, not {into}")
        self.device.whereabouts.bring(*self.annotator.modules())
        try:
            return self.annotator.picture(image.to(self.device.torch), into, height, width).cpu()
        finally:
            # A plan that keeps weights on the host has them here for this alone.
            self.device.whereabouts.bring()

    def follow(self, plan: LoadPlan, device: Device) -> None:
        """Keep to a plan from now on: of it only `offload` concerns a preprocessor."""
        offload = device.offload_of(plan)
        if offload != "none":
            device.whereabouts.keep_away(offload, (), self.annotator.modules())

    def trim(self) -> None:
        """There is nothing that could be made again."""


def load(load: Load, device: Device, progress: Progress) -> Preprocessor:
    """Make a network resident: the role `preprocessor`, a file or a folder, or else the root."""
    components = load.model.components
    if ROLE not in components and "root" not in components:
        raise ModelLoad("the model has a part missing", f"no component `{ROLE}` and no `root`")
    place = Path(components.get(ROLE) or components["root"])
    loader = Loader(load, device, progress)
    annotator = _annotator(loader, place)
    made = Preprocessor(load.model.id, annotator, device)
    made.resident_bytes, made.phases_ms = loader.total_bytes, loader.phases_ms
    return made


def _annotator(loader: Loader, place: Path) -> Annotator:
    if not (place / "config.json").is_file():
        loader.bind("hed", hed.module(), Weights(place), stored.DTYPE)
        return hed.SoftEdges(loader.fill()["hed"])
    config = config_of(place)
    if stored.kind_of(config, (*depth.CLASSES, *pose.CLASSES), place) in depth.CLASSES:
        seeing = depth.bind(loader, config, place)
        return depth.DepthNetwork(loader.fill()["depth"], seeing)
    seeing, of_detector = pose.bind(loader, config, place)
    filled = loader.fill()
    detector = None if of_detector is None else pose.Detector(filled["detector"], of_detector)
    return pose.PoseNetwork(filled["pose"], seeing, detector)
