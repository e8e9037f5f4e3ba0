"""The four parts, in the standard Stable Diffusion layout."""

import json

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

TEXT_DIM, TEXT_LAYERS, TEXT_HEADS, MAX_LEN = 240, 4, 5, 77
SCHEDULE = dict(
    num_train_timesteps=1000,
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.02,
    prediction_type="v_prediction",
    timestep_spacing="trailing",
)


def build_vae():
    """Return a new VAE."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=16,
        sample_size=256,
        scaling_factor=1.0,
        force_upcast=False,
    )


def build_unet():
    """Return a new UNet.

    Depth is spent at 16x16 and 8x8 (two layers a block, three on the way up), where it is cheap; 32x32 has one.
    diffusers calls the numbers of heads attention_head_dim.
    """
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 144, 160),
        layers_per_block=(1, 2, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 6, 5),
        cross_attention_dim=TEXT_DIM,
        norm_num_groups=16,
    )


def build_text(tokenizer_dir):
    """Return a new text encoder for a tokenizer's vocabulary."""
    vocab = json.load(open(f"{tokenizer_dir}/vocab.json"))
    bos, eos = vocab["<|startoftext|>"], vocab["<|endoftext|>"]
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocab),
            hidden_size=TEXT_DIM,
            intermediate_size=4 * TEXT_DIM,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=TEXT_HEADS,
            max_position_embeddings=MAX_LEN,
            hidden_act="quick_gelu",
            projection_dim=384,
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=eos,
        )
    )


def text_forward(m, ids):
    """What CLIPTextModel computes, written out flat so that it compiles into one graph.

    Returns (hidden states, pooled at the first end token).
    """
    import torch
    import torch.nn.functional as F

    m = getattr(m, "text_model", m)
    n, length = ids.shape
    h = m.embeddings.token_embedding.weight[ids] + m.embeddings.position_embedding.weight[:length]
    for b in m.encoder.layers:
        a = b.self_attn
        x = b.layer_norm1(h)
        q, k, v = (p(x).view(n, length, TEXT_HEADS, -1).transpose(1, 2) for p in (a.q_proj, a.k_proj, a.v_proj))
        h = h + a.out_proj(
            F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, length, -1)
        )
        x = b.mlp.fc1(b.layer_norm2(h))
        h = h + b.mlp.fc2(x * torch.sigmoid(1.702 * x))
    h = m.final_layer_norm(h)
    end = (ids == m.config.eos_token_id).int().argmax(-1)
    return h, h[torch.arange(n, device=ids.device), end]
