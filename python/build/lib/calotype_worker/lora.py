"""LoRA files: which layer each key means, and the change that it makes to that layer's weight.

Reads the names of PEFT and diffusers (`unet.X.lora_A.weight`, `unet.X.lora.down.weight`) and kohya's (`lora_unet_X`, in
diffusers' or the original checkpoint's names). Changes are summed into copies; the base stays as it is, so that off
again is bit for bit.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from calotype_worker.errors import InvalidInput, ModelLoad
from calotype_worker.weights import WeightFile
from calotype_worker.wire.work import Adapter

SUFFIXES = (
    (".lora_A.weight", "down"),
    (".lora_B.weight", "up"),
    (".lora_A.default.weight", "down"),
    (".lora_B.default.weight", "up"),
    (".lora_down.weight", "down"),
    (".lora_up.weight", "up"),
    (".lora.down.weight", "down"),
    (".lora.up.weight", "up"),
    (".lora_linear_layer.down.weight", "down"),
    (".lora_linear_layer.up.weight", "up"),
    (".alpha", "alpha"),
)
PREFIXES = (
    ("base_model.model.unet.", "unet"),
    ("unet.", "unet"),
    ("transformer.", "unet"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder.", "text_encoder"),
    ("lora_unet_", "unet"),
    ("lora_transformer_", "unet"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te_", "text_encoder"),
)

Parts = Mapping[str, nn.Module]
"""The modules that LoRAs change, by the part that their keys name: `unet` (or a transformer), `text_encoder`, …"""
Spellings = Callable[[str, str], Iterable[str]]
"""Other names of a layer, given its part and its name."""


@dataclass
class Pair:
    """The two matrices of one layer."""

    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    alpha: float | None = None

    def change_for(self, shape: Sequence[int], weight: float) -> "Change":
        """What it does to a layer's weight of this shape; raises `ValueError` where it does not fit."""
        if self.down is None or self.up is None:
            raise ValueError("has only one of its two matrices")
        rank, outputs, inputs = self.down.shape[0], shape[0], math.prod(shape[1:])
        if rank == 0 or self.down.numel() != rank * inputs or self.up.numel() != outputs * rank:
            down, up = list(self.down.shape), list(self.up.shape)
            raise ValueError(f"has shapes {down} and {up}, the weight has {list(shape)}")
        scale = weight * (1.0 if self.alpha is None else self.alpha / rank)
        return Change(self.up.reshape(outputs, rank), self.down.reshape(rank, inputs), scale)


@dataclass(frozen=True)
class Change:
    """`scale * up x down`, not multiplied out: whole changes of a large model would not fit beside it."""

    up: torch.Tensor
    down: torch.Tensor
    scale: float

    def added_to(self, values: torch.Tensor) -> None:
        """Add it to `values`, f32, where they are."""
        product = self.up.to(values.device) @ self.down.to(values.device)
        values += (product * self.scale).reshape(values.shape)


@dataclass(frozen=True)
class Layers:
    """Layers by part and by every name that a file may use for them."""

    names: dict[tuple[str, str], str]

    @staticmethod
    def of(parts: Parts, spellings: Spellings) -> "Layers":
        """All layers of `parts` that have a weight."""
        names = {}
        for part, module in parts.items():
            for name, _ in module.named_parameters():
                layer = name.removesuffix(".weight")
                if layer == name:
                    continue
                bare = layer.removeprefix("text_model.")
                known = {
                    layer,
                    bare,
                    f"text_model.{bare}" if part.startswith("text") else bare,
                    *spellings(part, layer),
                }
                for spelling in known:
                    names[part, spelling] = name
                    names.setdefault((part, spelling.replace(".", "_")), name)
        return Layers(names)

    def find(self, path: str) -> tuple[str, str] | None:
        """The part and the weight that a key means."""
        for prefix, part in PREFIXES:
            layer = path.removeprefix(prefix)
            if layer == path:
                continue
            # Older files name the processor between the attention and its matrix.
            layer = layer.replace(".processor.", ".")
            older = layer.replace("_lora", "")
            for spelling in (layer, older, f"{layer}.0" if layer.endswith("to_out") else older):
                name = self.names.get((part, spelling))
                if name is not None:
                    return part, name
        return None


@dataclass
class Changes:
    """The changes of several LoRAs, by part and name of the tensor; f32 on the host."""

    by_tensor: dict[tuple[str, str], list[Change]] = field(default_factory=dict)

    @staticmethod
    def read(adapters: Sequence[Adapter], parts: Parts, spellings: Spellings) -> "Changes":
        """Read `adapters`, and check that they fit."""
        changes = Changes()
        layers = Layers.of(parts, spellings)
        for adapter in adapters:
            if not math.isfinite(adapter.weight):
                raise InvalidInput(f"the weight of LoRA `{adapter.id}` is not a number")
            for (part, name), pair in _pairs(adapter, layers).items():
                shape = parts[part].get_parameter(name).shape
                try:
                    change = pair.change_for(shape, adapter.weight)
                except ValueError as why:
                    raise InvalidInput(
                        f"the LoRA `{adapter.id}` does not fit this model: `{name}` {why}", f"{adapter.path}: {name}"
                    ) from None
                changes.by_tensor.setdefault((part, name), []).append(change)
        return changes

    def merged(self, part: str, name: str, base: torch.Tensor) -> torch.Tensor:
        """A copy of `base` with the changes added in f32, in the type and on the device of `base`."""
        values = base.float()
        values = values.clone() if values is base else values
        for change in self.by_tensor[part, name]:
            change.added_to(values)
        return values.to(base.dtype)


def _pairs(adapter: Adapter, layers: Layers) -> dict[tuple[str, str], Pair]:
    file = WeightFile(Path(adapter.path))
    pairs: dict[tuple[str, str], Pair] = {}
    for key in sorted(file.names):
        path, piece = next(
            ((key.removesuffix(suffix), piece) for suffix, piece in SUFFIXES if key.endswith(suffix)), (key, "")
        )
        found = layers.find(path) if piece else None
        if found is None:
            raise InvalidInput(
                f"the LoRA `{adapter.id}` does not fit this model: unknown key `{key}`", f"{adapter.path}: {key}"
            )
        pair = pairs.setdefault(found, Pair())
        values = file.read_float(key)
        if piece == "alpha":
            pair.alpha = float(values.reshape(-1)[0]) if values.numel() else None
        else:
            setattr(pair, piece, values)
    if not pairs:
        raise ModelLoad("the LoRA is empty", adapter.path)
    return pairs
