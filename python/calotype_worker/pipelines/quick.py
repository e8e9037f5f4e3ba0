"""Makes diffusers' convolutional modules keep to channels-last, in as few passes over memory as there can be.

A module's class is exchanged for one of the same parameters and the same results: names that LoRAs and files use stay
as they are. What has an unusual configuration stays as diffusers made it.
"""

from typing import Any

from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn

from calotype_worker.kernels import layer_norm, pixels
from calotype_worker.kernels.group_norm import GroupNorm
from calotype_worker.kernels.layer_norm import LayerNorm, SumNorm
from calotype_worker.pipelines.blocks import Attend, Gated, Resnet, Transformer2D, TransformerBlock, Upsample


def quicken(module: nn.Module) -> None:
    """Exchange the parts of a UNet, ControlNet or VAE that are known here."""
    if not isinstance(module, (UNet2DConditionModel, ControlNetModel, AutoencoderKL)):
        return
    for part in module.modules():
        _exchange(part)
    # What a residual block did not take for itself.
    for part in module.modules():
        pixels.exchange(part)
    _activate_time_once(module)


def _activate_time_once(module: Any) -> None:
    """Residual blocks activate one and the same embedding of the time: a UNet can do that for all of them."""
    blocks = [part for part in module.modules() if isinstance(part, ResnetBlock2D)]
    if getattr(module, "time_embed_act", module) is None and all(
        type(block) is Resnet and not block.skip_time_act for block in blocks
    ):
        module.time_embed_act = nn.SiLU()
        for block in blocks:
            block.skip_time_act = True


def _exchange(part: Any) -> None:
    kind = type(part)
    if kind is ResnetBlock2D and _is_usual_resnet(part):
        part.__class__ = Resnet
        for norm, convolution in ((part.norm1, part.conv1), (part.norm2, part.conv2)):
            _norm(norm, silu=True)
            pixels.exchange(convolution, apart=True)
    elif kind is Transformer2DModel and getattr(part, "is_input_continuous", False):
        part.__class__ = Transformer2D
        _norm(part.norm, silu=False)
    elif kind is BasicTransformerBlock and _is_usual_block(part):
        part.__class__ = TransformerBlock
        part.adds_in_place = _adds_in_place(part)
        part.norm1.__class__ = LayerNorm
        part.norm2.__class__ = part.norm3.__class__ = SumNorm
    elif kind is GEGLU:
        part.__class__ = Gated
    elif kind is Attention and _is_usual_attention(part):
        part.set_processor(Attend())
        if part.group_norm is not None:
            _norm(part.group_norm, silu=False)
    elif kind is Upsample2D and _is_usual_upsampling(part):
        part.__class__ = Upsample
    elif type(getattr(part, "conv_norm_out", None)) is nn.GroupNorm and isinstance(
        getattr(part, "conv_act", None), nn.SiLU
    ):
        _norm(part.conv_norm_out, silu=True)
        part.conv_act = nn.Identity()


def _is_usual_resnet(block: Any) -> bool:
    # A VAE's blocks have no time to embed, however they would do it.
    timed = block.time_embedding_norm == "default" or block.time_emb_proj is None
    return (
        timed
        and block.upsample is None
        and block.downsample is None
        and isinstance(block.nonlinearity, nn.SiLU)
        and block.dropout.p == 0.0
        and pixels.is_usual(block.conv1)
        and pixels.is_usual(block.conv2)
    )


def _is_usual_block(block: Any) -> bool:
    return (
        block.norm_type == "layer_norm"
        and block.pos_embed is None
        and block.attn2 is not None
        and not hasattr(block, "fuser")
        and all(layer_norm.is_usual(norm) for norm in (block.norm1, block.norm2, block.norm3))
    )


def _adds_in_place(block: Any) -> bool:
    """Whether a block's residuals are sums of products and biases, and nothing else."""
    net = block.ff.net
    return (
        len(net) == 3
        and type(net[0]) in (GEGLU, Gated)
        and type(net[2]) is nn.Linear
        and net[2].bias is not None
        and all(_ends_in_product(attention) for attention in (block.attn1, block.attn2))
    )


def _ends_in_product(attention: Any) -> bool:
    last = attention.to_out[0]
    plain = attention.group_norm is None and not attention.residual_connection
    return _is_usual_attention(attention) and plain and type(last) is nn.Linear and last.bias is not None


def _is_usual_attention(attention: Any) -> bool:
    norms = (attention.spatial_norm, attention.norm_cross, attention.norm_q, attention.norm_k)
    # Only a VAE's attention sees pictures, which its norm needs.
    pictured = attention.group_norm is None or attention.residual_connection
    return (
        type(attention.processor) is AttnProcessor2_0
        and attention.rescale_output_factor == 1.0
        and pictured
        and all(norm is None for norm in norms)
    )


def _is_usual_upsampling(layer: Any) -> bool:
    return (
        layer.use_conv
        and not layer.use_conv_transpose
        and layer.interpolate
        and layer.norm is None
        and layer.name == "conv"
    )


def _norm(norm: Any, silu: bool) -> None:
    norm.__class__ = GroupNorm
    norm.silu = silu
