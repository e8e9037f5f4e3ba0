"""The parts of a Stable Diffusion model that become graphs: their modules, inputs, outputs and examples."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

# The fields of each config.json that decide the graph. A field that cannot change it in float32 is left out.
UNET_FIELDS = """
    act_fn addition_embed_type addition_embed_type_num_heads addition_time_embed_dim attention_head_dim attention_type
    block_out_channels center_input_sample class_embed_type class_embeddings_concat conv_in_kernel conv_out_kernel
    cross_attention_dim cross_attention_norm down_block_types downsample_padding dual_cross_attention encoder_hid_dim
    encoder_hid_dim_type flip_sin_to_cos freq_shift in_channels layers_per_block mid_block_only_cross_attention
    mid_block_scale_factor mid_block_type norm_eps norm_num_groups num_attention_heads num_class_embeds
    only_cross_attention out_channels projection_class_embeddings_input_dim resnet_out_scale_factor
    resnet_skip_time_act resnet_time_scale_shift reverse_transformer_layers_per_block time_cond_proj_dim
    time_embedding_act_fn time_embedding_dim time_embedding_type timestep_post_act transformer_layers_per_block
    up_block_types use_linear_projection
""".split()
VAE_FIELDS = """
    act_fn block_out_channels down_block_types in_channels latent_channels layers_per_block mid_block_add_attention
    norm_num_groups out_channels up_block_types use_post_quant_conv use_quant_conv
""".split()
TEXT_FIELDS = """
    hidden_act hidden_size intermediate_size layer_norm_eps max_position_embeddings num_attention_heads
    num_hidden_layers vocab_size
""".split()


class TextEncoder(torch.nn.Module):
    """Token ids to the text's states; `penultimate_state` is what clip skip 2 takes."""

    def __init__(self, model: CLIPTextModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        """Return the normalised last and penultimate states, and the last state at the end token."""
        text = getattr(self.model, "text_model", self.model)
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        future = position[None, :] > position[:, None]
        mask = torch.where(future, torch.finfo(torch.float32).min, 0.0)[None, None]
        state = text.embeddings(input_ids=input_ids)
        previous = state
        for layer in text.encoder.layers:
            previous = state
            state = layer(state, attention_mask=mask)
            state = state[0] if isinstance(state, tuple) else state
        last = text.final_layer_norm(state)
        # CLIP's end token has the highest id.
        end = input_ids.argmax(dim=-1)
        pooled = last[torch.arange(last.shape[0], device=last.device), end]
        return last, text.final_layer_norm(previous), pooled


class UNet(torch.nn.Module):
    """One denoising step; each sample has a timestep of its own."""

    def __init__(self, model: UNet2DConditionModel):
        super().__init__()
        self.model = model

    def forward(self, sample, timestep, encoder_hidden_states):
        """Return the model's output for noisy latents."""
        return self.model(sample, timestep, encoder_hidden_states, return_dict=False)[0]


class VaeDecoder(torch.nn.Module):
    """Unscaled latents to pixels in -1..1."""

    def __init__(self, model: AutoencoderKL):
        super().__init__()
        self.decoder = model.decoder
        self.post_quant_conv = model.post_quant_conv

    def forward(self, latent_sample):
        """Return the picture."""
        if self.post_quant_conv is not None:
            latent_sample = self.post_quant_conv(latent_sample)
        return self.decoder(latent_sample)


class VaeEncoder(torch.nn.Module):
    """Pixels in -1..1 to the mean and log-variance of unscaled latents."""

    def __init__(self, model: AutoencoderKL):
        super().__init__()
        self.encoder = model.encoder
        self.quant_conv = model.quant_conv

    def forward(self, sample):
        """Return mean and log-variance, one after the other along the channels."""
        state = self.encoder(sample)
        return state if self.quant_conv is None else self.quant_conv(state)


@dataclass(frozen=True)
class Component:
    """One graph: where its weights come from, what goes in and what comes out."""

    name: str
    role: str
    kind: type
    fields: list[str]
    wrapper: type
    inputs: dict[str, tuple[str, ...]]
    outputs: dict[str, tuple[str, ...]]
    tolerance: float
    examples: Callable[[dict], list[tuple[torch.Tensor, ...]]]


def text_examples(config: dict) -> list[tuple[torch.Tensor, ...]]:
    """Token ids of two shapes."""
    vocabulary = config["vocab_size"]
    shapes = [(2, 77), (3, 40)]
    return [(torch.randint(0, vocabulary, shape),) for shape in shapes]


def unet_examples(config: dict) -> list[tuple[torch.Tensor, ...]]:
    """Latents of three shapes, with different timesteps and sequence lengths.

    The first has odd sizes, so that the upsamplers take their sizes from the other side and any size works.
    """
    channels, width = config["in_channels"], config["cross_attention_dim"]
    return [
        (torch.randn(2, channels, 31, 29), torch.tensor([999.0, 259.0]), torch.randn(2, 77, width)),
        (torch.randn(3, channels, 16, 24), torch.tensor([7.0, 500.5, 981.0]), torch.randn(3, 154, width)),
        (torch.randn(1, channels, 32, 32), torch.tensor([499.0]), torch.randn(1, 77, width)),
    ]


def decoder_examples(config: dict) -> list[tuple[torch.Tensor, ...]]:
    """Latents of two shapes."""
    channels = config["latent_channels"]
    return [(torch.randn(2, channels, 16, 24) * 2,), (torch.randn(3, channels, 32, 20) * 2,)]


def encoder_examples(config: dict) -> list[tuple[torch.Tensor, ...]]:
    """Pictures of two shapes."""
    channels = config["in_channels"]
    return [(torch.rand(2, channels, 128, 96) * 2 - 1,), (torch.rand(3, channels, 64, 160) * 2 - 1,)]


IMAGE = ("batch", None, "height", "width")
STATES = ("batch", "sequence", None)
COMPONENTS = [
    Component(
        name="text_encoder",
        role="text_encoder",
        kind=CLIPTextModel,
        fields=TEXT_FIELDS,
        wrapper=TextEncoder,
        inputs={"input_ids": ("batch", "sequence")},
        outputs={"last_hidden_state": STATES, "penultimate_state": STATES, "pooler_output": ("batch", None)},
        tolerance=1e-5,
        examples=text_examples,
    ),
    Component(
        name="unet",
        role="unet",
        kind=UNet2DConditionModel,
        fields=UNET_FIELDS,
        wrapper=UNet,
        inputs={"sample": IMAGE, "timestep": ("batch",), "encoder_hidden_states": STATES},
        outputs={"out_sample": IMAGE},
        tolerance=1e-5,
        examples=unet_examples,
    ),
    Component(
        name="vae_decoder",
        role="vae",
        kind=AutoencoderKL,
        fields=VAE_FIELDS,
        wrapper=VaeDecoder,
        inputs={"latent_sample": IMAGE},
        outputs={"sample": IMAGE},
        tolerance=5e-5,
        examples=decoder_examples,
    ),
    Component(
        name="vae_encoder",
        role="vae",
        kind=AutoencoderKL,
        fields=VAE_FIELDS,
        wrapper=VaeEncoder,
        inputs={"sample": IMAGE},
        outputs={"latent_parameters": IMAGE},
        tolerance=5e-5,
        examples=encoder_examples,
    ),
]
