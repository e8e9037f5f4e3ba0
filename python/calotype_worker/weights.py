"""Safetensors files, mapped, and modules built from them. Headers are checked before anything is read by them.

Everything that is wrong with a file is a `ModelLoad` that names the file and the tensor. Pickle files are never opened.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from calotype_worker.errors import ModelLoad

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
USUAL_NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors")
_FLOATS = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_KNOWN = "f32, f16, bf16 and f8 are read"

PIECE_BYTES = 64 << 20
"""Progress is told so often."""

Put = Callable[[torch.Tensor], torch.Tensor]
"""Takes a tensor of the host to the device, in the type to compute with."""


class Place(NamedTuple):
    """A tensor of a module that is to be filled: the part that has it, its name there, and what stands there now."""

    part: nn.Module
    leaf: str
    tensor: torch.Tensor


_instead: ContextVar[tuple[Mapping[Path, Any], set[Path]] | None] = ContextVar("_instead", default=None)


@contextmanager
def read_instead(opened: Mapping[Path, Any]) -> Iterator[set[Path]]:
    """Inside, these places are read from what is open already. Gives those that were, as they are read.

    Each reads as safetensors' open files do, and has a `path` of its own, which errors name.
    """
    used: set[Path] = set()
    token = _instead.set((opened, used))
    try:
        yield used
    finally:
        _instead.reset(token)


def _opened(path: Path) -> Any:
    """What is open in place of a file or folder, or None."""
    opened, used = _instead.get() or ({}, set())
    if path in opened:
        used.add(path)
    return opened.get(path)


def refuse_pickle(path: Path) -> None:
    """Refuse files that run code when they are read."""
    if path.suffix.lower() in PICKLES:
        raise ModelLoad("pickle files are never opened, since they can run code; safetensors are needed", f"{path}")


class WeightFile:
    """A safetensors file whose header was read."""

    def __init__(self, path: Path) -> None:
        opened = _opened(path)
        if opened is None:
            refuse_pickle(path)
        self.path = path = path if opened is None else opened.path
        try:
            opened = opened or safe_open(path, framework="pt", device="cpu")
            self._file = opened
            self.names: list[str] = list(opened.keys())
            self.names_set = frozenset(self.names)
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelLoad("a weights file cannot be read", f"{path}: {error}") from None

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor, from the header."""
        return [int(extent) for extent in self._file.get_slice(name).get_shape()]

    def dtype(self, name: str) -> str:
        """The type of a tensor, from the header."""
        return str(self._file.get_slice(name).get_dtype())

    def metadata(self) -> dict[str, str]:
        """What the file says of itself."""
        return dict(self._file.metadata() or {})

    def read(self, name: str) -> torch.Tensor:
        """A tensor of the host, backed by the file."""
        try:
            tensor: torch.Tensor = self._file.get_tensor(name)
        except (SafetensorError, OSError, ValueError) as error:
            raise self.wrong(name, str(error)) from None
        return tensor

    def read_float(self, name: str) -> torch.Tensor:
        """A tensor of the host as f32."""
        if self.dtype(name) not in _FLOATS:
            raise self.wrong(name, f"has the type {self.dtype(name)}; {_KNOWN}")
        return self.read(name).float()

    def scale(self, name: str) -> float:
        """What a tensor of f8 is to be multiplied with, which some files store beside it; 1 where nothing is."""
        if not self.dtype(name).startswith("F8"):
            return 1.0
        for beside in (f"{name.removesuffix('weight')}scale_weight", f"{name}_scale"):
            if beside in self.names_set:
                scale = self.read_float(beside)
                if scale.numel() != 1:
                    raise self.wrong(beside, f"has the shape {list(scale.shape)}; one number for a tensor is read")
                return float(scale)
        return 1.0

    def wrong(self, name: str, why: str) -> ModelLoad:
        """What is wrong with a tensor."""
        return ModelLoad("the weights are not usable", f"{self.path}: tensor `{name}` {why}")


@dataclass(frozen=True)
class Rows:
    """Rows of a stored tensor that are a parameter by themselves: `start` to `stop`, of `total`."""

    start: int
    stop: int
    total: int


@dataclass(frozen=True)
class Source:
    """Where a parameter is stored: a tensor of a file, or some of its rows, its transpose, its exchanged halves."""

    file: WeightFile
    name: str
    rows: Rows | None = None
    transposed: bool = False
    swapped: bool = False

    def shape(self) -> list[int]:
        """The parameter's shape, from the header."""
        shape = self.file.shape(self.name)
        if self.rows is not None:
            if shape[:1] != [self.rows.total]:
                raise self.file.wrong(self.name, f"has the shape {shape}; {self.rows.total} rows were expected")
            return [self.rows.stop - self.rows.start, *shape[1:]]
        return shape[::-1] if self.transposed else shape

    def read(self) -> torch.Tensor:
        """The parameter on the host, without its scale."""
        tensor = self.file.read(self.name)
        if self.rows is not None:
            return tensor[self.rows.start : self.rows.stop]
        if self.swapped:
            return torch.cat(tensor.chunk(2)[::-1])
        return tensor.T.contiguous() if self.transposed else tensor


class Store(Protocol):
    """Knows where the parameters of a module are stored."""

    path: Path

    def find(self, name: str) -> Source | None:
        """Where a parameter is."""


