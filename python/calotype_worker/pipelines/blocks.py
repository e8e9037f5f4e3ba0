"""Diffusers' blocks once more: the same parameters, names and results, in fewer passes over memory."""

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.nn import functional

from calotype_worker.kernels.geglu import gated, projected
from calotype_worker.kernels.layer_norm import normed_with
from calotype_worker.kernels.pixels import doubled, total
from calotype_worker.kernels.serve import serves


class Resnet(ResnetBlock2D):  # type: ignore[misc]
    """A residual block whose norms take in the time embedding, biases of convolutions and SiLU."""

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
        """The input and what two convolutions make of it, summed."""
        time = None
        if self.time_emb_proj is not None and temb is not None:
            time = self.time_emb_proj(temb if self.skip_time_act else functional.silu(temb))
        hidden, left = self.conv1(self.norm1(input_tensor))
        hidden, left = self.conv2(self.norm2(hidden, time, left))
        straight = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        summed = total(hidden, left, straight)
        # Mostly 1: a division would read and write everything once more.
        return summed if self.output_scale_factor == 1.0 else summed / self.output_scale_factor


class Transformer2D(Transformer2DModel):  # type: ignore[misc]
    """Transformer blocks over pixels: tokens are the channels-last picture, seen otherwise."""

    def _get_output_for_continuous_inputs(
        self,
        hidden_states: torch.Tensor,
        residual: torch.Tensor,
        batch_size: int,
        height: int,
        width: int,
        inner_dim: int,
    ) -> torch.Tensor:
        if self.use_linear_projection:
            hidden_states = self.proj_out(hidden_states)
        picture = hidden_states.reshape(batch_size, height, width, -1).permute(0, 3, 1, 2)
        if not self.use_linear_projection:
            picture = self.proj_out(picture)
        return total(picture, None, residual)


class TransformerBlock(BasicTransformerBlock):  # type: ignore[misc]
    """Attention to itself, to the text, and a gated layer; the norms add what comes before them."""

    adds_in_place = False
    """Whether its layers are those that `_in_place` knows."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        timestep: Any = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Any = None,
        added_cond_kwargs: Any = None,
    ) -> torch.Tensor:
        """`hidden_states` is `[n, tokens, width]`; it may be written to, since only the next layer needs it."""
        more = cross_attention_kwargs or {}
        unmasked = attention_mask is None and encoder_attention_mask is None and not more
        if self.adds_in_place and unmasked and not self.only_cross_attention and self._stays(hidden_states):
            return self._in_place(hidden_states.contiguous(), encoder_hidden_states)
        seen = encoder_hidden_states if self.only_cross_attention else None
        normed = self.norm1(hidden_states)
        attended = self.attn1(normed, encoder_hidden_states=seen, attention_mask=attention_mask, **more)
        hidden_states, normed = self.norm2(attended, hidden_states)
        attended = self.attn2(
            normed, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask, **more
        )
        hidden_states, normed = self.norm3(attended, hidden_states)
        fed: torch.Tensor = self.ff(normed)
        return fed + hidden_states

    def _stays(self, hidden: torch.Tensor) -> bool:
        layers = self.attn1.to_out[0], self.attn2.to_out[0], self.ff.net[2]
        # A plan may have attention computed in slices.
        attends = all(isinstance(attention.processor, Attend) for attention in (self.attn1, self.attn2))
        return serves(hidden) and attends and not any(comes_and_goes(layer) for layer in layers)

    def _in_place(self, hidden: torch.Tensor, states: torch.Tensor | None) -> torch.Tensor:
        """Matrix products add to the residual themselves, for nothing; the norms after them add the biases."""
        one, two, fed = self.attn1.to_out[0], self.attn2.to_out[0], self.ff.net[2]
        _add_product(hidden, attended(self.attn1, self.norm1(hidden), None, None), one)
        _add_product(hidden, attended(self.attn2, normed_with(hidden, [one.bias], self.norm2), states, None), two)
        normed = normed_with(hidden, [one.bias, two.bias], self.norm3, then=fed.bias)
        _add_product(hidden, self.ff.net[0](normed), fed)
        return hidden


def comes_and_goes(layer: nn.Module) -> bool:
    """Whether a layer's weights may be on the device during its own `forward` only."""
    return bool(layer._forward_pre_hooks)


def _add_product(sum: torch.Tensor, rows: torch.Tensor, layer: nn.Linear) -> None:
    sum.flatten(0, -2).addmm_(rows.flatten(0, -2), layer.weight.t())


class Gated(GEGLU):  # type: ignore[misc]
    """A gated unit that reads its projection once."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        if comes_and_goes(self.proj):
            return gated(self.proj(hidden_states))
        return projected(hidden_states, self.proj)


class Upsample(Upsample2D):  # type: ignore[misc]
    """Twice the size by nearest neighbours, and a convolution."""

    def forward(self, hidden_states: torch.Tensor, output_size: Any = None) -> torch.Tensor:
        """`hidden_states` is `[n, channels, height, width]`; `output_size` is another size than twice."""
        height, width = hidden_states.shape[-2:]
        wide = doubled(hidden_states) if output_size in (None, (2 * height, 2 * width)) else None
        result: torch.Tensor = Upsample2D.forward(self, hidden_states, output_size) if wide is None else self.conv(wide)
        return result


def attended(attn: Any, tokens: torch.Tensor, states: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
    """Attention to `states`, or to the tokens themselves, before the projection of its output: `[n, tokens, width]`."""
    states = tokens if states is None else states
    if mask is not None:
        mask = attn.prepare_attention_mask(mask, states.shape[1], len(states))
        mask = mask.view(len(states), attn.heads, -1, mask.shape[-1])

    def heads(rows: torch.Tensor) -> torch.Tensor:
        return rows.view(*rows.shape[:-1], attn.heads, -1).transpose(1, 2)

    query, key, value = heads(attn.to_q(tokens)), heads(attn.to_k(states)), heads(attn.to_v(states))
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)


class Attend:
    """Attention as diffusers computes it, without a division by 1 and a copy of the picture after it."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`hidden_states` is `[n, tokens, width]` or `[n, width, height, width of the picture]`."""
        picture = hidden_states if hidden_states.ndim == 4 else None
        tokens = hidden_states
        if attn.group_norm is not None:
            tokens = attn.group_norm(tokens)
        if picture is not None:
            tokens = tokens.permute(0, 2, 3, 1).flatten(1, 2)
        output = attended(attn, tokens, encoder_hidden_states, attention_mask)
        for layer in attn.to_out:
            output = layer(output)
        if picture is not None:
            height, width = picture.shape[2:]
            output = output.view(len(output), height, width, -1).permute(0, 3, 1, 2)
        return output + hidden_states if attn.residual_connection else output
