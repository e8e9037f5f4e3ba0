"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet, a VAE."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from calotype_worker.device import Device
from calotype_worker.lora import Spellings
from calotype_worker.pipelines.adapted import Adapted
from calotype_worker.pipelines.control import residuals
from calotype_worker.pipelines.family import Conditioning, DenoiseInput, Family, Progress
from calotype_worker.pipelines.parts import Loader, config_of, diffusers_module, place, transformers_module
from calotype_worker.prompt import TextEncoder, Tokenizer, padded
from calotype_worker.samplers.run import SamplerRun, planned
from calotype_worker.samplers.schedule import NoiseSchedule
from calotype_worker.weights import Weights
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
        spellings: Spellings | None = None,
    ) -> None:
        parts = {"text_encoder": encoder.module, "unet": unet}
        super().__init__(id, unet, vae, Adapted(parts, spellings or no_spellings, 1), dtype)
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

    def added(self, conditioning: Conditioning, latent: Sequence[int]) -> dict[str, torch.Tensor]:
        """Nothing more."""
        return {}

    def denoise(self, input: DenoiseInput) -> torch.Tensor:
        """One run of the UNet."""
        return run_unet(self.denoiser, self.dtype, input)

    def takes_control(self) -> bool:
        """UNets do."""
        return True


def run_unet(unet: Any, dtype: torch.dtype, input: DenoiseInput) -> torch.Tensor:
    """One run of a UNet, with its ControlNets before it: `[n, channels, height, width]` of f32."""
    sample = input.sample.to(dtype)
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
    """Make a diffusers folder resident."""
    spec = load.model
    loader = Loader(load, device, progress)
    schedule = NoiseSchedule.of_config(config_of(place(spec, "scheduler"), "scheduler_config.json"))
    tokenizer = Tokenizer(place(spec, "tokenizer"))
    places = {role: place(spec, role) for role in ("text_encoder", "unet", "vae")}
    configs = {role: config_of(folder) for role, folder in places.items()}
    modules = {
        "text_encoder": transformers_module(configs["text_encoder"], CLIPS, str(places["text_encoder"])),
        "unet": diffusers_module(configs["unet"], UNETS, str(places["unet"])),
        "vae": diffusers_module(configs["vae"], VAES, str(places["vae"])),
    }
    for role, module in modules.items():
        loader.bind(role, module, Weights(places[role]))
    filled = loader.fill()
    tokens = int(configs["text_encoder"].get("max_position_embeddings", 77))
    encoder = TextEncoder(filled["text_encoder"], tokenizer, tokens, normalises_skipped=True)
    model = StableDiffusion(spec.id, filled["unet"], filled["vae"], encoder, schedule, loader.dtype)
    model.resident_bytes, model.phases_ms = loader.total_bytes, loader.phases_ms
    return model


def no_spellings(part: str, layer: str) -> Iterable[str]:
    """Layers have no other names."""
    return ()
