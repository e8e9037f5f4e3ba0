"""What the tick loop asks of a model, whatever its family. Knows no job and no queue."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from calotype_worker.device import Device
from calotype_worker.pipelines.adapted import PLAIN, Adapted, AdapterSet
from calotype_worker.pipelines.control import ControlNet
from calotype_worker.pipelines.offloaded import Offload, Whereabouts, plan_words
from calotype_worker.samplers.run import SamplerRun
from calotype_worker.sketch import colours_of
from calotype_worker.wire.down import LoadPlan, VaePlan
from calotype_worker.wire.words import Sampler, Schedule
from calotype_worker.wire.work import Adapter, Span

TILE_EDGE = 512
"""Pixels of an edge of a VAE's tiles. The engine counts with it."""
KEPT_TEXTS = 64
"""Prompts that stay encoded."""


@dataclass(frozen=True)
class Conditioning:
    """What a prompt became: `states` `[tokens, width]`, and for some families `pooled` `[width]`."""

    states: torch.Tensor
    pooled: torch.Tensor | None = None
    negative: bool = False
    """Whether it is to be avoided."""


@dataclass(frozen=True)
class Conditioned:
    """The prompt, and the negative prompt where guidance uses one."""

    cond: Conditioning
    uncond: Conditioning | None


@dataclass(frozen=True)
class ControlInput:
    """One ControlNet for all samples of a run.

    `image` are its pictures `[n, 3, height, width]`, 0 to 1; `factors` `[n, residuals]` what each of its residuals
    counts for each sample, those of the down blocks first, the middle's last.
    """

    net: ControlNet
    image: torch.Tensor
    factors: torch.Tensor


@dataclass(frozen=True)
class DenoiseInput:
    """One run of the denoiser for `n` samples.

    `sample` is `[n, channels, height, width]` of f32, scaled as the sampler wants it; `timesteps` `[n]` of f32;
    `states` `[n, tokens, width]`; `added` holds further inputs of the family, each with `n` rows.
    """

    sample: torch.Tensor
    timesteps: torch.Tensor
    states: torch.Tensor
    added: Mapping[str, torch.Tensor] = field(default_factory=dict)
    control: Sequence[ControlInput] = ()


