"""A model's files, whatever their layout: configs, tokenizers, and where the parameters of each component are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from calotype_worker.pipelines.checkpoint import CONFIGS, Checkpoint
from calotype_worker.pipelines.parts import Config, config_of, place
from calotype_worker.prompt import Tokenizer
from calotype_worker.weights import Store, Weights
from calotype_worker.wire.down import ModelSpec


class Files(Protocol):
    """Where a model's parts lie."""

    def scheduler(self) -> Mapping[str, Any]:
        """The noise schedule of the training."""

    def tokenizer(self, role: str) -> Tokenizer:
        """The tokenizer of a text encoder."""

    def config(self, role: str) -> Config:
        """A component's config."""

    def store(self, role: str) -> Store:
        """Where a component's parameters are."""

    def where(self, role: str) -> str:
        """What to name when something is wrong with a component."""

    def has(self, role: str) -> bool:
        """Whether the model has such a component."""

    def tokenizer_folder(self, role: str) -> Path:
        """Where the tokenizer of a text encoder lies."""


class Folder:
    """A diffusers folder; single components may lie elsewhere."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec

    def scheduler(self) -> Mapping[str, Any]:
        """From `scheduler_config.json`."""
        return config_of(place(self._spec, "scheduler"), "scheduler_config.json")

    def tokenizer(self, role: str) -> Tokenizer:
        """From the folder that is numbered like the encoder's."""
        return Tokenizer(self.tokenizer_folder(role))

    def config(self, role: str) -> Config:
        """From `config.json`."""
        return config_of(place(self._spec, role))

    def store(self, role: str) -> Store:
        """The safetensors files of the component's folder."""
        return Weights(place(self._spec, role))

    def where(self, role: str) -> str:
        """The component's folder."""
        return str(place(self._spec, role))

    def has(self, role: str) -> bool:
        """Whether its folder is there."""
        return place(self._spec, role).is_dir()

    def tokenizer_folder(self, role: str) -> Path:
        """Numbered like the encoder's."""
        return place(self._spec, role.replace("text_encoder", "tokenizer"))


class SingleFile:
    """A checkpoint; components that are given as folders replace its own."""

    def __init__(self, spec: ModelSpec) -> None:
        self._checkpoint = Checkpoint(spec)
        own = {role: path for role, path in spec.components.items() if role not in ("root", "checkpoint")}
        self._swapped = {role: Path(path) for role, path in own.items()}

    def scheduler(self) -> Mapping[str, Any]:
        """What the file says, or its architecture's."""
        return self._checkpoint.scheduler()

    def tokenizer(self, role: str) -> Tokenizer:
        """CLIP's."""
        return self._checkpoint.tokenizer(role)

    def config(self, role: str) -> Config:
        """The architecture's."""
        if role in self._swapped:
            return config_of(self._swapped[role])
        config: Config = self._checkpoint.configs[role]
        return config

    def store(self, role: str) -> Store:
        """A part of the file."""
        return Weights(self._swapped[role]) if role in self._swapped else self._checkpoint.part(role)

    def where(self, role: str) -> str:
        """The file, or the component in its place."""
        return str(self._swapped.get(role, self._checkpoint.file.path))

    def has(self, role: str) -> bool:
        """Whether the architecture has it."""
        return role in self._swapped or role in self._checkpoint.configs

    def tokenizer_folder(self, role: str) -> Path:
        """CLIP's, unless another is given."""
        return self._swapped.get(role.replace("text_encoder", "tokenizer"), CONFIGS / "clip_tokenizer")


def files_of(spec: ModelSpec) -> Files:
    """The files of a model in its format."""
    return SingleFile(spec) if spec.format == "checkpoint" else Folder(spec)
