"""Small networks with random weights that make the pictures of control units, as their folders and files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from calotype_worker.pipelines.annotators.hed import Hed

STAGES = ["stage1", "stage2", "stage3", "stage4"]
VIT: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4}
NECK: dict[str, Any] = {"neck_hidden_sizes": [16] * 4, "fusion_hidden_size": 16}
DPT_VIT: dict[str, Any] = {"num_hidden_layers": 4, "intermediate_size": 37, "image_size": 32}


def dpt() -> Any:
    config = transformers.DPTConfig(**VIT, **DPT_VIT, **NECK, patch_size=8, backbone_out_indices=[0, 1, 2, 3])
    return transformers.DPTForDepthEstimation(config)


def dpt_hybrid() -> Any:
    """Its backbone and its norms in the fusion have statistics that are buffers."""
    bit = {"global_padding": "same", "depths": [3, 4, 9], "hidden_sizes": [16, 16, 32, 32], "num_groups": 2}
    config = transformers.DPTConfig(
        **VIT,
        **DPT_VIT,
        **NECK,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        is_hybrid=True,
        backbone_config={**bit, "layer_type": "bottleneck", "out_features": STAGES[:3]},
        backbone_featmap_shape=[1, 32, 2, 2],
        use_batch_norm_in_fusion_residual=True,
    )
    return transformers.DPTForDepthEstimation(config)


def depth_anything(kind: str = "relative") -> Any:
    backbone = transformers.Dinov2Config(
        **VIT,
        num_hidden_layers=2,
        image_size=32,
        patch_size=8,
        out_features=STAGES[:2],
        apply_layernorm=False,
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=8,
        reassemble_hidden_size=32,
        reassemble_factors=[1, 0.5],
        neck_hidden_sizes=[16, 16],
        fusion_hidden_size=16,
        head_hidden_size=8,
        depth_estimation_type=kind,
    )
    return transformers.DepthAnythingForDepthEstimation(config)


def zoedepth() -> Any:
    backbone = transformers.BeitConfig(
        **VIT,
        **DPT_VIT,
        patch_size=16,
        out_features=STAGES,
        reshape_hidden_states=False,
        use_relative_position_bias=True,
    )
    config = transformers.ZoeDepthConfig(
        **NECK, backbone_config=backbone, bottleneck_features=16, num_out_features=[16] * 4
    )
    return transformers.ZoeDepthForDepthEstimation(config)


def vitpose(keypoints: int = 17, experts: int = 1, simple: bool = True) -> Any:
    backbone = transformers.VitPoseBackboneConfig(
        **VIT,
        num_hidden_layers=2,
        image_size=[32, 24],
        patch_size=[8, 8],
        mlp_ratio=2,
        out_indices=[2],
        num_experts=experts,
        part_features=8,
    )
    config = transformers.VitPoseConfig(backbone_config=backbone, num_labels=keypoints, use_simple_decoder=simple)
    return transformers.VitPoseForPoseEstimation(config)


def rt_detr(*labels: str) -> Any:
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, layer_type="basic", out_features=STAGES[1:]
    )
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        encoder_hidden_dim=32,
        encoder_in_channels=[8, 16, 16],
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        d_model=32,
        num_queries=6,
        decoder_in_channels=[32] * 3,
        decoder_ffn_dim=32,
        decoder_layers=2,
        decoder_attention_heads=2,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    return transformers.RTDetrForObjectDetection(config)


def saved(build: Callable[[], Any], folder: Path, seed: int = 0) -> Any:
    """A module with random weights and statistics, as its folder; gives what transformers reads from there."""
    torch.manual_seed(seed)
    module = build()
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and ("running" in name or tensor.dim() > 1):
            torch.nn.init.uniform_(tensor, 0.5, 1.5) if "running" in name else torch.nn.init.normal_(tensor, std=0.2)
    module.save_pretrained(folder)
    return type(module).from_pretrained(folder).eval()


def saved_hed(file: Path, **changes: torch.Tensor) -> Hed:
    torch.manual_seed(0)
    hed = Hed().eval()
    torch.nn.init.normal_(hed.norm, mean=120.0)
    save_file({**hed.state_dict(), **changes}, file)
    return hed
