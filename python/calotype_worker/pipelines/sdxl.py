"""Stable Diffusion XL: two CLIP text encoders, of which the refiner has only the second, a UNet, a VAE.

(Podell et al., "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis", 2023.) Turbo, Lightning
and LCM variants differ in their weights and in what is asked of the sampler.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from calotype_worker.device import Device
from calotype_worker.lora import Spellings
from calotype_worker.pipelines.adapted import Adapted
from calotype_worker.pipelines.family import Conditioning, DenoiseInput, Family, Progress
from calotype_worker.pipelines.files import files_of
from calotype_worker.pipelines.parts import Loader
from calotype_worker.pipelines.sd import bind_all, run_unet, spellings_of
from calotype_worker.prompt import Encoded, TextEncoder, padded
from calotype_worker.samplers.run import SamplerRun, planned
from calotype_worker.samplers.schedule import NoiseSchedule
from calotype_worker.wire.down import Load
from calotype_worker.wire.words import Sampler, Schedule
from calotype_worker.wire.work import Span

AESTHETIC_SCORE = 6.0
NEGATIVE_AESTHETIC_SCORE = 2.5
"""What the refiner is told of the picture that is wanted, and of the one that is not; its authors' defaults."""


class StableDiffusionXL(Family):
    """A resident SDXL. The refiner is one with a single encoder, which also takes an aesthetic score."""

    name = "sdxl"

    def __init__(
        self,
        id: str,
        unet: nn.Module,
        vae: nn.Module,
        encoders: dict[str, TextEncoder],
        schedule: NoiseSchedule,
        dtype: torch.dtype,
        spellings: Spellings,
    ) -> None:
        """`encoders` by role, in the order in which their states stand side by side; the last gives the pooled."""
        parts = {**{role: encoder.module for role, encoder in encoders.items()}, "unet": unet}
        super().__init__(id, unet, vae, Adapted(parts, spellings, 2), dtype)
        self.extra_channels = int(self.denoiser.config.in_channels) - self.latent_channels
        self.encoders = encoders
        self.schedule = schedule
        self.is_refiner = len(encoders) == 1

    def sampler(self, sampler: Sampler, schedule: Schedule, steps: int, latent: Sequence[int]) -> SamplerRun:
        """A run on the schedule of the training."""
        return SamplerRun(planned(self.schedule, sampler, schedule, steps))

    def encode_chunks(self, prompts: Sequence[Sequence[Span]], clip_skip: int) -> list[Conditioning]:
        """States of the last layer but one, without the final norm, `clip_skip` layers before that."""
        by_encoder: list[list[Encoded]] = []
        for role, encoder in self.encoders.items():
            embeddings = self.adapted.embeddings(1 if role == "text_encoder_2" else 0)
            encoded = [encoder.encode(spans, 1 + clip_skip, embeddings) for spans in prompts]
            chunks = max(one.chunks for one in encoded)
            if any(one.chunks < chunks for one in encoded):
                empty = encoder.encode([], 1 + clip_skip, {})
                encoded = [padded(one, chunks, empty) for one in encoded]
            by_encoder.append(encoded)
        return [
            Conditioning(torch.cat([one.states for one in sides], dim=-1), sides[-1].pooled, negative=index > 0)
            for index, sides in enumerate(zip(*by_encoder))
        ]

    def added(self, conditioning: Conditioning, latent: Sequence[int], guidance: float) -> dict[str, torch.Tensor]:
        """The pooled text and what the training knew of its pictures' sizes: original, crop, target or score."""
        height, width = float(latent[1] * self.scale), float(latent[2] * self.scale)
        score = NEGATIVE_AESTHETIC_SCORE if conditioning.negative else AESTHETIC_SCORE
        last = [score] if self.is_refiner else [height, width]
        times = torch.tensor([height, width, 0.0, 0.0, *last], dtype=self.dtype, device=self.device)
        assert conditioning.pooled is not None
        return {"text_embeds": conditioning.pooled.to(self.dtype), "time_ids": times}

    def denoise(self, input: DenoiseInput, network: Any = None) -> torch.Tensor:
        """One run of the UNet."""
        return run_unet(self.denoiser if network is None else network, self.dtype, input)

    def takes_control(self) -> bool:
        """The base does; there are no ControlNets for the refiner."""
        return not self.is_refiner


def load(load: Load, device: Device, progress: Progress) -> Family:
    """Make a diffusers folder or a single file resident."""
    loader = Loader(load, device, progress)
    files = files_of(load.model)
    schedule = NoiseSchedule.of_config(files.scheduler())
    roles = ["text_encoder_2"] if load.model.family == "sdxl_refiner" else ["text_encoder", "text_encoder_2"]
    tokenizers = {role: files.tokenizer(role) for role in roles}
    config = bind_all(loader, files, roles)
    filled = loader.fill()
    encoders = {}
    for role in roles:
        tokens = int(config[role].get("max_position_embeddings", 77))
        encoders[role] = TextEncoder(filled[role], tokenizers[role], tokens, normalises_skipped=False)
    model = StableDiffusionXL(
        load.model.id, filled["unet"], filled["vae"], encoders, schedule, loader.dtype, spellings_of(config["unet"])
    )
    return loader.settled(model)