class Family(ABC):
    """A resident model."""

    name: str
    """The family's word on the wire."""
    compiles_any_batch = True
    """Whether one compilation of the denoiser serves any number of samples."""

    def __init__(self, id: str, denoiser: nn.Module, vae: nn.Module, adapted: Adapted, dtype: torch.dtype) -> None:
        self.id = id
        self.denoiser: Any = denoiser
        self.vae: Any = vae
        self.adapted = adapted
        self.dtype = dtype
        self.device = next(denoiser.parameters()).device
        config: Any = self.vae.config
        self.latent_channels = int(config.latent_channels)
        self.scale: int = 2 ** (len(config.block_out_channels) - 1)
        self.scaling_factor = float(config.scaling_factor)
        self.shift_factor = float(config.shift_factor or 0.0)
        self.colours = colours_of(config)
        self.sketcher: Any = None
        """A small VAE for previews."""
        # An inpainting UNet sees a mask and a picture beside the latents.
        self.extra_channels = 0
        self._texts: OrderedDict[tuple[Any, ...], Conditioning] = OrderedDict()
        self.plan = LoadPlan()
        self.offload: Offload = "none"
        self.whereabouts = Whereabouts(self.device)
        self.slices_attention = False
        self.keeps_to_tiles = False
        """Whether the VAE works in tiles whatever is asked for, since memory ran out."""
        self._tile()
        self._decoded = set[tuple[object, ...]]()
        self.resident_bytes = 0
        self.phases_ms: dict[str, float] = {}

    @abstractmethod
    def sampler(self, sampler: Sampler, schedule: Schedule, steps: int, latent: Sequence[int]) -> SamplerRun:
        """A run of a sampler on this model's noise schedule, for latents `[channels, height, width]`."""

    @abstractmethod
    def encode_chunks(self, prompts: Sequence[Sequence[Span]], clip_skip: int) -> list[Conditioning]:
        """Encode prompts so that they have the same number of tokens."""

    def takes_control(self) -> bool:
        """Whether the denoiser takes the residuals of ControlNets."""
        return False

    @abstractmethod
    def added(self, conditioning: Conditioning, latent: Sequence[int], guidance: float) -> dict[str, torch.Tensor]:
        """Further inputs of one sample, without the first extent of a batch."""

    @abstractmethod
    def denoise(self, input: DenoiseInput, network: Any = None) -> torch.Tensor:
        """Run the denoiser with the weights that are active: `[n, channels, height, width]` of f32.

        `network` is what to run in the denoiser's place: its compiled form.
        """

    def size_multiple(self) -> int:
        """What the edges of an image must be multiples of."""
        return self.scale

    def uses_negative(self, guidance: float) -> bool:
        """Whether the negative prompt is run at this guidance."""
        return guidance > 1.0

    def bind(self, adapters: Sequence[Adapter]) -> AdapterSet:
        """The weights with `adapters` summed in; the plain ones are untouched and come back bit for bit."""
        if adapters:
            self._stay_at_home()
        return self.adapted.bind(adapters)

    def activate(self, bound: AdapterSet) -> None:
        """Compute with these weights from now on."""
        if bound is not self.adapted.active:
            self._stay_at_home()
            self.adapted.activate(bound)

    def forget_idle_sets(self, used: Container[str], most_bytes: int) -> list[AdapterSet]:
        """Forget merged LoRAs that are not used, until they take no more than so many bytes. Gives those."""
        gone = self.adapted.forget_idle(used, most_bytes)
        if any(one is self.adapted.active for one in gone):
            self.activate(PLAIN)
        return gone

    def _stay_at_home(self) -> None:
        """Adapters change the host's weights; what a plan brought to the device are copies of those before."""
        self.whereabouts.send_home(*self.modules())

    def encode(
        self, bound: AdapterSet, prompt: Sequence[Span], negative: Sequence[Span], guidance: float, clip_skip: int
    ) -> Conditioned:
        """The conditioning of a job, from the cache where it was encoded before."""
        prompts = [prompt, negative] if self.uses_negative(guidance) else [prompt]
        key = (bound.key, clip_skip, tuple(tuple((s.text, s.weight) for s in spans) for spans in prompts))
        keys = [(*key, index) for index in range(len(prompts))]
        if not all(key in self._texts for key in keys):
            self.activate(bound)
            self.whereabouts.bring(*self.encoder_modules())
            self._texts.update(zip(keys, self.encode_chunks(prompts, clip_skip)))
        found = [self._texts[key] for key in keys]
        for used in keys:
            self._texts.move_to_end(used)
        while len(self._texts) > 2 * KEPT_TEXTS:
            self._texts.popitem(last=False)
        return Conditioned(found[0], found[1] if len(found) > 1 else None)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents `[n, channels, height, width]` to `[n, 3, height, width]` of f32 between -1 and 1, nearly."""
        self.whereabouts.bring(self.vae)
        unscaled = latents.float() / self.scaling_factor + self.shift_factor
        pictures: torch.Tensor = self.vae.decode(unscaled.to(self.vae_dtype), return_dict=False)[0]
        return pictures.float()

    def sketch(self, latents: torch.Tensor) -> torch.Tensor:
        """What `decode` gives, roughly and at once: by the small VAE or by colours, where there is one of them."""
        if self.sketcher is not None:
            dtype = next(iter(self.sketcher.parameters())).dtype
            pictures: torch.Tensor = self.sketcher.decode(latents.to(dtype), return_dict=False)[0]
            return pictures.float()
        return self.decode(latents) if self.colours is None else self.colours.paint(latents, self.scale)

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """`[1, 3, height, width]` of f32, -1 to 1, to latents `[1, channels, …]`: the mean of their distribution."""
        self.whereabouts.bring(self.vae)
        moments = self.vae.encode(pixels.to(self.device, self.vae_dtype)).latent_dist
        mean: torch.Tensor = moments.mode().float()
        return (mean - self.shift_factor) * self.scaling_factor

    @property
    def vae_dtype(self) -> torch.dtype:
        """The type that the VAE computes in."""
        dtype: torch.dtype = next(iter(self.vae.parameters())).dtype
        return dtype

    def modules(self) -> list[nn.Module]:
        """All modules that hold memory of the device."""
        encoders = [module for module in self.adapted.parts.values() if module is not self.denoiser]
        return [self.denoiser, self.vae, *encoders]

    def encoder_modules(self) -> list[nn.Module]:
        """Those that encode text."""
        return [module for module in self.modules() if module is not self.denoiser and module is not self.vae]

    def trim(self) -> None:
        """Drop what can be made again."""
        self._texts.clear()

    @property
    def can_capture(self) -> bool:
        """Whether runs of the denoiser may be captured or compiled: its weights stay where they are."""
        return self.offload == "none"

    def follow(self, plan: LoadPlan, device: Device) -> None:
        """Keep to a plan from now on, as far as the model and the device can."""
        self.plan, self.whereabouts = plan, device.whereabouts
        self.offload = device.offload_of(plan)
        if self.offload != "none":
            self.device = device.torch
            self.whereabouts.keep_away(self.offload, self.encoder_modules(), [self.denoiser, self.vae])
        if plan.attention_slicing and hasattr(self.denoiser, "set_attention_slice"):
            self.denoiser.set_attention_slice("auto")
            self.slices_attention = True

    def plan_words(self) -> list[str]:
        """What is done for memory in every run, in words of a result's plan."""
        return [*plan_words(self.offload), *(["attention_slicing"] if self.slices_attention else [])]

    @property
    def vae_is_tiled(self) -> bool:
        """Whether the VAE works in tiles."""
        return bool(getattr(self.vae, "use_tiling", False))

    def decodes_anew(self, plan: VaePlan, at_once: int, shape: torch.Size) -> bool:
        """Whether it is the first time that latents of this shape are decoded by this plan, so many at once."""
        way = (plan, self.keeps_to_tiles, at_once, shape)
        is_new = way not in self._decoded
        self._decoded.add(way)
        return is_new

    def use_tiles(self, wanted: bool) -> None:
        """Have the VAE work in tiles, or not, in what comes next: slower, with less memory."""
        self.vae.use_tiling = wanted or self.keeps_to_tiles

    def keep_to_tiles(self) -> None:
        """Work in tiles from now on."""
        self.keeps_to_tiles = True
        self.use_tiles(True)

    def _tile(self) -> None:
        # A VAE's own tiles are as large as its config says that pictures are: 1024 pixels of SDXL's folder, and 32
        # where it says nothing, as for a single file: 1849 tiles of one picture.
        self.vae.tile_sample_min_size, self.vae.tile_latent_min_size = TILE_EDGE, TILE_EDGE // self.scale


Progress = Callable[[int, int], None]
"""Hears of bytes done and bytes in all."""
