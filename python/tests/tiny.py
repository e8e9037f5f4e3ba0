"""Small models with random weights in the shapes of each family, as diffusers folders."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .desk import TINY

SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
TIME_EMBED = 8
TEXT = 32


def tokenizer() -> Any:
    return CLIPTokenizer.from_pretrained(TINY / "tokenizer", local_files_only=True)


def text_encoder(projected: bool) -> Any:
    config = CLIPTextConfig(
        vocab_size=8150,
        hidden_size=TEXT,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=8148,
        eos_token_id=8149,
        pad_token_id=8149,
        projection_dim=TEXT,
        hidden_act="gelu" if projected else "quick_gelu",
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def vae(**changes: Any) -> Any:
    return AutoencoderKL(
        block_out_channels=[16, 32],
        layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=8,
        **changes,
    )


def unet_config(cross: int, times: int | None) -> dict[str, Any]:
    """A UNet of two blocks; `times` numbers of sizes for SDXL, None for SD."""
    config: dict[str, Any] = {
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "in_channels": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "cross_attention_dim": cross,
        "attention_head_dim": [2, 4],
        "norm_num_groups": 8,
    }
    if times is not None:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": TIME_EMBED,
            "transformer_layers_per_block": [1, 2],
            "projection_class_embeddings_input_dim": TEXT + times * TIME_EMBED,
            "use_linear_projection": True,
        }
    return config


def unet(cross: int, times: int | None) -> Any:
    config = unet_config(cross, times)
    return UNet2DConditionModel(out_channels=4, up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"], **config)


def controlnet(cross: int, times: int | None, seed: int, zero: bool) -> Any:
    torch.manual_seed(seed)
    net = ControlNetModel(**unet_config(cross, times), conditioning_embedding_out_channels=[4, 8])
    if not zero:
        for block in [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out]:
            torch.nn.init.normal_(block.weight, std=0.3)
    return net.eval()


def sd() -> Any:
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_encoder(False).eval(),
        tokenizer=tokenizer(),
        unet=unet(TEXT, None).eval(),
        scheduler=EulerDiscreteScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    torch.manual_seed(1)
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=text_encoder(False).eval(),
        text_encoder_2=text_encoder(True).eval(),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet(2 * TEXT, 6).eval(),
        scheduler=EulerDiscreteScheduler(**SCHEDULER),
        add_watermarker=False,
    )


def refiner(base: Any) -> Any:
    torch.manual_seed(2)
    return StableDiffusionXLImg2ImgPipeline(
        vae=base.vae,
        text_encoder=None,
        text_encoder_2=base.text_encoder_2,
        tokenizer=None,
        tokenizer_2=base.tokenizer_2,
        unet=unet(TEXT, 5).eval(),
        scheduler=EulerDiscreteScheduler(**SCHEDULER),
        requires_aesthetics_score=True,
        add_watermarker=False,
    )


def saved(pipeline: Any, folder: Path) -> Path:
    pipeline.save_pretrained(folder)
    return folder
