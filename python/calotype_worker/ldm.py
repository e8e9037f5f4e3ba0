"""The names that the original checkpoints give to the layers of diffusers' and transformers' modules. Pure.

Each function takes a name as in the module's `named_parameters` (with or without `.weight`) and gives the checkpoint's,
without the prefix of the component. LoRA files in kohya's naming use the same names with `_` for `.`.
"""

import re
from collections.abc import Mapping
from typing import Any

_RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
)
_UNET_ENDS = (
    ("conv_in", "input_blocks.0.0"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
)
_UNET_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_UNET_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def _renamed(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for ours, theirs in pairs:
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name[len(ours) :]
    return name


def unet(name: str, config: Mapping[str, Any]) -> str:
    """A layer of a UNet; the prefix is `model.diffusion_model.`."""
    layers = int(config["layers_per_block"])
    block = _UNET_BLOCK.fullmatch(name)
    if block is not None:
        side, level, kind, number, rest = block[1], int(block[2]), block[3], int(block[4]), block[5]
        if side == "down":
            place = 1 + level * (layers + 1) + (layers if kind == "downsamplers" else number)
            head = f"input_blocks.{place}"
            if kind == "downsamplers":
                return f"{head}.0.{_renamed(rest, (('conv', 'op'),))}"
        else:
            place = level * (layers + 1) + (layers if kind == "upsamplers" else number)
            head = f"output_blocks.{place}"
            if kind == "upsamplers":
                return f"{head}.{2 if 'CrossAttn' in config['up_block_types'][level] else 1}.{rest}"
        return f"{head}.0.{_renamed(rest, _RESNET)}" if kind == "resnets" else f"{head}.1.{rest}"
    middle = _UNET_MIDDLE.fullmatch(name)
    if middle is not None:
        if middle[1] == "attentions":
            return f"middle_block.1.{middle[3]}"
        return f"middle_block.{0 if middle[2] == '0' else 2}.{_renamed(middle[3], _RESNET)}"
    return _renamed(name, _UNET_ENDS)


_HINT_BLOCK = re.compile(r"controlnet_cond_embedding\.blocks\.(\d+)\.(.+)")
_DOWN_BLOCK = re.compile(r"controlnet_down_blocks\.(\d+)\.(.+)")


def controlnet(name: str, config: Mapping[str, Any]) -> str:
    """A layer of a ControlNet; the prefix is `control_model.`, or nothing."""
    hint = _HINT_BLOCK.fullmatch(name)
    if hint is not None:
        return f"input_hint_block.{2 * (int(hint[1]) + 1)}.{hint[2]}"
    down = _DOWN_BLOCK.fullmatch(name)
    if down is not None:
        return f"zero_convs.{down[1]}.0.{down[2]}"
    blocks = 2 * (len(config["conditioning_embedding_out_channels"]) - 1)
    ends = (
        ("controlnet_cond_embedding.conv_in", "input_hint_block.0"),
        ("controlnet_cond_embedding.conv_out", f"input_hint_block.{2 * (blocks + 1)}"),
        ("controlnet_mid_block", "middle_block_out.0"),
    )
    renamed = _renamed(name, ends)
    return unet(name, config) if renamed == name else renamed


_VAE_BLOCK = re.compile(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)")
_VAE_MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_VAE_ATTENTION = (
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
)
_SHORTCUT = (("conv_shortcut", "nin_shortcut"),)


def vae(name: str, config: Mapping[str, Any]) -> str:
    """A layer of a VAE; the prefix is `first_stage_model.`."""
    block = _VAE_BLOCK.fullmatch(name)
    if block is not None:
        half, level, kind, number, rest = block[1], int(block[2]), block[3], block[4], block[5]
        if half == "decoder":
            level = len(config["block_out_channels"]) - 1 - level
        head = f"{half}.{'down' if half == 'encoder' else 'up'}.{level}"
        if kind == "resnets":
            return f"{head}.block.{number}.{_renamed(rest, _SHORTCUT)}"
        return f"{head}.{'downsample' if kind == 'downsamplers' else 'upsample'}.{rest}"
    middle = _VAE_MIDDLE.fullmatch(name)
    if middle is not None:
        half, kind, number, rest = middle[1], middle[2], int(middle[3]), middle[4]
        if kind == "attentions":
            return f"{half}.mid.attn_{number + 1}.{_renamed(rest, _VAE_ATTENTION)}"
        return f"{half}.mid.block_{number + 1}.{_renamed(rest, _SHORTCUT)}"
    return name.replace("conv_norm_out", "norm_out")


_OPEN_CLIP = (
    ("embeddings.token_embedding", "token_embedding"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("final_layer_norm", "ln_final"),
    ("text_projection.weight", "text_projection"),
)
_OPEN_CLIP_LAYER = (
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
    ("self_attn.q_proj.", "attn.in_proj_"),
    ("self_attn.k_proj.", "attn.in_proj_"),
    ("self_attn.v_proj.", "attn.in_proj_"),
)
_THIRDS = {"q_proj": 0, "k_proj": 1, "v_proj": 2}


def open_clip(name: str) -> tuple[str, int | None]:
    """A parameter of a text encoder as OpenCLIP names it, and which third of it, where three are stored as one."""
    name = name.removeprefix("text_model.")
    layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name)
    if layer is None:
        return _renamed(name, _OPEN_CLIP), None
    third = next((part for word, part in _THIRDS.items() if f"self_attn.{word}." in name), None)
    rest = layer[2]
    for ours, theirs in _OPEN_CLIP_LAYER:
        if rest.startswith(ours):
            rest = theirs + rest[len(ours) :]
            break
    return f"transformer.resblocks.{layer[1]}.{rest}", third
