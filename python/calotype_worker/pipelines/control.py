"""ControlNets: networks that see a picture and add to what a UNet computes.

Zhang, Rao, Agrawala, "Adding Conditional Control to Text-to-Image Diffusion Models", 2023. A ControlNet is loaded like
a model, as the family `controlnet`, and named by the units of a job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from calotype_worker.pipelines.offloaded import Offload
from calotype_worker.wire.down import Load, LoadPlan

if TYPE_CHECKING:
    from calotype_worker.device import Device
    from calotype_worker.pipelines.family import ControlInput, Progress

CONTROL_NETS = ("ControlNetModel",)


class ControlNet:
    """A resident ControlNet."""

    def __init__(self, id: str, module: nn.Module) -> None:
        self.id = id
        self.module: Any = module
        self.dtype = next(module.parameters()).dtype
        config: Any = module.config
        self.in_channels = int(config.in_channels)
        down: Any = module.controlnet_down_blocks
        self.residuals = len(down) + 1
        """Tensors that it adds: one for each layer of the down blocks, and that of the middle."""
        self.offload: Offload = "none"
        self.resident_bytes = 0
        self.phases_ms: dict[str, float] = {}

    def fits(self, unet: Any) -> bool:
        """Whether its residuals have the shapes that this UNet takes."""
        fields = ("block_out_channels", "layers_per_block", "cross_attention_dim", "down_block_types")
        fitting = all(self.module.config.get(field) == unet.config.get(field) for field in fields)
        return fitting and self.in_channels <= unet.config.get("in_channels", 0)

    def follow(self, plan: LoadPlan, device: Device) -> None:
        """Keep to a plan from now on: `offload` is what concerns a network of one module."""
        self.offload = device.offload_of(plan)
        if self.offload != "none":
            device.whereabouts.keep_away(self.offload, (), [self.module])

    def trim(self) -> None:
        """There is nothing that could be made again."""


def faded(residuals: int) -> torch.Tensor:
    """Factors from 0.1 for the first of so many residuals to 1 for the middle block's, in equal ratios.

    The network then sees to the composition more than to the details: the "guess mode" of the paper's authors.
    """
    return torch.logspace(-1, 0, residuals)


def residuals(
    control: Sequence[ControlInput],
    sample: torch.Tensor,
    timesteps: torch.Tensor,
    states: torch.Tensor,
    added: Mapping[str, torch.Tensor],
) -> tuple[list[torch.Tensor] | None, torch.Tensor | None]:
    """What all units together add to the UNet's down blocks and to its middle; None without units."""
    down: list[torch.Tensor] | None = None
    middle: torch.Tensor | None = None
    for unit in control:
        dtype = unit.net.dtype
        own_down, own_middle = unit.net.module(
            # It knows nothing of what an inpainting UNet sees beside the latents.
            sample[:, : unit.net.in_channels].to(dtype),
            timesteps,
            encoder_hidden_states=states.to(dtype),
            controlnet_cond=unit.image.to(dtype),
            conditioning_scale=1.0,
            added_cond_kwargs=dict(added) or None,
            return_dict=False,
        )
        # Jobs in one batch have weights and modes of their own: they are factors of the samples.
        factors = unit.factors.to(sample.dtype)[:, :, None, None, None].unbind(1)
        weighted = [residual.to(sample.dtype) * factor for residual, factor in zip(own_down, factors)]
        down = weighted if down is None else [a + b for a, b in zip(down, weighted)]
        weighted_middle = own_middle.to(sample.dtype) * factors[-1]
        middle = weighted_middle if middle is None else middle + weighted_middle
    return down, middle


def load(load: Load, device: Device, progress: Progress) -> ControlNet:
    """Make a ControlNet resident: a diffusers folder or a single file, in the role `controlnet` or as the root."""
    from pathlib import Path

    from calotype_worker.pipelines import control_file, layouts
    from calotype_worker.pipelines.parts import Loader, config_of, diffusers_module
    from calotype_worker.weights import Store, WeightFile, Weights

    components = load.model.components
    place = Path(components.get("controlnet") or components.get("checkpoint") or components.get("root", ""))
    loader = Loader(load, device, progress)
    store: Store
    if load.model.format == "checkpoint":
        file = WeightFile(place)
        config = control_file.config_of(file)
        store = layouts.controlnet(file, config)
    else:
        config, store = config_of(place), Weights(place)
    module = diffusers_module(config, CONTROL_NETS, str(place))
    loader.bind("controlnet", module, store)
    net = ControlNet(load.model.id, loader.fill()["controlnet"])
    net.resident_bytes, net.phases_ms = loader.total_bytes, loader.phases_ms
    return net
