"""Small models with random weights in the shapes of each family, as diffusers folders."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

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


def text_encoder(projected: bool, layers: int = 3, width: int = TEXT) -> Any:
    config = CLIPTextConfig(
        vocab_size=8150,
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=8148,
        eos_token_id=8149,
        pad_token_id=8149,
        projection_dim=width,
        hidden_act="gelu" if projected else "quick_gelu",
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def vae(blocks: int = 2, **changes: Any) -> Any:
    """Of two blocks: a latent is 2x2 pixels; of four: 8x8, as in real ones."""
    return AutoencoderKL(
        block_out_channels=[16] * (blocks - 1) + [32],
        layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * blocks,
        up_block_types=["UpDecoderBlock2D"] * blocks,
        latent_channels=4,
        norm_num_groups=8,
        **changes,
    )


def unet_config(cross: int, times: int | None, pooled: int = TEXT) -> dict[str, Any]:
    """A UNet of two blocks; `times` numbers of sizes for SDXL beside `pooled` of the text, None for SD."""
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
            "projection_class_embeddings_input_dim": pooled + times * TIME_EMBED,
            "use_linear_projection": True,
        }
    return config


def unet(cross: int, times: int | None, pooled: int = TEXT, **changes: Any) -> Any:
    config = unet_config(cross, times, pooled) | changes
    return UNet2DConditionModel(out_channels=4, up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"], **config)


def controlnet(
    cross: int, times: int | None, seed: int, zero: bool, pooled: int = TEXT, picture: tuple[int, ...] = (4, 8)
) -> Any:
    """`picture`: channels on the way from pixels to latents, each but the first halves the edges."""
    torch.manual_seed(seed)
    config = unet_config(cross, times, pooled)
    net = ControlNetModel(**config, conditioning_embedding_out_channels=list(picture))
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


FLOW = {"num_train_timesteps": 1000, "shift": 3.0}
DYNAMIC_FLOW = {
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


def t5() -> Any:
    config = T5Config(
        vocab_size=64, d_model=TEXT, d_kv=8, d_ff=37, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=1
    )
    return T5EncoderModel(config).eval()


def t5_tokenizer() -> Any:
    """A tokenizer of a few words that looks like T5's to those who use it."""
    words = ["<pad>", "</s>", "<unk>", "a", "red", "apple", "cat", "blurry"]
    inner = Tokenizer(WordLevel({word: id for id, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    inner.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def flow_vae() -> Any:
    return vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5)


def sd3(with_t5: bool, heads: int = 4, head: int = 8, **changes: Any) -> Any:
    torch.manual_seed(3)
    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=head,
        num_attention_heads=heads,
        caption_projection_dim=heads * head,
        joint_attention_dim=2 * TEXT,
        pooled_projection_dim=2 * TEXT,
        out_channels=4,
        pos_embed_max_size=96,
        **changes,
    )
    wide = None
    if with_t5:
        config = T5Config(vocab_size=64, d_model=2 * TEXT, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
        wide = T5EncoderModel(config).eval()
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        vae=flow_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(**FLOW),
        text_encoder=text_encoder(True).eval(),
        text_encoder_2=text_encoder(True).eval(),
        text_encoder_3=wide,
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        tokenizer_3=t5_tokenizer() if with_t5 else None,
    )


def flux(guided: bool, heads: int = 2, axes: tuple[int, int, int] = (4, 4, 8), layers: int = 1) -> Any:
    torch.manual_seed(4)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=layers,
        num_single_layers=layers,
        attention_head_dim=sum(axes),
        num_attention_heads=heads,
        joint_attention_dim=TEXT,
        pooled_projection_dim=TEXT,
        axes_dims_rope=axes,
        guidance_embeds=guided,
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**(DYNAMIC_FLOW if guided else {"shift": 1.0})),
        vae=flow_vae(),
        text_encoder=text_encoder(False).eval(),
        tokenizer=tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer.eval(),
    )
