"""What a process needs once, fetched before the first job asks for it: imports that take seconds, and on CUDA kernels.

On an H100 the first picture after a start took half a minute longer without it. Messages are taken between two
pieces, and as soon as a model is resident the rest is left out. A piece that fails is told of and left out too: whoever
needs what it was to fetch will say what is wrong.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from calotype_worker.device import Device
from calotype_worker.errors import DeviceLost, told

EDGE = 64
"""Of the latents that are tried: pictures of 512x512."""
DTYPE = torch.float16


def up(device: Device) -> Iterator[str | None]:
    """Fetch one piece after the other; gives after each why it failed, None where it did not."""
    pieces: list[Callable[[], None]] = [_import]
    if device.is_cuda:
        pieces += [lambda: _encode(device), lambda: _denoise(device), lambda: _decode(device), lambda: _forget(device)]
    for piece in pieces:
        try:
            with torch.no_grad():
                piece()
        except Exception as error:
            problem = told(error)
            if isinstance(problem, DeviceLost):
                raise problem from None
            yield f"{problem.message}: {problem.detail}"
        else:
            yield None


def _import() -> None:
    # Both libraries import a class's file when the class is first named.
    import diffusers
    import transformers

    from calotype_worker.pipelines import quick, registry

    del quick, registry
    for library, names in (
        (diffusers, ("AutoencoderKL", "UNet2DConditionModel")),
        (transformers, ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPTokenizer")),
    ):
        for name in names:
            getattr(library, name)


def _encode(device: Device) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    small = {"num_hidden_layers": 1, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPTextConfig(**_config("text_encoder", "architectures") | small)
    encoder = CLIPTextModel(config).to(device.torch, DTYPE)
    encoder(torch.zeros((1, 77), dtype=torch.int64, device=device.torch))


def _denoise(device: Device) -> None:
    from calotype_worker.pipelines.family import DenoiseInput
    from calotype_worker.pipelines.sd import run_unet

    unet = _shallow("unet", device)
    sample = torch.zeros((2, 4, EDGE, EDGE), device=device.torch)
    states = torch.zeros((2, 77, unet.config.cross_attention_dim), dtype=DTYPE, device=device.torch)
    run_unet(unet, DTYPE, DenoiseInput(sample, torch.full((2,), 500.0, device=device.torch), states))


def _decode(device: Device) -> None:
    vae = _shallow("vae", device)
    vae.decode(torch.zeros((1, 4, EDGE, EDGE), dtype=DTYPE, device=device.torch), return_dict=False)


def _shallow(role: str, device: Device) -> Any:
    """A part of Stable Diffusion 1.5 with one layer a block; as wide as it is, since kernels are built for widths."""
    from calotype_worker.pipelines.parts import diffusers_module

    config = _config(role) | {"layers_per_block": 1}
    module = diffusers_module(config, (config["_class_name"],), role)
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            zeros = torch.zeros(parameter.shape, dtype=DTYPE, device=device.torch)
            setattr(part, name, nn.Parameter(zeros, requires_grad=False))
    return module.to(memory_format=torch.channels_last)


def _config(role: str, *without: str) -> dict[str, Any]:
    from calotype_worker.pipelines.checkpoint import configs_of

    config: dict[str, Any] = configs_of("sd15")[role]
    return {name: value for name, value in config.items() if name not in without}


def _forget(device: Device) -> None:
    device.synchronize()
    device.trim()
