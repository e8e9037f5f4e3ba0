"""Stable Diffusion 3: two CLIP encoders and T5 (which may be missing), a transformer over text and patches, a VAE."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from calotype_worker import mmdit
from calotype_worker.device import Device
from calotype_worker.mmdit import Stored
from calotype_worker.pipelines.family import Conditioning, DenoiseInput, Family, Progress
from calotype_worker.pipelines.files import files_of
from calotype_worker.pipelines.fit import sd3_fits
from calotype_worker.pipelines.parts import Loader
from calotype_worker.pipelines.transformer import TransformerFamily, bound_parts
from calotype_worker.prompt import Encoded, padded
from calotype_worker.samplers.flow import FlowSchedule
from calotype_worker.wire.down import Load
from calotype_worker.wire.work import Span

T5_TOKENS = 256
"""The length of T5's part; zeros stand there where T5 is missing, as in the reference."""


class StableDiffusion3(TransformerFamily):
    """A resident SD3."""

    name = "sd3"

    def stored(self, layer: str) -> Iterable[Stored]:
        """As its authors store it."""
        return (mmdit.sd3(layer, int(self.denoiser.config.num_layers)),)

    def encode_chunks(self, prompts: Sequence[Sequence[Span]], clip_skip: int) -> list[Conditioning]:
        """CLIP's states side by side, filled up to T5's width, and T5's states behind them; the pooled side by side."""
        clips: list[list[Encoded]] = []
        for number, encoder in enumerate(self.encoders.values()):
            embeddings = self.adapted.embeddings(number)
            encoded = [encoder.encode(spans, 1 + clip_skip, embeddings) for spans in prompts]
            chunks = max(one.chunks for one in encoded)
            if any(one.chunks < chunks for one in encoded):
                empty = encoder.encode([], 1 + clip_skip, {})
                encoded = [padded(one, chunks, empty) for one in encoded]
            clips.append(encoded)
        width = int(self.denoiser.config.joint_attention_dim)
        found = []
        for index, (spans, sides) in enumerate(zip(prompts, zip(*clips))):
            states = torch.cat([one.states for one in sides], dim=-1)
            states = torch.nn.functional.pad(states, (0, width - states.shape[-1]))
            if self.t5 is not None:
                last = self.t5.encode(spans).to(states.dtype)
            else:
                last = states.new_zeros((T5_TOKENS, width))
            pooled = torch.cat([one.pooled for one in sides], dim=-1)
            found.append(Conditioning(torch.cat([states, last]), pooled, negative=index > 0))
        return found

    def added(self, conditioning: Conditioning, latent: Sequence[int], guidance: float) -> dict[str, torch.Tensor]:
        """The pooled text."""
        assert conditioning.pooled is not None
        return {"pooled_projections": conditioning.pooled.to(self.dtype)}

    def denoise(self, input: DenoiseInput, network: Any = None) -> torch.Tensor:
        """One run of the transformer."""
        output: torch.Tensor = (self.denoiser if network is None else network)(
            hidden_states=input.sample.to(self.dtype),
            timestep=input.timesteps,
            encoder_hidden_states=input.states,
            pooled_projections=input.added["pooled_projections"],
            return_dict=False,
        )[0]
        return output.float()


def load(load: Load, device: Device, progress: Progress) -> Family:
    """Make a diffusers folder or a single file resident."""
    loader = Loader(load, device, progress)
    files = files_of(load.model)
    schedule = FlowSchedule.of_config(files.scheduler())
    clips = ("text_encoder", "text_encoder_2")
    filled, encoders, t5 = bound_parts(
        loader, files, clips, "text_encoder_3", T5_TOKENS, "SD3Transformer2DModel", sd3_fits
    )
    model = StableDiffusion3(load.model.id, filled, encoders, t5, schedule, loader.dtype)
    return loader.settled(model)
