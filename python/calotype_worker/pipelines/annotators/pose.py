"""Poses of people by ViTPose, each found by a detector where there is one.

Xu et al., "ViTPose: Simple Vision Transformer Baselines for Human Pose Estimation", 2022. A person's box is widened and
cut out, and the peaks of the heatmaps are refined, as Huang et al., "The Devil is in the Details", and Zhang et al.,
"Distribution-Aware Coordinate Representation" (both 2020) have it and transformers' `VitPoseImageProcessor` does.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from calotype_worker.errors import ModelLoad, NotSupported
from calotype_worker.pipelines.annotators import skeleton, stored
from calotype_worker.pipelines.annotators.seeing import IMAGENET_MEAN, IMAGENET_STD, Seeing, unit
from calotype_worker.pipelines.parts import Config, Loader, config_of

CLASSES = ("VitPoseForPoseEstimation",)
DETECTORS = ("RTDetrForObjectDetection",)
_DETECTORS_USUAL = {"size": 640, "resample": 2, "do_normalize": False}
WIDENED = 1.25
"""A person's box is taken so much larger."""
LEAST_SCORE = 0.3
"""A box that the detector is less sure of is no person: what transformers' guide to ViTPose takes."""
AT_ONCE = 8
"""People in one run."""
SIGMA, RADIUS = 0.8, 5
"""The blur of the heatmaps before their peaks are refined."""

Box = tuple[float, float, float, float]
"""Left, top, width, height in pixels."""


class Detector:
    """Finds people."""

    def __init__(self, module: nn.Module, seeing: Seeing) -> None:
        self.module: Any = module
        self.seeing = seeing
        self.person = person_of(self.module.config)

    def people(self, image: torch.Tensor) -> list[Box]:
        """The boxes of people in `[height, width, 3]` of u8."""
        height, width = image.shape[:2]
        output = self.module(pixel_values=self.seeing.view(image))
        scores = output.logits[0, :, self.person].sigmoid()
        boxes = output.pred_boxes[0][scores >= LEAST_SCORE].tolist()
        found = [((x - w / 2) * width, (y - h / 2) * height, w * width, h * height) for x, y, w, h in boxes]
        # A broken network's boxes may be no numbers.
        return [box for box in found if all(map(math.isfinite, box)) and min(box[2:]) >= 1.0]


class PoseNetwork:
    """ViTPose with or without a detector, and what it makes. Without one the whole picture is one person."""

    makes: tuple[str, ...] = ("pose",)

    def __init__(self, module: nn.Module, seeing: Seeing, detector: Detector | None) -> None:
        self.module: Any = module
        self.name = type(module).__name__
        self.seeing = seeing
        self.detector = detector
        config: Any = module.config
        self.experts = int(config.backbone_config.num_experts)

    def modules(self) -> list[nn.Module]:
        """The network and its detector."""
        return [self.module] if self.detector is None else [self.module, self.detector.module]

    def picture(self, image: torch.Tensor, into: str, height: int, width: int) -> torch.Tensor:
        """Skeletons of the people in `[…, …, 3]` of u8, as `[height, width, 3]` of u8."""
        own_height, own_width = image.shape[:2]
        whole: list[Box] = [(0.0, 0.0, float(own_width), float(own_height))]
        boxes = whole if self.detector is None else self.detector.people(image)
        scale = torch.tensor([width / own_width, height / own_height, 1.0])
        people = [person * scale for person in self.keypoints(image, boxes)]
        return skeleton.drawn(people, height, width)

    def keypoints(self, image: torch.Tensor, boxes: Sequence[Box]) -> list[torch.Tensor]:
        """Each person's `[17, 3]` of f32 on the host: x and y in pixels of the picture, and how sure it is."""
        found: list[torch.Tensor] = []
        pixels = unit(image)
        for at in range(0, len(boxes), AT_ONCE):
            areas = torch.stack([self._area(box) for box in boxes[at : at + AT_ONCE]])
            seen = self.seeing.normalised(cut_out(pixels, areas, self.seeing.height, self.seeing.width))
            # Of several experts the first knows COCO's keypoints.
            index = torch.zeros(len(areas), dtype=torch.long, device=image.device)
            which = {"dataset_index": index} if self.experts > 1 else {}
            heatmaps = self.module(pixel_values=seen, **which).heatmaps.cpu()
            peaks = peaks_of(heatmaps)
            size = torch.tensor([heatmaps.shape[3] - 1.0, heatmaps.shape[2] - 1.0]).clamp_min(1.0)
            places = areas[:, None, :2] + peaks[..., :2] / size * areas[:, None, 2:]
            found += torch.cat([places, peaks[..., 2:]], dim=-1).unbind(0)
        return found

    def _area(self, box: Box) -> torch.Tensor:
        """The area around a box with the network's ratio of edges: left, top, width, height."""
        left, top, width, height = box
        ratio = self.seeing.width / self.seeing.height
        wide, high = max(width, ratio * height) * WIDENED, max(height, width / ratio) * WIDENED
        return torch.tensor([left + (width - wide) / 2, top + (height - high) / 2, wide, high])


