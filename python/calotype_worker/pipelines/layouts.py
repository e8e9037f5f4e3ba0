"""Where a component's parameters lie in one file, whichever of the usual layouts the file has.

The prefixes are those under which whole checkpoints keep the component; a file of the component alone has none of them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from calotype_worker import ldm, mmdit
from calotype_worker.errors import ModelLoad
from calotype_worker.weights import Rows, Source, WeightFile, other_names

Config = Mapping[str, Any]
Places = Callable[[str], Sequence[Source]]
"""Where a parameter may be, by its name in the module, the file's usual spelling first; the first that exists is it."""

DENOISER = "model.diffusion_model."
VAE = ("first_stage_model.", "vae.")
T5 = ("text_encoders.t5xxl.transformer.",)
CLIP = {
    "text_encoder": (
        "cond_stage_model.transformer.",
        "cond_stage_model.model.",
        "conditioner.embedders.0.transformer.",
        "text_encoders.clip_l.transformer.",
    ),
    "text_encoder_2": (
        "conditioner.embedders.1.model.",
        "conditioner.embedders.0.model.",
        "text_encoders.clip_g.transformer.",
    ),
}


class Layout:
    """One component in a file."""

    def __init__(self, file: WeightFile, places: Places) -> None:
        self.path = file.path
        self._file = file
        self._places = places

    def source(self, name: str) -> Source | None:
        """Where a parameter is, if it is there."""
        return next((place for place in self._places(name) if place.name in self._file.names_set), None)

    def find(self, name: str) -> Source:
        """Where a parameter is; what is missing is named as the file would name it."""
        found = self.source(name)
        if found is None:
            first = self._places(name)[0].name
            raise ModelLoad("the weights do not fit the model's config", f"{self.path}: tensor `{first}` is missing")
        return found


def is_t5(config: Config) -> bool:
    """Whether a text encoder is T5."""
    return "d_model" in config


def prefixes(role: str, config: Config) -> Sequence[str]:
    """Under which names checkpoints keep a VAE or a text encoder."""
    if role == "vae":
        return VAE
    return T5 if is_t5(config) else CLIP[role]


def prefix_in(file: WeightFile, candidates: Iterable[str]) -> str | None:
    """The prefix under which a file has anything."""
    return next((prefix for prefix in candidates if any(name.startswith(prefix) for name in file.names)), None)


def layout(file: WeightFile, role: str, config: Config) -> Layout:
    """A VAE or a text encoder, in a checkpoint or by itself."""
    found = prefix_in(file, prefixes(role, config)) or ""
    if role == "vae":
        return _vae(file, config, found)
    if is_t5(config):
        return Layout(file, lambda name: [Source(file, found + spelling) for spelling in other_names(name)])
    return _clip(file, config, found)


def _vae(file: WeightFile, config: Config, prefix: str) -> Layout:
    # Where something is missing, the first spelling is named: it should be one that the file uses.
    ours = any(".up_blocks." in name for name in file.names)

    def places(name: str) -> list[Source]:
        original = ldm.vae(name, config)
        names = [*other_names(name), original] if ours else [original, *other_names(name)]
        return [Source(file, prefix + spelling) for spelling in names]

    return Layout(file, places)


def _clip(file: WeightFile, config: Config, prefix: str) -> Layout:
    width = int(config["hidden_size"])
    theirs = prefix_in(file, [f"{prefix}transformer.resblocks."]) is not None

    def places(name: str) -> list[Source]:
        bare = name.removeprefix("text_model.")
        stored, third = ldm.open_clip(name)
        rows = None if third is None else Rows(third * width, (third + 1) * width, 3 * width)
        # OpenCLIP multiplies by its projection from the right.
        fused = Source(file, prefix + stored, rows, transposed=stored == "text_projection")
        plain = [Source(file, f"{prefix}text_model.{bare}"), Source(file, prefix + bare)]
        return [fused, *plain] if theirs else [*plain, fused]

    return Layout(file, places)


def unet(file: WeightFile, config: Config) -> Layout:
    """The UNet of a checkpoint."""
    return Layout(file, lambda name: [Source(file, DENOISER + ldm.unet(name, config))])


def denoiser_prefix(file: WeightFile) -> str:
    """What stands before a transformer's names; files of the transformer alone have nothing there."""
    return prefix_in(file, [DENOISER]) or ""


def transformer(file: WeightFile, family: str, config: Config) -> Layout:
    """The transformer of an SD3 or FLUX file."""
    prefix = denoiser_prefix(file)
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])

    def places(name: str) -> list[Source]:
        stored = mmdit.sd3(name, int(config["num_layers"])) if family == "sd3" else mmdit.flux(name)
        rows = None if stored.share is None else Rows(*(share * width for share in stored.share))
        return [Source(file, prefix + stored.name, rows, swapped=stored.swapped)]

    return Layout(file, places)


def controlnet(file: WeightFile, config: Config) -> Layout:
    """A ControlNet, in its original names or in diffusers'."""
    prefix = prefix_in(file, ["control_model."]) or ""
    ours = prefix_in(file, ["down_blocks."]) is not None

    def places(name: str) -> list[Source]:
        return [Source(file, name if ours else prefix + ldm.controlnet(name, config))]

    return Layout(file, places)
