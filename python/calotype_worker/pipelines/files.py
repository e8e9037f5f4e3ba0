"""A model's files, whatever their layout: configs, tokenizers, and where the parameters of each component are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from calotype_worker.errors import ModelLoad
from calotype_worker.pipelines.checkpoint import BY_CONTEXT, Checkpoint, configs_of
from calotype_worker.pipelines.given import Given, t5_tokenizer
from calotype_worker.pipelines.parts import Config, config_of, place
from calotype_worker.prompt import Tokenizer
from calotype_worker.weights import Store
from calotype_worker.wire.down import ModelSpec


class Files(Protocol):
    """Where a model's parts lie."""

    def scheduler(self) -> Mapping[str, Any]:
        """The noise schedule of the training."""

    def tokenizer(self, role: str) -> Tokenizer:
        """The tokenizer of a CLIP text encoder."""

    def config(self, role: str) -> Config:
        """A component's config."""

    def store(self, role: str) -> Store:
        """Where a component's parameters are."""

    def where(self, role: str) -> str:
        """What to name when something is wrong with a component."""

    def has(self, role: str) -> bool:
        """Whether the model has such a component."""

    def t5_tokenizer(self, role: str) -> Path:
        """The folder or file of the tokenizer of a T5 encoder."""


class Folder:
    """A diffusers folder; single components may lie elsewhere, as folders or as files."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec

    def scheduler(self) -> Mapping[str, Any]:
        """From `scheduler_config.json`."""
        return config_of(place(self._spec, "scheduler"), "scheduler_config.json")

    def tokenizer(self, role: str) -> Tokenizer:
        """From the folder that is numbered like the encoder's."""
        return Tokenizer(place(self._spec, role.replace("text_encoder", "tokenizer")))

    def config(self, role: str) -> Config:
        """From `config.json`; a loose file has what the model had in its place."""
        return self._given(role).config()

    def store(self, role: str) -> Store:
        """The safetensors files of the component's folder, or the one file."""
        return self._given(role).store()

    def where(self, role: str) -> str:
        """The component's folder or file."""
        return str(place(self._spec, role))

    def has(self, role: str) -> bool:
        """Whether it is named, or lies in the folder."""
        return role in self._spec.components or place(self._spec, role).is_dir()

    def t5_tokenizer(self, role: str) -> Path:
        """The model's own where nothing else is given."""
        own = self._own(role.replace("text_encoder", "tokenizer"))
        return t5_tokenizer(role, self._spec.components, place(self._spec, role), own, self.config(role))

    def _own(self, role: str) -> Path | None:
        root = self._spec.components.get("root")
        return None if root is None else Path(root) / role

    def _given(self, role: str) -> Given:
        return Given(role, place(self._spec, role), lambda: self._usual(role))

    def _usual(self, role: str) -> Config:
        """The config of the model's own component, or its family's."""
        own = self._own(role)
        if own is not None and (own / "config.json").is_file():
            return loose_config(self._spec, role, config_of(own))
        usual = configs_of(self._architecture())
        if role not in usual:
            raise ModelLoad("a model's config cannot be read", f"{self.where(role)}: no config.json beside it")
        return loose_config(self._spec, role, usual[role])

    def _architecture(self) -> str:
        if self._spec.family != "sd":
            return self._spec.family
        width = self.config("unet").get("cross_attention_dim")
        return BY_CONTEXT.get(width, "sd15") if isinstance(width, int) else "sd15"


class SingleFile:
    """A checkpoint; components that are given by themselves replace its own."""

    def __init__(self, spec: ModelSpec) -> None:
        self._checkpoint = Checkpoint(spec)
        self._spec = spec
        own = {role: path for role, path in spec.components.items() if role not in ("root", "checkpoint")}
        self._given = {role: Given(role, Path(path), self._usual_of(role)) for role, path in own.items()}

    def scheduler(self) -> Mapping[str, Any]:
        """What the file says, or its architecture's."""
        return self._checkpoint.scheduler()

    def tokenizer(self, role: str) -> Tokenizer:
        """CLIP's."""
        return self._checkpoint.tokenizer(role)

    def config(self, role: str) -> Config:
        """The architecture's, or that of the component in its place."""
        return self._given[role].config() if role in self._given else self._checkpoint.config(role)

    def store(self, role: str) -> Store:
        """A part of the file, or the component in its place."""
        return self._given[role].store() if role in self._given else self._checkpoint.part(role)

    def where(self, role: str) -> str:
        """The file, or the component in its place."""
        return str(self._given[role].path if role in self._given else self._checkpoint.file.path)

    def has(self, role: str) -> bool:
        """Whether the file has it or it is given."""
        return role in self._given or self._checkpoint.has(role)

    def t5_tokenizer(self, role: str) -> Path:
        """Beside the encoder, or the checkpoint that it is in, or the package's."""
        return t5_tokenizer(role, self._spec.components, Path(self.where(role)), None, self.config(role))

    def _usual_of(self, role: str) -> Any:
        def usual() -> Config:
            return loose_config(self._spec, role, self._checkpoint.configs[role])

        return usual


def loose_config(spec: ModelSpec, role: str, config: Config) -> Config:
    """The config of a loose file: SD3's first encoder has no projection there, where its folder has the identity."""
    if spec.family == "sd3" and role == "text_encoder":
        return {**config, "architectures": ["CLIPTextModel"]}
    return config


def files_of(spec: ModelSpec) -> Files:
    """The files of a model in its format."""
    return SingleFile(spec) if spec.format == "checkpoint" else Folder(spec)
