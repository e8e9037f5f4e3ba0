"""Components that are given by themselves, in a model's place of its own: a folder with its config, or one file.

A loose file says nothing of its architecture: it is taken for what the model has in that role, and what does not fit is
said when the shapes are compared. A `config.json` beside it is believed where it describes such a component.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from calotype_worker.errors import ModelLoad
from calotype_worker.pipelines import layouts
from calotype_worker.pipelines.layouts import Config, is_t5
from calotype_worker.pipelines.parts import config_of
from calotype_worker.t5 import BUNDLED, BUNDLED_ROWS
from calotype_worker.weights import PICKLES, Store, WeightFile, Weights

TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
DENOISERS = ("UNet2DConditionModel", "Transformer2DModel")
"""How the classes of UNets and transformers end."""


def is_file(path: Path) -> bool:
    """Whether a path is meant as a file, there or not."""
    return path.is_file() or (not path.is_dir() and path.suffix.lower() in (".safetensors", *PICKLES))


class Given:
    """A component by itself."""

    def __init__(self, role: str, path: Path, usual: Callable[[], Config]) -> None:
        """`usual` is the config of what the model has in this role; only a loose file asks for it."""
        self.role = role
        self.path = path
        self._usual = usual

    def config(self) -> Config:
        """The folder's, the one beside the file, or the usual one."""
        if not is_file(self.path):
            return config_of(self.path)
        own = self._beside()
        return self._usual() if own is None else own

    def store(self) -> Store:
        """The folder's files, or the one file in any of the usual layouts."""
        if not is_file(self.path):
            return Weights(self.path)
        if self.role in ("unet", "transformer"):
            return Weights(self.path)
        return layouts.layout(WeightFile(self.path), self.role, self.config())

    def _beside(self) -> Config | None:
        if not (self.path.parent / "config.json").is_file():
            return None
        own = config_of(self.path)
        if self.role == "vae":
            return own if own.get("_class_name") == "AutoencoderKL" else None
        if self.role.startswith("text_encoder"):
            fits = ("hidden_size" in own or is_t5(own)) and is_t5(own) == is_t5(self._usual())
            return own if fits else None
        # Of what else lies there a denoiser's config says its class.
        return own if str(own.get("_class_name", "")).endswith(DENOISERS) else None


def t5_tokenizer(role: str, components: Mapping[str, str], encoder: Path, own: Path | None, config: Config) -> Path:
    """Where T5's tokenizer is: a folder or a `tokenizer.json`.

    Given by itself, the model's `own`, or with the encoder: in its folder or beside it, beside the file. Else it is the
    package's, for an encoder whose `config` has the same vocabulary.
    """
    key = role.replace("text_encoder", "tokenizer")
    if key in components:
        return Path(components[key])
    if own is not None and own.is_dir():
        return own
    if is_file(encoder):
        candidates = [encoder.with_name(f"{encoder.stem}.tokenizer.json"), encoder.with_name("tokenizer.json")]
    else:
        candidates = [encoder, encoder.parent / key, encoder.parent / "tokenizer", encoder.parent / "tokenizer.json"]
    found = next((place for place in candidates if place.is_file() or _has_tokenizer(place)), None)
    if found is None and config.get("vocab_size") in BUNDLED_ROWS:
        return BUNDLED
    if found is None:
        raise ModelLoad(
            "the model has a part missing",
            f"{encoder}: T5's tokenizer is neither in it nor beside it; give the component `{key}`, "
            "a folder or a tokenizer.json",
        )
    return found


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)
