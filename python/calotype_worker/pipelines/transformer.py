"""What the transformer families share: a flow, a denoiser in the role `transformer`, CLIP and T5 encoders."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from calotype_worker.mmdit import Stored
from calotype_worker.pipelines.adapted import Adapted
from calotype_worker.pipelines.family import Family
from calotype_worker.pipelines.files import Files
from calotype_worker.pipelines.parts import Loader, diffusers_module, transformers_module
from calotype_worker.pipelines.sd import CLIPS, VAES
from calotype_worker.prompt import TextEncoder
from calotype_worker.samplers.flow import FlowSchedule
from calotype_worker.samplers.run import SamplerRun
from calotype_worker.t5 import T5Encoder, T5Tokenizer, t5_dtype, tied
from calotype_worker.wire.words import Sampler, Schedule

Fits = Callable[[Files, Mapping[str, nn.Module], Sequence[str], str], None]
"""Says what of a family's parts does not belong together; see `fit`."""
T5S = ("T5EncoderModel",)
PATCH = 2
"""Latents of a patch's edge, of which the transformer makes a token."""


class TransformerFamily(Family):
    """A model whose denoiser is a transformer over patches."""

    down_to_steps = False
    """Where the spacing of sigmas ends; see `FlowSchedule.planned`."""

    def __init__(
        self,
        id: str,
        filled: Mapping[str, nn.Module],
        encoders: Mapping[str, TextEncoder],
        t5: T5Encoder | None,
        schedule: FlowSchedule,
        dtype: torch.dtype,
    ) -> None:
        parts = {**{role: encoder.module for role, encoder in encoders.items()}, "unet": filled["transformer"]}
        adapted = Adapted(parts, self._spellings, len(encoders))
        super().__init__(id, filled["transformer"], filled["vae"], adapted, dtype)
        self.encoders = encoders
        self.t5 = t5
        self.schedule = schedule

    def sampler(self, sampler: Sampler, schedule: Schedule, steps: int, latent: Sequence[int]) -> SamplerRun:
        """A run on the flow, shifted for the picture's size."""
        tokens = (latent[1] // PATCH) * (latent[2] // PATCH)
        return SamplerRun(self.schedule.planned(sampler, schedule, steps, tokens, self.down_to_steps))

    @abstractmethod
    def stored(self, layer: str) -> Iterable[Stored]:
        """How a layer of the transformer is stored elsewhere."""

    def _spellings(self, part: str, layer: str) -> Iterable[Stored]:
        return self.stored(layer) if part == "unet" else ()

    def size_multiple(self) -> int:
        """Whole patches."""
        return self.scale * PATCH

    def modules(self) -> list[nn.Module]:
        """With T5."""
        return [*super().modules(), *([self.t5.module] if self.t5 is not None else [])]


def bound_parts(
    loader: Loader, files: Files, clips: Sequence[str], t5: str, t5_tokens: int, transformer: str, fits: Fits
) -> tuple[dict[str, nn.Module], dict[str, TextEncoder], T5Encoder | None]:
    """Load all parts. `t5` is the role of the T5 encoder, which may be missing."""
    configs: dict[str, Any] = {role: files.config(role) for role in (*clips, "transformer", "vae")}
    tokenizers = {role: files.tokenizer(role) for role in clips}
    for role in clips:
        loader.bind(role, transformers_module(configs[role], CLIPS, files.where(role)), files.store(role))
    t5_tokenizer = None
    if files.has(t5):
        config = files.config(t5)
        module: Any = transformers_module(config, T5S, files.where(t5))
        t5_tokenizer = T5Tokenizer(files.t5_tokenizer(t5), module.config.vocab_size)
        loader.bind(t5, module, files.store(t5), t5_dtype(loader.dtype))
    where = files.where("transformer")
    module = diffusers_module(configs["transformer"], (transformer,), where)
    loader.bind("transformer", module, files.store("transformer"))
    vae = diffusers_module(configs["vae"], VAES, files.where("vae"))
    loader.bind("vae", vae, files.store("vae"), loader.vae_dtype(configs["vae"]))
    fits(files, loader.modules(), clips, t5)
    filled = loader.fill()
    encoders = {
        role: TextEncoder(
            filled[role],
            tokenizers[role],
            int(configs[role].get("max_position_embeddings", 77)),
            normalises_skipped=False,
        )
        for role in clips
    }
    if t5_tokenizer is None:
        return filled, encoders, None
    return filled, encoders, T5Encoder(tied(filled[t5]), t5_tokenizer, t5_tokens)