class Weights:
    """All files of one component: one file, or the shards of a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        paths = [path]
        if _opened(path) is None and path.is_dir():
            usual = [path / name for name in USUAL_NAMES if (path / name).is_file()]
            paths = usual[:1] or sorted(path.glob("*.safetensors"))
            if not paths:
                for pickle in sorted(path.iterdir()):
                    refuse_pickle(pickle)
                raise ModelLoad("the model has no weights", f"{path}: no safetensors file")
        self.files = [WeightFile(path) for path in paths]
        if len(paths) == 1:
            self.path = self.files[0].path
        self.where = {name: file for file in self.files for name in file.names}

    def find(self, name: str) -> Source | None:
        """Where a parameter is, under any of the names that it has had."""
        for spelling in other_names(name):
            file = self.where.get(spelling)
            if file is not None:
                return Source(file, spelling)
        return None


def other_names(name: str) -> list[str]:
    """The names that a tensor has had: today's, the attention of older VAEs, text encoders with or without prefix."""
    names = [name]
    if ".attentions." in name:
        older = name
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            older = older.replace(f".{new}.", f".{old}.")
        names.append(older)
    bare = name.removeprefix("text_model.")
    names += [bare, f"text_model.{bare}"]
    if bare == "shared.weight":  # T5 stores its embedding once, under either name.
        names.append("encoder.embed_tokens.weight")
    if bare == "encoder.embed_tokens.weight":
        names.append("shared.weight")
    return names


def _squeezed(shape: list[int]) -> list[int]:
    # Older files keep 1x1 convolutions where newer ones have matrices.
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules built inside have parameters without memory; buffers, which no file holds, are real."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    for name in FILLS:
        setattr(torch.Tensor, name, _unless_meta(getattr(torch.Tensor, name)))
    try:
        yield
    finally:
        for name in FILLS:
            delattr(torch.Tensor, name)
        nn.Module.register_parameter = register  # type: ignore[method-assign]


FILLS = ("normal_", "uniform_", "zero_", "fill_")
"""What modules begin their parameters with. Without memory there is nothing to fill, and to find that out is half of
the time that building them takes."""


def _unless_meta(fill: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def filled(tensor: torch.Tensor, *values: Any, **named: Any) -> torch.Tensor:
        return tensor if tensor.is_meta else fill(tensor, *values, **named)

    return filled


class Binding:
    """A module without weights and the files that they are in; checked when it is made, filled when it is told."""

    def __init__(self, module: nn.Module, weights: Store) -> None:
        self.module = module
        self.parts = [(f"{name}." if name else "", part) for name, part in module.named_modules()]
        self.found: list[tuple[Place, Source]] = []
        for name, place in _places(self.parts):
            tensor, source = place.tensor, weights.find(name)
            if source is None:
                if not isinstance(tensor, nn.Parameter) and not tensor.is_meta:
                    continue  # A table that the module has computed.
                raise ModelLoad(
                    "the weights do not fit the model's config", f"{weights.path}: tensor `{name}` is missing"
                )
            file, spelling, shape = source.file, source.name, source.shape()
            if shape != list(tensor.shape) and _squeezed(shape) != _squeezed(list(tensor.shape)):
                raise ModelLoad(
                    "the weights do not fit the model's config",
                    f"{file.path}: tensor `{spelling}` has the shape {shape}, not {list(tensor.shape)}",
                )
            if file.dtype(spelling) not in _FLOATS:
                raise file.wrong(spelling, f"has the type {file.dtype(spelling)}; {_KNOWN}")
            self.found.append((place, source))

    def elements(self) -> int:
        """Numbers in all."""
        return sum(place.tensor.numel() for place, _ in self.found)

    def shapes(self) -> list[torch.Size]:
        """Of what `fill` puts, in its order."""
        return [place.tensor.shape for place, _ in self.found]

    def fill(self, put: Put, progress: Callable[[int], None]) -> nn.Module:
        """Read the weights; `progress` hears of the bytes of each piece. Gives the module, ready to compute."""
        pending = 0
        for (part, leaf, blank), source in self.found:
            tensor = put(source.read().reshape(blank.shape))
            scale = source.file.scale(source.name)
            if scale != 1.0:
                # On the device, and exact: f8 has no bit that the type to compute with has not.
                tensor = tensor.mul_(scale)
            if isinstance(blank, nn.Parameter):
                part._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
            else:
                part._buffers[leaf] = tensor
            pending += tensor.nbytes
            if pending >= PIECE_BYTES:
                progress(pending)
                pending = 0
        progress(pending)
        self.found.clear()
        return self.module


def _places(parts: Sequence[tuple[str, nn.Module]]) -> Iterator[tuple[str, Place]]:
    """What a file may hold of a module: its parameters, each once, and tables like SD3's positions."""
    seen: set[nn.Parameter] = set()
    for prefix, part in parts:
        for leaf, parameter in part._parameters.items():
            if parameter is not None and parameter not in seen:
                seen.add(parameter)
                yield prefix + leaf, Place(part, leaf, parameter)
    for prefix, part in parts:
        for leaf, buffer in part._buffers.items():
            if buffer is None or leaf in part._non_persistent_buffers_set:
                continue
            if buffer.is_floating_point():
                yield prefix + leaf, Place(part, leaf, buffer)
