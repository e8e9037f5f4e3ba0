"""Depth of a picture by DPT, Depth Anything or ZoeDepth, and the normals of surfaces from it.

Ranftl, Bochkovskiy, Koltun, "Vision Transformers for Dense Prediction", 2021; Yang et al., "Depth Anything", 2024;
Bhat et al., "ZoeDepth: Zero-shot Transfer by Combining Relative and Metric Depth", 2023.

The normals are those of ControlNet's annotator (github.com/lllyasviel/ControlNet, `annotator/midas/__init__.py`): Sobel
gradients of the inverse depth beside a constant z, without gradients where the depth is background.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from calotype_worker.pipelines.annotators import stored
from calotype_worker.pipelines.annotators.seeing import HALVES, IMAGENET_MEAN, IMAGENET_STD, Seeing, to_bytes
from calotype_worker.pipelines.parts import Config, Loader

CLASSES = ("DPTForDepthEstimation", "DepthAnythingForDepthEstimation", "ZoeDepthForDepthEstimation")
# As the configs of the published models say: Intel/dpt-large, LiheYoung/depth-anything-*, Intel/zoedepth-*.
_USUAL: dict[str, dict[str, Any]] = {
    CLASSES[0]: {"size": 384, "image_mean": HALVES, "image_std": HALVES},
    CLASSES[1]: {
        "size": 518,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
        "keep_aspect_ratio": True,
        "ensure_multiple_of": 14,
    },
    CLASSES[2]: {
        "size": {"height": 384, "width": 512},
        "image_mean": HALVES,
        "image_std": HALVES,
        "keep_aspect_ratio": True,
        "ensure_multiple_of": 32,
        "resample": 2,
        "do_pad": True,
    },
}
BACKGROUND = 0.1
"""Share of the depth's range, from the far end, that has no gradients; the annotator's `bg_th`."""
Z_WEIGHT = 2.0 * math.pi
"""The annotator's `a`: what a gradient is measured against."""
MIDAS_EDGE = 384
"""Edge of DPT-Hybrid's output, at which the annotator takes gradients of its raw numbers."""


class DepthNetwork:
    """A depth network, and what it is said to see."""

    makes: tuple[str, ...] = ("depth", "normal")

    def __init__(self, module: nn.Module, seeing: Seeing) -> None:
        config: Any = module.config
        self.name = type(module).__name__
        self.module: Any = module
        self.seeing = seeing
        self.is_metric = self.name == CLASSES[2] or getattr(config, "depth_estimation_type", "relative") == "metric"
        self.is_midas = self.name == CLASSES[0] and bool(config.is_hybrid)

    def modules(self) -> list[nn.Module]:
        """The network."""
        return [self.module]

    def picture(self, image: torch.Tensor, into: str, height: int, width: int) -> torch.Tensor:
        """Depth or normals of `[…, …, 3]` of u8, as `[height, width, 3]` of u8."""
        near = self.near(image, height, width)
        if into == "depth":
            return to_bytes(relative(near))[..., None].expand(-1, -1, 3).contiguous()
        edge = float(min(height, width))
        # The annotator's network counts in thousands, others in tens or metres. Of those the relief, from far to near,
        # is taken to be as deep as the picture's shorter edge, whatever they count in.
        relief = float(near.max() - near.min()) * edge / MIDAS_EDGE if self.is_midas else edge
        return coloured(normals(relative(near), relief))

    def near(self, image: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """How near each pixel is, `[height, width]` of f32: the network's inverse depth, or its depth negated."""
        depth = self.module(pixel_values=self.seeing.view(image)).predicted_depth[:, None]
        above, beside = self.seeing.margins(*image.shape[:2])
        if above or beside:
            whole = image.shape[0] + 2 * above, image.shape[1] + 2 * beside
            depth = functional.interpolate(depth, size=whole, mode="bicubic")
            depth = depth[:, :, above : whole[0] - above, beside : whole[1] - beside]
        depth = functional.interpolate(depth, size=(height, width), mode="bicubic")[0, 0]
        return torch.nan_to_num(-depth if self.is_metric else depth)


def relative(near: torch.Tensor) -> torch.Tensor:
    """From 0 for the farthest to 1 for the nearest; 0 everywhere where all is equally far."""
    least = near.min()
    return (near - least) / (near.max() - least).clamp_min(torch.finfo(near.dtype).tiny)


def normals(near: torch.Tensor, relief: float) -> torch.Tensor:
    """Unit vectors `[height, width, 3]` of a depth `[height, width]` from 0, far, to 1, which is `relief` deep."""
    smooth, difference = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])
    along_x = torch.outer(smooth, difference)
    kernels = torch.stack([along_x, along_x.T])[:, None].to(near.device)
    # A border is mirrored about its last pixel, as OpenCV's is; one pixel has nothing to mirror.
    mode = "reflect" if min(near.shape) > 1 else "replicate"
    x, y = functional.conv2d(functional.pad(near[None, None] * relief, (1, 1, 1, 1), mode=mode), kernels)[0]
    is_background = near < BACKGROUND
    x, y = x.masked_fill(is_background, 0.0), y.masked_fill(is_background, 0.0)
    return functional.normalize(torch.stack([x, y, torch.full_like(x, Z_WEIGHT)], dim=-1), dim=-1)


def coloured(vectors: torch.Tensor) -> torch.Tensor:
    """Unit vectors as RGB: -1 is 0, 0 is 128, 1 is 255."""
    return (vectors * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def bind(loader: Loader, config: Config, folder: Path) -> Seeing:
    """Bind a folder with a depth network; gives how that sees."""
    seeing = Seeing.of(folder, _USUAL[stored.kind_of(config, CLASSES, folder)])
    stored.bind(loader, "depth", config, CLASSES, folder)
    own: Any = loader.bindings["depth"].module.config
    if getattr(own, "is_hybrid", False):
        # Its positions are for this size alone.
        edges = (own.image_size, own.image_size) if isinstance(own.image_size, int) else own.image_size
        seeing = replace(seeing, height=int(edges[0]), width=int(edges[1]), multiple=1, keeps_ratio=False)
    return seeing
