"""What a process needs once, fetched before the first job asks for it: imports that take seconds, and on CUDA kernels.

On an H100 the first picture after a start took half a minute longer without it. Messages are taken between two
pieces. A piece that fails is told of and left out: whoever needs what it was to fetch will say what is wrong.
"""

from collections.abc import Callable, Iterator

import torch

from calotype_worker.device import Device
from calotype_worker.errors import DeviceLost, told

EDGE = 32
"""Of the latents that are tried."""


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

    config = CLIPTextConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4
    )
    encoder = CLIPTextModel(config).to(device.torch, torch.float16)
    encoder(torch.zeros((1, 77), dtype=torch.int64, device=device.torch))


def _denoise(device: Device) -> None:
    from diffusers import UNet2DConditionModel

    from calotype_worker.pipelines.quick import quicken

    unet = UNet2DConditionModel(
        block_out_channels=[64, 128],
        layers_per_block=1,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        cross_attention_dim=64,
        attention_head_dim=4,
    )
    unet = unet.to(device.torch, torch.float16)
    quicken(unet)
    unet.to(memory_format=torch.channels_last)
    for samples in (2, 16):
        sample = torch.zeros((samples, 4, EDGE, EDGE), dtype=torch.float16, device=device.torch)
        states = torch.zeros((samples, 77, 64), dtype=torch.float16, device=device.torch)
        times = torch.full((samples,), 500.0, device=device.torch)
        unet(sample.contiguous(memory_format=torch.channels_last), times, states, return_dict=False)


def _decode(device: Device) -> None:
    from diffusers import AutoencoderKL

    from calotype_worker.pipelines.quick import quicken

    vae = AutoencoderKL(
        block_out_channels=[64, 64],
        layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
    )
    vae = vae.to(device.torch, torch.float16)
    quicken(vae)
    vae.to(memory_format=torch.channels_last)
    vae.decode(torch.zeros((1, 4, EDGE, EDGE), dtype=torch.float16, device=device.torch), return_dict=False)


def _forget(device: Device) -> None:
    device.synchronize()
    device.trim()
