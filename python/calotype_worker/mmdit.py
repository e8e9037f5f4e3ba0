"""The original layouts of SD3's and FLUX's transformers: their names, and their architectures from their shapes. Pure.

Names are as in the module's `named_parameters`. The original stores query, key and value as one tensor, FLUX's single
blocks also the first half of their MLP with them. The modulations at the ends give shift and scale, where diffusers
expects scale and shift. (Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024;
the FLUX.1 reference implementation.)
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Shapes = Mapping[str, Sequence[int]]
"""The shapes of a file's tensors by their original names."""

SD3_HEAD = 64
"""The width of a head of SD3, which has as many of them as its depth."""
FLUX_AXES = (16, 56, 56)
"""How FLUX's rotary positions share a head: 128 in all."""
FLUX_MLP = 4


@dataclass(frozen=True)
class Stored:
    """How a parameter is stored.

    With `share` it is some of the rows, in widths of the model: from, to, of all. What is `swapped` has its halves in
    the other order.
    """

    name: str
    share: tuple[int, int, int] | None = None
    swapped: bool = False


_SD3_ENDS = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_SD3_BLOCK = {
    "attn.to_q": "x_block.attn.qkv",
    "attn.to_k": "x_block.attn.qkv",
    "attn.to_v": "x_block.attn.qkv",
    "attn.add_q_proj": "context_block.attn.qkv",
    "attn.add_k_proj": "context_block.attn.qkv",
    "attn.add_v_proj": "context_block.attn.qkv",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.to_q": "x_block.attn2.qkv",
    "attn2.to_k": "x_block.attn2.qkv",
    "attn2.to_v": "x_block.attn2.qkv",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
_FLUX_ENDS = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_FLUX_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_q": "img_attn.qkv",
    "attn.to_k": "img_attn.qkv",
    "attn.to_v": "img_attn.qkv",
    "attn.add_q_proj": "txt_attn.qkv",
    "attn.add_k_proj": "txt_attn.qkv",
    "attn.add_v_proj": "txt_attn.qkv",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_FLUX_SINGLE = {
    "norm.linear": "modulation.lin",
    "attn.to_q": "linear1",
    "attn.to_k": "linear1",
    "attn.to_v": "linear1",
    "proj_mlp": "linear1",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
    "proj_out": "linear2",
}
_FLUX_XLABS = {
    "img_attn.qkv": "qkv_lora1",
    "txt_attn.qkv": "qkv_lora2",
    "img_attn.proj": "proj_lora1",
    "txt_attn.proj": "proj_lora2",
    "linear1": "qkv_lora",
    "linear2": "proj_lora",
}
_PLACE = {"q": 0, "k": 1, "v": 2}
_BLOCK = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)")
_FUSED = re.compile(r"attn2?\.(?:to|add)_([qkv])(?:_proj)?")


def _split(name: str) -> tuple[str, str]:
    """A layer and the leaf with its dot; the table of positions has none."""
    layer, dot, leaf = name.rpartition(".")
    return (layer, dot + leaf) if leaf in ("weight", "bias") else (name, "")


def sd3(name: str, layers: int) -> Stored:
    """A parameter of SD3's transformer of so many layers."""
    block = _BLOCK.fullmatch(name)
    if block is None:
        layer, leaf = _split(name)
        return Stored(_SD3_ENDS.get(layer, layer) + leaf, swapped=layer == "norm_out.linear")
    layer, leaf = _split(block[3])
    fused = _FUSED.fullmatch(layer)
    share = None if fused is None else (_PLACE[fused[1]], _PLACE[fused[1]] + 1, 3)
    # The last block's text goes no further: its modulation is one like that of the end.
    swapped = layer == "norm1_context.linear" and int(block[2]) == layers - 1
    return Stored(f"joint_blocks.{block[2]}.{_SD3_BLOCK.get(layer, layer)}{leaf}", share, swapped)


def flux(name: str) -> Stored:
    """A parameter of FLUX's transformer."""
    block = _BLOCK.fullmatch(name)
    if block is None:
        layer, leaf = _split(name)
        return Stored(_FLUX_ENDS.get(layer, layer) + leaf, swapped=layer == "norm_out.linear")
    layer, leaf = _split(block[3])
    single = block[1] is not None
    stored = (_FLUX_SINGLE if single else _FLUX_DOUBLE).get(layer, layer)
    if stored.endswith("_norm"):
        leaf = ".scale"
    fused = _FUSED.fullmatch(layer)
    total = 3 + FLUX_MLP if single else 3
    share = None if fused is None else (_PLACE[fused[1]], _PLACE[fused[1]] + 1, total)
    if layer == "proj_mlp":
        share = (3, total, total)
    return Stored(f"{'single' if single else 'double'}_blocks.{block[2]}.{stored}{leaf}", share)


def flux_xlabs(name: str) -> Stored | None:
    """A layer of FLUX's transformer in LoRAs of XLabs, which change those of attention alone.

    Of a single block's first layer that is query, key and value, without the MLP.
    """
    block = _BLOCK.fullmatch(name)
    if block is None:
        return None
    single, layer = block[1] is not None, block[3]
    stored = _FLUX_XLABS.get((_FLUX_SINGLE if single else _FLUX_DOUBLE).get(layer, ""))
    if stored is None or layer == "proj_mlp":
        return None
    fused = _FUSED.fullmatch(layer)
    share = None if fused is None else (_PLACE[fused[1]], _PLACE[fused[1]] + 1, 3)
    return Stored(f"{'single' if single else 'double'}_blocks.{block[2]}.processor.{stored}", share)


def _blocks(names: Iterable[str], head: str) -> int:
    numbers = [int(found[1]) for found in (re.match(rf"{head}\.(\d+)\.", name) for name in names) if found]
    return max(numbers) + 1


def sd3_config(shapes: Shapes) -> dict[str, Any]:
    """The architecture of SD3, 3.5 medium or 3.5 large; `KeyError` names a tensor that is not there."""
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    norm = shapes.get("joint_blocks.0.x_block.attn.ln_q.weight")
    head = SD3_HEAD if norm is None else norm[0]
    context = shapes["context_embedder.weight"]
    dual = (re.match(r"joint_blocks\.(\d+)\.x_block\.attn2\.qkv\.weight", name) for name in shapes)
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": channels,
        "num_layers": _blocks(shapes, "joint_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": context[1],
        "caption_projection_dim": context[0],
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "out_channels": shapes["final_layer.linear.weight"][0] // patch**2,
        "pos_embed_max_size": math.isqrt(shapes["pos_embed"][1]),
        "dual_attention_layers": sorted(int(found[1]) for found in dual if found),
        "qk_norm": None if norm is None else "rms_norm",
    }


def flux_config(shapes: Shapes) -> dict[str, Any]:
    """The architecture of FLUX.1, dev where it takes the guidance; `KeyError` names a tensor that is not there."""
    width, channels = shapes["img_in.weight"]
    head = shapes["double_blocks.0.img_attn.norm.query_norm.scale"][0]
    if head != sum(FLUX_AXES):
        raise ValueError(f"heads of {head}, not {sum(FLUX_AXES)}")
    return {
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,
        "in_channels": channels,
        "out_channels": shapes["final_layer.linear.weight"][0],
        "num_layers": _blocks(shapes, "double_blocks"),
        "num_single_layers": _blocks(shapes, "single_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        "axes_dims_rope": FLUX_AXES,
    }
