"""Linear layers of one input, computed as one matrix product where their weights lie one after the other in memory.

An attention makes queries, keys and values of the same tokens, whose reading takes longer than the products. Each layer
keeps its parameter, a view of the joined memory; a LoRA puts tensors of its own in their places, and the layers compute
by themselves until it is gone again.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from calotype_worker.kernels.serve import serves


def join(layers: Sequence[nn.Linear]) -> None:
    """Lay the weights of these layers one after the other, where they can be one product."""
    inputs, kinds = {layer.in_features for layer in layers}, {layer.weight.dtype for layer in layers}
    if len(inputs) > 1 or len(kinds) > 1 or any(type(layer) is not nn.Linear or _is_biased(layer) for layer in layers):
        return
    whole = torch.cat([layer.weight.data for layer in layers])
    for layer, part in zip(layers, torch.split(whole, [layer.out_features for layer in layers])):
        layer.weight.data = part


def outputs(layers: Sequence[Any], input: torch.Tensor) -> Sequence[torch.Tensor]:
    """What each layer makes of `input`, `[..., inputs]`."""
    whole = _joined(layers, input) if serves(input) else None
    if whole is None:
        return [layer(input) for layer in layers]
    return torch.split(functional.linear(input, whole), [layer.out_features for layer in layers], dim=-1)


def _joined(layers: Sequence[Any], input: torch.Tensor) -> torch.Tensor | None:
    first = layers[0].weight
    memory, end = first.untyped_storage().data_ptr(), first.storage_offset()
    for layer in layers:
        weight = layer.weight
        beside = weight.untyped_storage().data_ptr() == memory and weight.storage_offset() == end
        # Weights that wait on the host are taken to the device by the layer itself.
        if not beside or weight.device != input.device or not weight.is_contiguous() or _is_biased(layer):
            return None
        end += weight.numel()
    rows = sum(layer.out_features for layer in layers)
    whole: torch.Tensor = first.as_strided((rows, first.shape[1]), (first.shape[1], 1))
    return whole


def _is_biased(layer: nn.Linear) -> bool:
    return layer.bias is not None
