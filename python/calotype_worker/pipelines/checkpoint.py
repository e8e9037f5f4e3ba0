"""Single-file checkpoints: what architecture a file has, by its tensors, and where each parameter lies in it.

The configs of the architectures and CLIP's tokenizer are part of this package: nothing is asked of a network. What a
file cannot say (the prediction type, where its metadata does not) is the architecture's usual, unless the role
`scheduler` names a folder with a `scheduler_config.json`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calotype_worker import mmdit
from calotype_worker.errors import ModelLoad, NotSupported
from calotype_worker.pipelines import layouts
from calotype_worker.pipelines.layouts import DENOISER, Layout
from calotype_worker.pipelines.parts import config_of
from calotype_worker.prompt import Tokenizer
from calotype_worker.weights import WeightFile
from calotype_worker.wire.down import ModelSpec

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
# The width of the text that the UNet attends to tells the architectures apart.
BY_CONTEXT = {768: "sd15", 1024: "sd21", 2048: "sdxl", 1280: "sdxl_refiner"}
# A tensor tells the transformers.
BY_BLOCK = {"joint_blocks.0.x_block.attn.qkv.weight": "sd3", "double_blocks.0.img_attn.qkv.weight": "flux"}
TRANSFORMERS = {"sd3": mmdit.sd3_config, "flux": mmdit.flux_config}


def configs_of(architecture: str) -> dict[str, Any]:
    """The configs of an architecture's components."""
    found: dict[str, Any] = json.loads((CONFIGS / f"{architecture}.json").read_text())
    return found


class Checkpoint:
    """A single file with everything in it, or with the denoiser and whatever else."""

    def __init__(self, spec: ModelSpec) -> None:
        place = spec.components.get("checkpoint") or spec.components.get("root")
        if place is None:
            raise ModelLoad("the model has a part missing", "no component `checkpoint` and no `root`")
        self.file = WeightFile(Path(place))
        self.spec = spec
        self.architecture = self._architecture()
        self.configs = configs_of(self.architecture)
        if self.configs["family"] != spec.family:
            raise NotSupported(f"the checkpoint is of the family `{self.configs['family']}`, not `{spec.family}`")
        if self.architecture in TRANSFORMERS:
            self.configs["transformer"] = self._transformer()
        first = f"{DENOISER}input_blocks.0.0.weight"
        if first in self.file.names_set:
            # Inpainting variants differ in the first layer alone.
            self.configs["unet"]["in_channels"] = self.file.shape(first)[1]

    def _architecture(self) -> str:
        prefix = layouts.denoiser_prefix(self.file)
        for name, architecture in BY_BLOCK.items():
            if prefix + name in self.file.names_set:
                return architecture
        widths = {
            self.file.shape(name)[1]
            for name in self.file.names
            if name.startswith(DENOISER) and name.endswith("attn2.to_k.weight") and len(self.file.shape(name)) == 2
        }
        found = BY_CONTEXT.get(widths.pop()) if len(widths) == 1 else None
        if found is None:
            known = ", ".join((*BY_CONTEXT.values(), *TRANSFORMERS))
            raise NotSupported(
                "the checkpoint is of no architecture that this worker knows",
                f"{self.file.path}: the denoiser is not that of {known}",
            )
        return found

    def _transformer(self) -> dict[str, Any]:
        prefix = layouts.denoiser_prefix(self.file)
        names = (name for name in self.file.names if name.startswith(prefix))
        shapes = {name.removeprefix(prefix): self.file.shape(name) for name in names}
        try:
            return TRANSFORMERS[self.architecture](shapes)
        except KeyError as missing:
            raise ModelLoad(
                "the weights do not fit the model", f"{self.file.path}: tensor `{prefix}{missing.args[0]}` is missing"
            ) from None
        except (ValueError, IndexError, ZeroDivisionError) as error:
            raise ModelLoad(
                "the weights do not fit the model",
                f"{self.file.path}: the shapes are not those of `{self.architecture}`: {error}",
            ) from None

    def scheduler(self) -> Mapping[str, Any]:
        """The noise schedule of the training."""
        if "scheduler" in self.spec.components:
            return config_of(Path(self.spec.components["scheduler"]), "scheduler_config.json")
        if self.architecture == "flux" and not self.configs["transformer"]["guidance_embeds"]:
            without: dict[str, Any] = self.configs["scheduler_without_guidance"]
            return without
        config = dict(self.configs["scheduler"])
        if self.architecture in TRANSFORMERS:
            # A flow predicts nothing else.
            return config
        said = self.file.metadata().get("modelspec.prediction_key") or (
            "v" if "v_pred" in self.file.names_set else None
        )
        if said is not None:
            config["prediction_type"] = "v_prediction" if said.startswith("v") else "epsilon"
        return config

    def tokenizer(self, role: str) -> Tokenizer:
        """The tokenizer of a CLIP text encoder: the given one, or CLIP's."""
        key = role.replace("text_encoder", "tokenizer")
        if key in self.spec.components:
            return Tokenizer(Path(self.spec.components[key]))
        # OpenCLIP's encoders were trained with padding by 0.
        open_clip = self.configs[role]["hidden_act"] == "gelu"
        return Tokenizer(CONFIGS / "clip_tokenizer", pad=0 if open_clip else None)

    def has(self, role: str) -> bool:
        """Whether the file has anything of a component."""
        if role not in self.configs:
            return False
        if role in ("unet", "transformer"):
            return True
        return layouts.prefix_in(self.file, layouts.prefixes(role, self.configs[role])) is not None

    def config(self, role: str) -> dict[str, Any]:
        """The config of a component that the file has."""
        if not self.has(role):
            names = ", ".join(f"`{prefix}…`" for prefix in layouts.prefixes(role, self.configs[role]))
            raise ModelLoad(
                "the model has a part missing",
                f"{self.file.path}: no tensors {names}; give the component `{role}` beside the checkpoint",
            )
        found: dict[str, Any] = self.configs[role]
        return found

    def part(self, role: str) -> Layout:
        """Where the parameters of a component are."""
        config = self.config(role)
        if role == "unet":
            return layouts.unet(self.file, config)
        if role == "transformer":
            return layouts.transformer(self.file, self.architecture, config)
        return layouts.layout(self.file, role, config)
