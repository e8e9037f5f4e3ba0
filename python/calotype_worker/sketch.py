"""Latents as colours without a VAE: a product of a small matrix for each of them, for previews.

The matrices hold for two widespread VAEs, told by their architecture and factor. Stable Diffusion 1 and 2: K. Turner,
"Decoding latents to RGB without upscaling", Hugging Face forum, 2022. SDXL: T. A. Vass, "Explaining the SDXL latent
space", Hugging Face blog, 2023.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

BLOCKS = [128, 256, 512, 512]
"""The channels of both VAEs."""


@dataclass(frozen=True)
class Colours:
    """Red, green and blue of each latent channel, and of none; from -1 to 1."""

    of_channel: Sequence[tuple[float, float, float]]
    base: tuple[float, float, float]

    def paint(self, latents: torch.Tensor, scale: int) -> torch.Tensor:
        """`[n, channels, height, width]` to `[n, 3, …]` with `scale` times the edges, -1 to 1, nearly."""
        factors = torch.tensor(self.of_channel, device=latents.device)
        base = torch.tensor(self.base, device=latents.device)[:, None, None]
        small = torch.einsum("nchw,cr->nrhw", latents.float(), factors) + base
        return functional.interpolate(small, scale_factor=scale, mode="bilinear")


_SD = Colours(
    ((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473)),
    (0.0, 0.0, 0.0),
)
# Published for bytes, whose middle is 127.5.
_SDXL_BYTES = ((60, 60, 60), (-60, -5, 10), (25, 15, -5), (-70, -50, -35))
_SDXL = Colours(
    [(red / 127.5, green / 127.5, blue / 127.5) for red, green, blue in _SDXL_BYTES],
    (150 / 127.5 - 1, 140 / 127.5 - 1, 130 / 127.5 - 1),
)
BY_FACTOR = {0.18215: _SD, 0.13025: _SDXL}


def colours_of(vae: Any) -> Colours | None:
    """The colours of a VAE's latents, where they are known."""
    usual = list(vae.block_out_channels) == BLOCKS and vae.latent_channels == 4
    return BY_FACTOR.get(vae.scaling_factor) if usual else None
