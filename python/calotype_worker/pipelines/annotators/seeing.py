"""How a network wants to see a picture: size, mean and deviation, as the `preprocessor_config.json` beside it says.

transformers' own image processors ask for torchvision in some versions, so that their resizing is done here by torch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from calotype_worker.errors import ModelLoad
from calotype_worker.pipelines.parts import config_of

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALVES = (0.5, 0.5, 0.5)
FILE = "preprocessor_config.json"
LARGEST_EDGE = 4096
"""No network is asked to see more."""
# By PIL's numbers; those of transformers' configs.
_FILTERS = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Seeing:
    """A network's view: `height` and `width` in pixels, edges rounded to `multiple`; `mean` and `std` per channel."""

    height: int
    width: int
    multiple: int = 1
    keeps_ratio: bool = False
    resample: str = "bicubic"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    reflects: bool = False
    """Whether a margin is added by reflection first, as ZoeDepth does against artifacts at the border."""

    @staticmethod
    def of(folder: Path, usual: Mapping[str, Any]) -> "Seeing":
        """What a network's folder says; `usual` is what its published configs say, for a folder without one."""
        said = config_of(folder, FILE) if (folder / FILE).is_file() else usual
        config = {**usual, **said}
        try:
            size = config["size"]
            height, width = (size, size) if isinstance(size, int) else (int(size["height"]), int(size["width"]))
            normalises = bool(config.get("do_normalize", True))
            found = Seeing(
                height,
                width,
                int(said.get("ensure_multiple_of") or 1),
                bool(said.get("keep_aspect_ratio", False)),
                _FILTERS[config.get("resample", 3)],
                _three(config["image_mean"]) if normalises else None,
                _three(config["image_std"]) if normalises else None,
                # Others pad to a multiple, which their sizes are already.
                bool(usual.get("do_pad", False) and config["do_pad"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelLoad(
                "how the network sees pictures cannot be read", f"{folder / FILE}: {type(error).__name__}: {error}"
            ) from None
        if not (0 < height <= LARGEST_EDGE and 0 < width <= LARGEST_EDGE and 0 < found.multiple <= LARGEST_EDGE):
            raise ModelLoad("how the network sees pictures cannot be read", f"{folder / FILE}: size {size}")
        return found

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """The size that a picture of this size is seen at."""
        scale_y, scale_x = self.height / height, self.width / width
        if self.keeps_ratio:
            # As little as possible, so that one edge is as wished and the other not smaller or not larger than it.
            scale_y = scale_x = scale_x if abs(1 - scale_x) < abs(1 - scale_y) else scale_y
        return self._rounded(scale_y * height), self._rounded(scale_x * width)

    def _rounded(self, edge: float) -> int:
        most = max(LARGEST_EDGE // self.multiple, 1)
        return min(max(round(edge / self.multiple), 1), most) * self.multiple

    def margins(self, height: int, width: int) -> tuple[int, int]:
        """What is added above and below, and at both sides: ZoeDepth's rule, of a picture large enough for it."""
        if not self.reflects:
            return 0, 0
        return min(int(math.sqrt(height / 2) * 3), height - 1), min(int(math.sqrt(width / 2) * 3), width - 1)

    def view(self, image: torch.Tensor) -> torch.Tensor:
        """A picture `[height, width, 3]` of u8 as the network sees it: `[1, 3, …]` of f32."""
        pixels = unit(image)
        height, width = pixels.shape[-2:]
        above, beside = self.margins(height, width)
        if above or beside:
            pixels = functional.pad(pixels, (beside, beside, above, above), mode="reflect")
        return self.normalised(resized(pixels, *self.size_of(*pixels.shape[-2:]), self.resample))

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """`[n, 3, height, width]`, 0 to 1, less the mean and by the deviation."""
        if self.mean is None or self.std is None:
            return pixels
        mean, std = (torch.tensor(one, device=pixels.device)[None, :, None, None] for one in (self.mean, self.std))
        return (pixels - mean) / std


def unit(image: torch.Tensor) -> torch.Tensor:
    """`[height, width, 3]` of u8 as `[1, 3, height, width]` of f32, 0 to 1."""
    return image.permute(2, 0, 1)[None].float() / 255.0


def resized(pixels: torch.Tensor, height: int, width: int, resample: str = "bicubic") -> torch.Tensor:
    """Pixels `[n, channels, …]`, 0 to 1, in another size; a smaller one without aliasing, none beyond the range."""
    if pixels.shape[-2:] == (height, width):
        return pixels
    smooth = resample != "nearest-exact"
    return functional.interpolate(pixels, size=(height, width), mode=resample, antialias=smooth).clamp(0.0, 1.0)


def to_bytes(numbers: torch.Tensor) -> torch.Tensor:
    """Numbers, 0 to 1, as u8; what lies outside is clamped and what is no number is 0."""
    return (torch.nan_to_num(numbers.float(), nan=0.0).clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)


def _three(values: Any) -> tuple[float, ...]:
    found = tuple(float(value) for value in values)
    if len(found) != 3:
        raise ValueError(f"{len(found)} values, not one for each of 3 channels")
    return found
