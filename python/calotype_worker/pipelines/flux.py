"""FLUX.1: CLIP for the pooled text, T5 for the states, a transformer over text and packed patches, a VAE.

Its guidance is an input of the denoiser where the model was distilled so (dev), and nothing at all where it was not
(schnell): the negative prompt is never run.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from calotype_worker import mmdit
from calotype_worker.device import Device
from calotype_worker.errors import ModelLoad
from calotype_worker.mmdit import Stored
from calotype_worker.pipelines.family import Conditioning, DenoiseInput, Family, Progress
from calotype_worker.pipelines.files import files_of
from calotype_worker.pipelines.fit import flux_fits
from calotype_worker.pipelines.parts import Loader
from calotype_worker.pipelines.transformer import PATCH, TransformerFamily, bound_parts
from calotype_worker.samplers.flow import FlowSchedule
from calotype_worker.wire.down import Load
from calotype_worker.wire.work import Span

T5_TOKENS = 512


class Flux(TransformerFamily):
    """A resident FLUX.1."""

    name = "flux"
    down_to_steps = True
    compiles_any_batch = False

    def uses_negative(self, guidance: float) -> bool:
        """Never."""
        return False

    def stored(self, layer: str) -> Iterable[Stored]:
        """As its authors store it, and as XLabs' LoRAs name it."""
        of_xlabs = mmdit.flux_xlabs(layer)
        return [mmdit.flux(layer), *([] if of_xlabs is None else [of_xlabs])]

    def encode_chunks(self, prompts: Sequence[Sequence[Span]], clip_skip: int) -> list[Conditioning]:
        """T5's states and CLIP's pooled text."""
        assert self.t5 is not None
        clip = self.encoders["text_encoder"]
        found = []
        for spans in prompts:
            pooled = clip.encode(spans, clip_skip, self.adapted.embeddings(0)).pooled
            found.append(Conditioning(self.t5.encode(spans), pooled))
        return found

    def added(self, conditioning: Conditioning, latent: Sequence[int], guidance: float) -> dict[str, torch.Tensor]:
        """The pooled text and the guidance."""
        assert conditioning.pooled is not None
        added = {"pooled_projections": conditioning.pooled.to(self.dtype)}
        if self.denoiser.config.guidance_embeds:
            added["guidance"] = torch.tensor(guidance, dtype=torch.float32, device=self.device)
        return added

    def denoise(self, input: DenoiseInput, network: Any = None) -> torch.Tensor:
        """One run of the transformer over packed patches."""
        images, channels, height, width = input.sample.shape
        rows, columns = height // PATCH, width // PATCH
        patches = input.sample.to(self.dtype).reshape(images, channels, rows, PATCH, columns, PATCH)
        output = (self.denoiser if network is None else network)(
            hidden_states=patches.permute(0, 2, 4, 1, 3, 5).reshape(images, rows * columns, channels * PATCH**2),
            timestep=input.timesteps / self.schedule.train_timesteps,
            guidance=input.added.get("guidance"),
            pooled_projections=input.added["pooled_projections"],
            encoder_hidden_states=input.states,
            txt_ids=torch.zeros((input.states.shape[1], 3), dtype=self.dtype, device=self.device),
            img_ids=self._places(rows, columns),
            return_dict=False,
        )[0]
        patches = output.reshape(images, rows, columns, channels, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
        whole: torch.Tensor = patches.reshape(images, channels, height, width).float()
        return whole

    def _places(self, rows: int, columns: int) -> torch.Tensor:
        """Where each patch is: `[rows * columns, 3]`, of which the first is always 0."""
        places = torch.zeros((rows, columns, 3), dtype=self.dtype, device=self.device)
        places[..., 1] += torch.arange(rows, dtype=self.dtype, device=self.device)[:, None]
        places[..., 2] += torch.arange(columns, dtype=self.dtype, device=self.device)[None, :]
        return places.reshape(rows * columns, 3)


def load(load: Load, device: Device, progress: Progress) -> Family:
    """Make a diffusers folder or a single file resident."""
    loader = Loader(load, device, progress)
    files = files_of(load.model)
    schedule = FlowSchedule.of_config(files.scheduler())
    if not files.has("text_encoder_2"):
        where = files.where("text_encoder_2")
        raise ModelLoad(
            "the model has a part missing",
            f"{where}: FLUX needs its T5 encoder; give the component `text_encoder_2`, a folder or a file",
        )
    filled, encoders, t5 = bound_parts(
        loader, files, ("text_encoder",), "text_encoder_2", T5_TOKENS, "FluxTransformer2DModel", flux_fits
    )
    model = Flux(load.model.id, filled, encoders, t5, schedule, loader.dtype)
    return loader.settled(model)
