"""Makes diffusers' convolutional modules keep to channels-last, without a copy between two layers.

A module's class is exchanged for one of the same parameters and the same results: names that LoRAs and files use stay
as they are. What has an unusual configuration stays as diffusers made it.
"""

from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn
from torch.nn import functional

from calotype_worker.norms import GroupNorm


class Resnet(ResnetBlock2D):  # type: ignore[misc]
    """A residual block whose norms take in the time embedding and SiLU."""

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
        """The input and what two convolutions make of it, summed."""
        time = None
        if self.time_emb_proj is not None and temb is not None:
            time = self.time_emb_proj(temb if self.skip_time_act else functional.silu(temb))
        hidden = self.conv1(self.norm1(input_tensor))
        hidden = self.conv2(self.norm2(hidden, time))
        straight = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        summed: torch.Tensor = straight + hidden
        # Mostly 1: a division would read and write everything once more.
        return summed if self.output_scale_factor == 1.0 else summed / self.output_scale_factor


class Transformer2D(Transformer2DModel):  # type: ignore[misc]
    """Transformer blocks over pixels: tokens are the channels-last picture, seen otherwise."""

    def _get_output_for_continuous_inputs(
        self,
        hidden_states: torch.Tensor,
        residual: torch.Tensor,
        batch_size: int,
        height: int,
        width: int,
        inner_dim: int,
    ) -> torch.Tensor:
        if self.use_linear_projection:
            hidden_states = self.proj_out(hidden_states)
        picture = hidden_states.reshape(batch_size, height, width, -1).permute(0, 3, 1, 2)
        if not self.use_linear_projection:
            picture = self.proj_out(picture)
        return picture + residual


def quicken(module: nn.Module) -> None:
    """Exchange the parts of a UNet, ControlNet or VAE that are known here."""
    for part in module.modules():
        kind = type(part)
        if kind is ResnetBlock2D and _is_usual(part):
            part.__class__ = Resnet
            _exchange(part.norm1, silu=True)
            _exchange(part.norm2, silu=True)
        elif kind is Transformer2DModel and getattr(part, "is_input_continuous", False):
            part.__class__ = Transformer2D
            _exchange(part.norm, silu=False)
        elif type(getattr(part, "conv_norm_out", None)) is nn.GroupNorm and isinstance(
            getattr(part, "conv_act", None), nn.SiLU
        ):
            _exchange(part.conv_norm_out, silu=True)
            part.conv_act = nn.Identity()


def _is_usual(block: Any) -> bool:
    # A VAE's blocks have no time to embed, however they would do it.
    timed = block.time_embedding_norm == "default" or block.time_emb_proj is None
    return (
        timed
        and block.upsample is None
        and block.downsample is None
        and isinstance(block.nonlinearity, nn.SiLU)
        and block.dropout.p == 0.0
    )


def _exchange(norm: Any, silu: bool) -> None:
    norm.__class__ = GroupNorm
    norm.silu = silu
