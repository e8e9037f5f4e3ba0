"""Single-file checkpoints: what architecture a file has, by its tensors, and where each parameter lies in it.

The configs of the architectures and CLIP's tokenizer are part of this package: nothing is asked of a network. What a
file cannot say (the prediction type, where its metadata does not) is the architecture's usual, unless the role
`scheduler` names a folder with a `scheduler_config.json`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calotype_worker import ldm
from calotype_worker.errors import ModelLoad, NotSupported
from calotype_worker.pipelines.parts import config_of
from calotype_worker.prompt import Tokenizer
from calotype_worker.weights import Source, WeightFile
from calotype_worker.wire.down import ModelSpec

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
UNET = "model.diffusion_model."
VAE = "first_stage_model."
# The width of the text that the UNet attends to tells the architectures apart.
BY_CONTEXT = {768: "sd15", 1024: "sd21", 2048: "sdxl", 1280: "sdxl_refiner"}
CLIP_PREFIXES = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
OPEN_CLIP_PREFIXES = ("cond_stage_model.model.", "conditioner.embedders.1.model.", "conditioner.embedders.0.model.")


class Checkpoint:
    """A single file with everything in it."""

    def __init__(self, spec: ModelSpec) -> None:
        place = spec.components.get("checkpoint") or spec.components.get("root")
        if place is None:
            raise ModelLoad("the model has a part missing", "no component `checkpoint` and no `root`")
        self.file = WeightFile(Path(place))
        self.spec = spec
        self.names = set(self.file.names)
        self.architecture = self._architecture()
        self.configs: dict[str, Any] = json.loads((CONFIGS / f"{self.architecture}.json").read_text())
        first = f"{UNET}input_blocks.0.0.weight"
        if first in self.names:
            # Inpainting variants differ in the first layer alone.
            self.configs["unet"]["in_channels"] = self.file.shape(first)[1]
        if self.configs["family"] != spec.family:
            raise NotSupported(f"the checkpoint is of the family `{self.configs['family']}`, not `{spec.family}`")

    def _architecture(self) -> str:
        widths = {
            self.file.shape(name)[1]
            for name in self.names
            if name.startswith(UNET) and name.endswith("attn2.to_k.weight")
        }
        found = BY_CONTEXT.get(widths.pop()) if len(widths) == 1 else None
        if found is None:
            raise NotSupported(
                "the checkpoint is of no architecture that this worker knows",
                f"{self.file.path}: the UNet is not that of {', '.join(BY_CONTEXT.values())}",
            )
        return found

    def scheduler(self) -> Mapping[str, Any]:
        """The noise schedule of the training."""
        if "scheduler" in self.spec.components:
            return config_of(Path(self.spec.components["scheduler"]), "scheduler_config.json")
        config = dict(self.configs["scheduler"])
        said = self.file.metadata().get("modelspec.prediction_key") or ("v" if "v_pred" in self.names else None)
        if said is not None:
            config["prediction_type"] = "v_prediction" if said.startswith("v") else "epsilon"
        return config

    def tokenizer(self, role: str) -> Tokenizer:
        """The tokenizer of a text encoder: the given one, or CLIP's."""
        key = role.replace("text_encoder", "tokenizer")
        if key in self.spec.components:
            return Tokenizer(Path(self.spec.components[key]))
        # OpenCLIP's encoders were trained with padding by 0.
        open_clip = self.configs[role]["hidden_act"] == "gelu"
        return Tokenizer(CONFIGS / "clip_tokenizer", pad=0 if open_clip else None)

    def part(self, role: str) -> "Part":
        """Where the parameters of a component are."""
        return Part(self, role)


class Part:
    """One component of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, role: str) -> None:
        self.path = checkpoint.file.path
        self._checkpoint = checkpoint
        self._role = role
        self._config = checkpoint.configs[role]

    def find(self, name: str) -> Source | None:
        """Where a parameter is."""
        names = self._checkpoint.names
        if self._role == "unet":
            return self._source(f"{UNET}{ldm.unet(name, self._config)}")
        if self._role == "vae":
            return self._source(f"{VAE}{ldm.vae(name, self._config)}")
        bare = name.removeprefix("text_model.")
        for prefix in CLIP_PREFIXES:
            for spelling in (f"{prefix}text_model.{bare}", f"{prefix}{bare}"):
                if spelling in names and self._config["hidden_act"] != "gelu":
                    return Source(self._checkpoint.file, spelling)
        stored, third = ldm.open_clip(name)
        for prefix in OPEN_CLIP_PREFIXES:
            if prefix + stored in names:
                transposed = stored == "text_projection"
                return Source(self._checkpoint.file, prefix + stored, third, transposed)
        return None

    def _source(self, name: str) -> Source | None:
        return Source(self._checkpoint.file, name) if name in self._checkpoint.names else None