def cut_out(pixels: torch.Tensor, areas: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Areas `[n, 4]` of `[1, 3, …]`, each `[3, height, width]`, bilinear; black beyond the picture."""
    steps = [torch.linspace(0.0, 1.0, count) for count in (width, height)]
    edges = [max(edge - 1, 1) for edge in (pixels.shape[3], pixels.shape[2])]
    x, y = (
        (areas[:, axis, None] + step * areas[:, axis + 2, None]) * 2 / edge - 1
        for axis, (step, edge) in enumerate(zip(steps, edges))
    )
    grid = torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=-1).to(
        pixels.device
    )
    return functional.grid_sample(pixels.expand(len(areas), -1, -1, -1), grid, align_corners=True)


def peaks_of(heatmaps: torch.Tensor) -> torch.Tensor:
    """The peak of each of `[n, keypoints, height, width]`, `[n, keypoints, 3]`: x, y and the value there.

    The place is the top of the parabola through the logarithm of the blurred map.
    """
    people, points, height, width = heatmaps.shape
    scores, index = heatmaps.flatten(2).max(dim=-1)
    x, y = index % width, index // width
    taps = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float32)
    taps = torch.exp(-0.5 * (taps / SIGMA) ** 2)
    taps = taps / taps.sum()
    maps = functional.pad(heatmaps.reshape(-1, 1, height, width), (RADIUS,) * 4, mode="replicate")
    blurred = functional.conv2d(functional.conv2d(maps, taps[None, None, :, None]), taps[None, None, None, :])
    logs = functional.pad(blurred.clamp(0.001, 50.0).log(), (1, 1, 1, 1), mode="replicate")[:, 0]
    number, column, row = torch.arange(people * points), x.flatten() + 1, y.flatten() + 1

    def at(right: int, down: int) -> torch.Tensor:
        return logs[number, row + down, column + right]

    dx, dy = (at(1, 0) - at(-1, 0)) / 2, (at(0, 1) - at(0, -1)) / 2
    dxx, dyy = at(1, 0) - 2 * at(0, 0) + at(-1, 0), at(0, 1) - 2 * at(0, 0) + at(0, -1)
    dxy = (at(1, 1) - at(1, 0) - at(0, 1) + 2 * at(0, 0) - at(-1, 0) - at(0, -1) + at(-1, -1)) / 2
    curved = dxx * dyy - dxy**2
    # Only where the surface is a hill is there a top; it lies within a pixel of the largest value.
    is_hill = (curved > torch.finfo(torch.float32).eps) & (dxx < 0)
    divisor = torch.where(is_hill, curved, 1.0)
    right = torch.where(is_hill, (dxy * dy - dyy * dx) / divisor, 0.0).clamp(-1.0, 1.0)
    down = torch.where(is_hill, (dxy * dx - dxx * dy) / divisor, 0.0).clamp(-1.0, 1.0)
    offset = torch.stack([right, down], dim=-1).reshape(people, points, 2)
    return torch.cat([torch.stack([x, y], dim=-1) + offset, scores[..., None]], dim=-1)


def person_of(config: Any) -> int | None:
    """The number of a detector's class of people, if it has one."""
    return next((int(number) for number, label in config.id2label.items() if str(label).lower() == "person"), None)


def bind(loader: Loader, config: Config, folder: Path) -> tuple[Seeing, Seeing | None]:
    """Bind a folder with ViTPose and perhaps a `detector` below it; gives how each sees."""
    stored.kind_of(config, CLASSES, folder)
    stored.bind(loader, "pose", config, CLASSES, folder)
    network: Any = loader.bindings["pose"].module
    if network.config.num_labels != skeleton.COCO:
        raise NotSupported(
            f"a pose network with {network.config.num_labels} keypoints is not supported; {skeleton.COCO} are",
            f"{folder}: `id2label`",
        )
    size = network.config.backbone_config.image_size
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        # The network itself computes with both.
        raise ModelLoad("the pose network has no height and width", f"{folder}: `image_size` is {size}")
    height, width = size
    usual = {"size": {"height": height, "width": width}, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
    # Whatever else is said, it sees no other size than that of its positions.
    seeing = replace(Seeing.of(folder, usual), height=int(height), width=int(width))
    below = folder / "detector"
    if not below.is_dir():
        return seeing, None
    detector = config_of(below)
    stored.kind_of(detector, DETECTORS, below)
    stored.bind(loader, "detector", detector, DETECTORS, below)
    finder: Any = loader.bindings["detector"].module
    if person_of(finder.config) is None:
        raise NotSupported("a detector without a class `person` finds no people", f"{below}: `id2label`")
    return seeing, Seeing.of(below, _DETECTORS_USUAL)
