"""LoRA files: which layer each key means, and the change that it makes to that layer's weight.

Reads the names of PEFT and diffusers (`unet.X.lora_A.weight`, `unet.X.lora.down.weight`) and of kohya (`lora_unet_X`),
each in diffusers' or the original checkpoint's names, and those of XLabs. What the original stores as one layer, like
query, key and value, is changed as one: each of diffusers' layers takes its rows. Changes are summed into copies; the
base stays as it is, so that off again is bit for bit.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from calotype_worker.errors import InvalidInput, ModelLoad
from calotype_worker.mmdit import Stored
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
    # Of processors' layers, which say in their own names what they are.
    (".down.weight", "down"),
    (".up.weight", "up"),
    (".alpha", "alpha"),
)
PREFIXES = (
    ("base_model.model.unet.", "unet"),
    ("base_model.model.", "unet"),
    ("unet.", "unet"),
    ("transformer.", "unet"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder.", "text_encoder"),
    ("lora_unet_", "unet"),
    ("lora_transformer_", "unet"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te_", "text_encoder"),
    ("diffusion_model.", "unet"),
    ("", "unet"),
)

Parts = Mapping[str, nn.Module]
"""The modules that LoRAs change, by the part that their keys name: `unet` (or a transformer), `text_encoder`, …"""
Spellings = Callable[[str, str], Iterable[Stored]]
"""How a layer is stored elsewhere, given its part and its name."""


@dataclass(frozen=True)
class Target:
    """A weight that a key means; `share` and `swapped` are those of `Stored`."""

    part: str
    name: str
    share: tuple[int, int, int] | None = None
    swapped: bool = False


@dataclass
class Pair:
    """The two matrices of one layer."""

    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    alpha: float | None = None

    def part_for(self, target: Target) -> "Pair":
        """What of it concerns one of the weights that are changed together; raises `ValueError` where there is none."""
        up = self.up
        if up is not None and target.share is not None:
            begin, end, total = target.share
            width, rest = divmod(len(up), total)
            if rest:
                raise ValueError(f"is one of {total} equal parts, and there are {len(up)} rows")
            up = up[begin * width : end * width].clone()
        if up is not None and target.swapped:
            up = torch.cat(up.chunk(2)[::-1])
        return Pair(self.down, up, self.alpha)

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

    names: dict[tuple[str, str], tuple[Target, ...]]

    @staticmethod
    def of(parts: Parts, spellings: Spellings) -> "Layers":
        """All layers of `parts` that have a weight."""
        dotted: dict[tuple[str, str], tuple[Target, ...]] = {}
        flat: dict[tuple[str, str], tuple[Target, ...]] = {}
        for part, module in parts.items():
            for name, _ in module.named_parameters():
                layer = name.removesuffix(".weight")
                if layer == name:
                    continue
                bare = layer.removeprefix("text_model.")
                known = {layer, bare, f"text_model.{bare}" if part.startswith("text") else bare}
                for stored in (*map(Stored, known), *spellings(part, layer)):
                    target = Target(part, name, stored.share, stored.swapped)
                    for names, spelling in ((dotted, stored.name), (flat, stored.name.replace(".", "_"))):
                        together = names.get((part, spelling), ()) if stored.share is not None else ()
                        if together or (part, spelling) not in names:
                            names[part, spelling] = (*together, target)
        return Layers(flat | dotted)

    def find(self, path: str) -> tuple[Target, ...]:
        """The weights that a key means; none where it is unknown."""
        for prefix, part in PREFIXES:
            if not path.startswith(prefix):
                continue
            stored = path.removeprefix(prefix)
            # Older files name the processor between the attention and its matrix.
            layer = stored.replace(".processor.", ".")
            older = layer.replace("_lora", "")
            for spelling in (stored, layer, older, f"{layer}.0" if layer.endswith("to_out") else older):
                targets = self.names.get((part, spelling))
                if targets is not None:
                    return targets
        return ()


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
            found = ((target, pair) for targets, pair in _pairs(adapter, layers).items() for target in targets)
            for target, pair in found:
                part, name = target.part, target.name
                shape = parts[part].get_parameter(name).shape
                try:
                    change = pair.part_for(target).change_for(shape, adapter.weight)
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


def _pairs(adapter: Adapter, layers: Layers) -> dict[tuple[Target, ...], Pair]:
    file = WeightFile(Path(adapter.path))
    pairs: dict[tuple[Target, ...], Pair] = {}
    for key in sorted(file.names):
        path, piece = next(
            ((key.removesuffix(suffix), piece) for suffix, piece in SUFFIXES if key.endswith(suffix)), (key, "")
        )
        found = layers.find(path) if piece else ()
        if not found:
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
