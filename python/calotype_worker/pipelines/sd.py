"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet, a VAE."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from calotype_worker import ldm
from calotype_worker.device import Device
from calotype_worker.errors import NotSupported
from calotype_worker.lora import Spellings
from calotype_worker.mmdit import Stored
from calotype_worker.pipelines.adapted import Adapted
from calotype_worker.pipelines.control import residuals
from calotype_worker.pipelines.family import Conditioning, DenoiseInput, Family, Progress
from calotype_worker.pipelines.files import Files, files_of
from calotype_worker.pipelines.fit import unet_fits
from calotype_worker.pipelines.parts import Config, Loader, diffusers_module, transformers_module
from calotype_worker.prompt import TextEncoder, padded
from calotype_worker.samplers.run import SamplerRun, planned
from calotype_worker.samplers.schedule import NoiseSchedule
from calotype_worker.wire.down import Load
from calotype_worker.wire.words import Sampler, Schedule
from calotype_worker.wire.work import Span

UNETS = ("UNet2DConditionModel",)
VAES = ("AutoencoderKL",)
CLIPS = ("CLIPTextModel", "CLIPTextModelWithProjection")


class StableDiffusion(Family):
    """A resident Stable Diffusion."""

    name = "sd"

    def __init__(
        self,
        id: str,
        unet: nn.Module,
        vae: nn.Module,
        encoder: TextEncoder,
        schedule: NoiseSchedule,
        dtype: torch.dtype,
        spellings: Spellings,
    ) -> None:
        parts = {"text_encoder": encoder.module, "unet": unet}
        super().__init__(id, unet, vae, Adapted(parts, spellings, 1), dtype)
        self.extra_channels = int(self.denoiser.config.in_channels) - self.latent_channels
        self.encoder = encoder
        self.schedule = schedule

    def sampler(self, sampler: Sampler, schedule: Schedule, steps: int, latent: Sequence[int]) -> SamplerRun:
        """A run on the schedule of the training."""
        return SamplerRun(planned(self.schedule, sampler, schedule, steps))

    def encode_chunks(self, prompts: Sequence[Sequence[Span]], clip_skip: int) -> list[Conditioning]:
        """States after the final norm, `clip_skip` layers before the last."""
        embeddings = self.adapted.embeddings(0)
        encoded = [self.encoder.encode(spans, clip_skip, embeddings) for spans in prompts]
        chunks = max(one.chunks for one in encoded)
        if any(one.chunks < chunks for one in encoded):
            empty = self.encoder.encode([], clip_skip, {})
            encoded = [padded(one, chunks, empty) for one in encoded]
        return [Conditioning(one.states) for one in encoded]

    def added(self, conditioning: Conditioning, latent: Sequence[int], guidance: float) -> dict[str, torch.Tensor]:
        """Nothing more."""
        return {}

    def denoise(self, input: DenoiseInput, network: Any = None) -> torch.Tensor:
        """One run of the UNet."""
        return run_unet(self.denoiser if network is None else network, self.dtype, input)

    def takes_control(self) -> bool:
        """UNets do."""
        return True


def run_unet(unet: Any, dtype: torch.dtype, input: DenoiseInput) -> torch.Tensor:
    """One run of a UNet, with its ControlNets before it: `[n, channels, height, width]` of f32."""
    sample = input.sample.to(dtype)
    if sample.is_cuda:
        # As the weights lie: convolutions in half precision are fastest so.
        sample = sample.contiguous(memory_format=torch.channels_last)
    down, middle = residuals(input.control, sample, input.timesteps, input.states, input.added)
    output: torch.Tensor = unet(
        sample,
        input.timesteps,
        encoder_hidden_states=input.states,
        added_cond_kwargs=dict(input.added) or None,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
        return_dict=False,
    )[0]
    return output.float()


def load(load: Load, device: Device, progress: Progress) -> Family:
    """Make a diffusers folder or a single file resident."""
    loader = Loader(load, device, progress)
    files = files_of(load.model)
    schedule = NoiseSchedule.of_config(files.scheduler())
    tokenizer = files.tokenizer("text_encoder")
    config = bind_all(loader, files, ["text_encoder"])
    filled = loader.fill()
    tokens = int(config["text_encoder"].get("max_position_embeddings", 77))
    encoder = TextEncoder(filled["text_encoder"], tokenizer, tokens, normalises_skipped=True)
    model = StableDiffusion(
        load.model.id, filled["unet"], filled["vae"], encoder, schedule, loader.dtype, spellings_of(config["unet"])
    )
    return loader.settled(model)


def bind_all(loader: Loader, files: Files, encoders: Sequence[str]) -> dict[str, Config]:
    """Bind text encoders, UNet and VAE; gives their configs."""
    configs = {role: files.config(role) for role in (*encoders, "unet", "vae")}
    for role in encoders:
        loader.bind(role, transformers_module(configs[role], CLIPS, files.where(role)), files.store(role))
    unet, vae = configs["unet"], configs["vae"]
    loader.bind("unet", diffusers_module(unet, UNETS, files.where("unet")), files.store("unet"))
    loader.bind("vae", diffusers_module(vae, VAES, files.where("vae")), files.store("vae"), loader.vae_dtype(vae))
    latents = vae.get("latent_channels", 4)
    # An inpainting UNet sees a mask and the masked picture's latents too.
    if unet.get("in_channels", 4) not in (latents, 2 * latents + 1):
        raise NotSupported(
            f"a UNet with {unet.get('in_channels')} input channels (an editing variant) is not supported",
            files.where("unet"),
        )
    unet_fits(files, loader.modules(), encoders)
    return configs


def spellings_of(unet: Config) -> Spellings:
    """The names that the original checkpoints give to a UNet's layers."""
    plain = isinstance(unet.get("layers_per_block", 2), int)
    config = {"layers_per_block": 2, "up_block_types": (), **unet}

    def spellings(part: str, layer: str) -> Iterable[Stored]:
        return (Stored(ldm.unet(layer, config)),) if part == "unet" and plain else ()

    return spellings
