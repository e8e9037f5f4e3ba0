"""Soft edges by ControlNet's HED network, which sees RGB from 0 to 255.

Xie, Tu, "Holistically-Nested Edge Detection", 2015, in the layout of `ControlNetHED_Apache2`
(github.com/lllyasviel/ControlNet, `annotator/hed/__init__.py`): five blocks of convolutions, each with an edge map.
"""

import torch
from torch import nn
from torch.nn import functional

from calotype_worker.pipelines.annotators.seeing import resized, to_bytes, unit
from calotype_worker.weights import without_weights

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of each."""


class Block(nn.Module):
    """Convolutions of 3x3 with ReLU, and the projection to an edge map."""

    def __init__(self, channels: int, out: int, layers: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(out if i else channels, out, 3, padding=1) for i in range(layers))
        self.projection = nn.Conv2d(out, 1, 1)

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and edge map of `[n, channels, height, width]`."""
        for conv in self.convs:
            hidden = functional.relu(conv(hidden))
        return hidden, self.projection(hidden)


class Hed(nn.Module):
    """The network; the names of its parameters are the file's."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1), requires_grad=False)
        channels = 3
        for number, (out, layers) in enumerate(BLOCKS, 1):
            self.add_module(f"block{number}", Block(channels, out, layers))
            channels = out

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Five edge maps `[n, 1, …]` of `[n, 3, height, width]`, each half as high and wide as the one before."""
        hidden, edges = pixels - self.norm, []
        for number in range(1, len(BLOCKS) + 1):
            if number > 1:
                # A picture of a few pixels has no half of itself at last.
                hidden = functional.max_pool2d(hidden, 2, ceil_mode=min(hidden.shape[-2:]) == 1)
            hidden, edge = self.get_submodule(f"block{number}")(hidden)
            edges.append(edge)
        return edges


class SoftEdges:
    """HED, and what it makes."""

    makes: tuple[str, ...] = ("softedge",)
    name = "HED"

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def modules(self) -> list[nn.Module]:
        """The network."""
        return [self.module]

    def picture(self, image: torch.Tensor, into: str, height: int, width: int) -> torch.Tensor:
        """Edges of `[…, …, 3]` of u8, white on black: `[height, width, 3]` of u8. It is seen at that size."""
        pixels = resized(unit(image), height, width) * 255.0
        maps = [functional.interpolate(edge, size=(height, width), mode="bilinear") for edge in self.module(pixels)]
        edges = torch.sigmoid(torch.stack(maps).mean(dim=0))[0, 0]
        return to_bytes(edges)[..., None].expand(-1, -1, 3).contiguous()


def module() -> nn.Module:
    """The network without weights."""
    with without_weights():
        return Hed().eval()
