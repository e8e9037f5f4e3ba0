"""ControlNets in single files, which have no config: the architecture by its tensors.

What a header cannot say (how many heads the attention has) is that of the UNet whose text has the same width.
"""

from typing import Any

from calotype_worker.errors import ModelLoad, NotSupported
from calotype_worker.pipelines import checkpoint, layouts
from calotype_worker.weights import WeightFile

# A UNet's config has these in common with that of its ControlNets.
SHARED = (
    "act_fn",
    "addition_embed_type",
    "addition_time_embed_dim",
    "attention_head_dim",
    "block_out_channels",
    "cross_attention_dim",
    "down_block_types",
    "downsample_padding",
    "flip_sin_to_cos",
    "freq_shift",
    "layers_per_block",
    "mid_block_scale_factor",
    "norm_eps",
    "norm_num_groups",
    "projection_class_embeddings_input_dim",
    "transformer_layers_per_block",
    "use_linear_projection",
)
TEXT = ".attn2.to_k.weight"
# Networks of one file for many kinds of pictures choose among them by these.
UNION = ("control_add_embedding.linear_1.weight", "task_embedding")


def config_of(file: WeightFile) -> dict[str, Any]:
    """The config of the ControlNet in a file."""
    if any(name in file.names_set for name in UNION):
        raise NotSupported("a ControlNet for many kinds of pictures at once is not supported", str(file.path))
    widths = {file.shape(name)[1] for name in file.names if name.endswith(TEXT) and len(file.shape(name)) == 2}
    known = checkpoint.BY_CONTEXT.get(widths.pop()) if len(widths) == 1 else None
    if known is None:
        raise NotSupported(
            "the file is no ControlNet that this worker knows",
            f"{file.path}: no `…{TEXT}` of the width of {', '.join(checkpoint.BY_CONTEXT.values())}",
        )
    unet = checkpoint.configs_of(known)["unet"]
    config = {field: unet[field] for field in SHARED if field in unet}
    # Any names will do: the first and the last layer of the network for the picture tell the widths between.
    config["conditioning_embedding_out_channels"] = _picture_widths(file)
    net = layouts.controlnet(file, config)
    config["in_channels"] = _extent(net, "conv_in.weight", 1)
    config["conditioning_channels"] = _extent(net, "controlnet_cond_embedding.conv_in.weight", 1)
    blocks = list(unet["down_block_types"])
    for level in range(len(blocks)):
        # Any of them will do, so that a file that lacks one is missed something and is not another network.
        head = f"down_blocks.{level}.attentions.0"
        if not any(net.source(f"{head}.{layer}.weight") for layer in ("norm", "proj_in", "proj_out")):
            blocks[level] = "DownBlock2D"
    config["down_block_types"] = blocks
    return config


def _picture_widths(file: WeightFile) -> list[int]:
    """The widths of the small network that sees the picture."""
    original, ours = {}, {}
    for name in file.names:
        head, _, leaf = name.rpartition(".")
        number = head.rpartition(".")[2]
        if leaf != "weight" or not number.isdigit():
            continue
        if "input_hint_block." in head:
            original[int(number)] = file.shape(name)[0]
        if "controlnet_cond_embedding.blocks." in head:
            ours[int(number)] = file.shape(name)[0]
    # Layers alternate: one keeps the width, the next one widens.
    if original:
        ordered = [original[number] for number in sorted(original)][:-1]
        return ordered[::2]
    ordered = [ours[number] for number in sorted(ours)]
    if not ordered:
        raise ModelLoad(
            "the weights do not fit the model's config",
            f"{file.path}: neither tensors `input_hint_block…` nor `controlnet_cond_embedding…`",
        )
    return [ordered[0], *ordered[1::2]]


def _extent(net: layouts.Layout, name: str, axis: int) -> int:
    source = net.find(name)
    shape = source.shape()
    if len(shape) != 4:
        raise source.file.wrong(source.name, f"has the shape {shape}, not four extents")
    return shape[axis]
