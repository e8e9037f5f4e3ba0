"""Whether a model's parts belong together: the widths of texts and latents, compared before any weight is read.

Each part is checked against its own config by its shapes; a part from elsewhere can be whole and still not fit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from calotype_worker.errors import ModelLoad, NotSupported
from calotype_worker.pipelines.files import Files

Modules = Mapping[str, Any]
"""Modules of diffusers and transformers by role, built, without weights yet."""


def unet_fits(files: Files, modules: Modules, encoders: Sequence[str]) -> None:
    """Check the encoders' states side by side, and the pooled text of the last, against what a UNet takes."""
    unet = modules["unet"].config
    if isinstance(unet.cross_attention_dim, int):
        _equal(files, encoders, "states", sum(_states(modules[role]) for role in encoders), unet.cross_attention_dim)
    if unet.addition_embed_type == "text_time":
        # Six numbers of sizes, or the refiner's five.
        times = (5 if len(encoders) == 1 else 6) * unet.addition_time_embed_dim
        last = encoders[-1]
        _equal(files, [last], "pooled text", _pooled(modules[last]), unet.projection_class_embeddings_input_dim - times)


def sd3_fits(files: Files, modules: Modules, clips: Sequence[str], t5: str) -> None:
    """Check the encoders and the latents of an SD3."""
    transformer = modules["transformer"].config
    widest = transformer.joint_attention_dim
    side_by_side = sum(_states(modules[role]) for role in clips)
    if side_by_side > widest:
        _equal(files, clips, "states", side_by_side, widest)
    if t5 in modules:
        _equal(files, [t5], "states", _states(modules[t5]), widest)
    pooled = sum(_pooled(modules[role]) for role in clips)
    _equal(files, clips, "pooled text", pooled, transformer.pooled_projection_dim)
    _latents_fit(files, modules, 1)


def flux_fits(files: Files, modules: Modules, clips: Sequence[str], t5: str) -> None:
    """Check the encoders and the latents of a FLUX, which sees the latents of a patch of 2 by 2 side by side."""
    transformer = modules["transformer"].config
    if t5 in modules:
        _equal(files, [t5], "states", _states(modules[t5]), transformer.joint_attention_dim)
    pooled = sum(_pooled(modules[role]) for role in clips)
    _equal(files, clips, "pooled text", pooled, transformer.pooled_projection_dim)
    _latents_fit(files, modules, 4)


def _states(encoder: Any) -> int:
    config = encoder.config
    return int(config.d_model if hasattr(config, "d_model") else config.hidden_size)


def _pooled(encoder: Any) -> int:
    config = encoder.config
    return int(config.projection_dim if hasattr(encoder, "text_projection") else config.hidden_size)


def _latents_fit(files: Files, modules: Modules, factor: int) -> None:
    transformer, latents = modules["transformer"].config, modules["vae"].config.latent_channels
    inputs = transformer.in_channels
    if inputs != (transformer.out_channels or inputs):
        raise NotSupported(
            f"a transformer with {inputs} input channels (an editing variant) is not supported",
            files.where("transformer"),
        )
    if inputs != latents * factor:
        raise ModelLoad(
            "the VAE does not fit the model",
            f"{files.where('vae')}: {latents} latent channels, not {inputs // factor}",
        )


def _equal(files: Files, roles: Sequence[str], what: str, found: int, wanted: int) -> None:
    if found != wanted:
        places = ", ".join(dict.fromkeys(files.where(role) for role in roles))
        raise ModelLoad(
            f"the text encoder does not fit the model ({', '.join(roles)})",
            f"{places}: {what} of {found}, not {wanted}",
        )
