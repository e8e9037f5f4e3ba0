"""What a worker can be asked to do, each with typed parameters. Sizes are pixels unless a name says otherwise."""

from typing import Literal

import msgspec

from calotype_worker.wire.words import BlobRef, Message, Mode, NoiseSource, Sampler, Schedule


class Span(Message, frozen=True, kw_only=True):
    """A piece of a prompt with its weight; 1 is plain."""

    text: str
    weight: float


class Adapter(Message, frozen=True, kw_only=True):
    """A LoRA or an embedding: its catalogue name, its safetensors file, its strength."""

    id: str
    path: str
    weight: float


class Preprocess(Message, frozen=True, kw_only=True):
    """A network that makes the image of a ControlNet out of a picture."""

    model: str
    into: Literal["depth", "normal", "softedge", "pose"]


class ControlUnit(Message, frozen=True, kw_only=True):
    """One ControlNet with its picture, its factor, and the share of the steps at which it begins and ends.

    `mode` says how it and the prompt share the picture: `prompt` lets its residuals fade from 1 at the middle block to
    0.1 at the first; `control` does so too, and gives them only to the half of the guidance that has the prompt.
    """

    model: str
    image: BlobRef
    weight: float
    start: float
    end: float
    mode: Literal["balanced", "prompt", "control"] = "balanced"
    preprocess: Preprocess | None = None


class Refiner(Message, frozen=True, kw_only=True):
    """A model that takes over after a share of the steps."""

    model: str
    switch_at: float


class Hires(Message, frozen=True, kw_only=True):
    """A second pass at a larger size: sampled again from `strength` of what the first pass gave."""

    width: int
    height: int
    steps: int
    strength: float
    upscaler: Literal["latent", "lanczos"]


class Generate(Message, frozen=True, kw_only=True, tag="generate", tag_field="kind"):
    """One generation of one or more images that differ only in their seeds.

    `initial_noise` is `[images, channels, height / scale, width / scale]` of f32, `init_image` is
    `[height, width, 3]` of u8, `mask` is `[height, width]` of u8, 255 where to repaint.
    """

    model: str
    mode: Mode
    prompt: list[Span]
    negative_prompt: list[Span] = msgspec.field(default_factory=list)
    width: int
    height: int
    steps: int
    guidance: float
    sampler: Sampler
    schedule: Schedule
    seeds: list[int]
    noise: NoiseSource
    initial_noise: BlobRef
    init_image: BlobRef | None = None
    mask: BlobRef | None = None
    strength: float
    adapters: list[Adapter] = msgspec.field(default_factory=list)
    control: list[ControlUnit] = msgspec.field(default_factory=list)
    refiner: Refiner | None = None
    hires: Hires | None = None
    clip_skip: int = 0
    preview_every: int = 0


class Encode(Message, frozen=True, kw_only=True, tag="encode", tag_field="kind"):
    """VAE encoding alone: an image `[height, width, 3]` of u8."""

    model: str
    image: BlobRef


class Decode(Message, frozen=True, kw_only=True, tag="decode", tag_field="kind"):
    """VAE decoding alone: latents `[images, channels, height / scale, width / scale]` of f32, as the UNet sees them."""

    model: str
    latents: BlobRef


class Upscale(Message, frozen=True, kw_only=True, tag="upscale", tag_field="kind"):
    """Upscaling by a network."""

    model: str
    image: BlobRef
    tile: int = 0


class Matte(Message, frozen=True, kw_only=True, tag="matte", tag_field="kind"):
    """Foreground matting."""

    model: str
    image: BlobRef


class Style(Message, frozen=True, kw_only=True, tag="style", tag_field="kind"):
    """Style transfer."""

    model: str
    image: BlobRef
    strength: float


class RestoreFaces(Message, frozen=True, kw_only=True, tag="restore_faces", tag_field="kind"):
    """Face restoration."""

    model: str
    image: BlobRef
    fidelity: float


class ScoreSafety(Message, frozen=True, kw_only=True, tag="score_safety", tag_field="kind"):
    """Safety scoring."""

    model: str
    image: BlobRef


class Embed(Message, frozen=True, kw_only=True, tag="embed", tag_field="kind"):
    """Text embedding."""

    model: str
    text: str


Work = Generate | Encode | Decode | Upscale | Matte | Style | RestoreFaces | ScoreSafety | Embed
