"""Components of a model from a diffusers folder: configs, modules with their weights, tokenizers."""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calotype_worker.blanks import blank
from calotype_worker.device import TORCH_DTYPES, Device
from calotype_worker.errors import InvalidInput, ModelLoad, NotSupported, OutOfMemory
from calotype_worker.pipelines.family import Family, Progress
from calotype_worker.upload import Slots, Uploader
from calotype_worker.weights import Binding, Put, Store, Weights
from calotype_worker.wire.down import Load, LoadPlan, ModelSpec

Config = Mapping[str, Any]
SKETCHER = "taesd"
"""The role of a small VAE that decodes previews."""


def place(spec: ModelSpec, role: str) -> Path:
    """Where a role's files lie: where the orchestrator says, or below the root."""
    if role in spec.components:
        return Path(spec.components[role])
    if "root" not in spec.components:
        raise ModelLoad("the model has a part missing", f"no component `{role}` and no `root`")
    return Path(spec.components["root"]) / role


def config_of(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A JSON object beside a component's weights."""
    path = (folder.parent if folder.is_file() else folder) / name
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelLoad("a model's config cannot be read", f"{path}: {error}") from None
    if not isinstance(config, dict):
        raise ModelLoad("a model's config cannot be read", f"{path}: not a JSON object")
    return config


# Their table of positions is in every file of theirs; to compute it takes seconds and gigabytes (SD3.5 medium).
TABLES_ARE_STORED = ("SD3Transformer2DModel",)


NOT_OF_A_MODULE = ("architectures", "model_type", "torch_dtype", "dtype")
"""What a transformers config says beside how its module is built."""


def diffusers_module(config: Config, allowed: tuple[str, ...], where: str) -> nn.Module:
    """A module of diffusers without weights; `allowed` are the classes that the role may have."""
    import diffusers

    name = str(config.get("_class_name", allowed[0]))
    if name not in allowed:
        raise NotSupported(f"a model with a {name} is not supported", f"{where}: `_class_name`")
    kind = getattr(diffusers, name)

    def build() -> nn.Module:
        # It imports diffusers, which takes seconds: `ready` does not wait for that.
        from calotype_worker.pipelines.quick import quicken

        with torch.device("meta") if name in TABLES_ARE_STORED else nullcontext():
            module: nn.Module = kind.from_config(dict(config))
        quicken(module)
        return module

    return _blank(kind, config, build, where)


def transformers_module(config: Config, allowed: tuple[str, ...], where: str) -> nn.Module:
    """A module of transformers without weights."""
    import transformers

    name = named_class(config, allowed[0])
    if name not in allowed:
        raise NotSupported(f"a model with a {name} is not supported", f"{where}: `architectures`")
    kind = getattr(transformers, name)
    # The class says of itself what its config is called.
    known = {key: value for key, value in config.items() if key not in NOT_OF_A_MODULE}
    return _blank(kind, known, lambda: kind(kind.config_class(**known)), where)


def named_class(config: Config, otherwise: str) -> str:
    """The class that a transformers config names."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else otherwise


def _blank(kind: type, config: Config, build: Callable[[], nn.Module], where: str) -> nn.Module:
    try:
        return blank(kind, json.dumps(config, sort_keys=True), build)
    except Exception as error:  # A config that a library cannot build from is a wrong config.
        raise ModelLoad(
            "a model cannot be built from its config", f"{where}: {type(error).__name__}: {error}"
        ) from None


class Loader:
    """Fills modules with weights on the device, and keeps the account."""

    def __init__(self, load: Load, device: Device, progress: Progress) -> None:
        self.load = load
        self.device = device
        self.progress = progress
        self.started = time.perf_counter()
        self.bindings: dict[str, Binding] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        # What waits on the host is taken to the device by whoever uses it.
        self.stays_on_host = device.offload_of(load.plan or LoadPlan()) != "none"
        target = Device("cpu", torch.device("cpu")) if self.stays_on_host else device
        self.uploader = Uploader(target, device.segments.is_locked)
        if load.dtype == "u8":
            raise InvalidInput("a model cannot compute in u8")
        self.dtype = TORCH_DTYPES[load.dtype]
        if device.torch.type == "cpu" and self.dtype == torch.float16:
            raise NotSupported("f16 does not compute on this CPU; f32 and bf16 do")

    def bind(self, role: str, module: nn.Module, weights: Store, dtype: torch.dtype | None = None) -> None:
        """Check a module against its weights; what is wrong anywhere is said before anything is converted.

        `dtype` is for a part that computes in another type than the model.
        """
        self.bindings[role] = Binding(module, weights)
        self.dtypes[role] = dtype or self.dtype

    def modules(self) -> dict[str, nn.Module]:
        """What was bound, by role; without weights until `fill`."""
        return {role: binding.module for role, binding in self.bindings.items()}

    def vae_dtype(self, config: Config) -> torch.dtype:
        """The type of a VAE: some overflow in f16, and say so."""
        return torch.float32 if config.get("force_upcast") and self.dtype == torch.float16 else self.dtype

    def _bind_sketcher(self) -> None:
        """Bind the small VAE for previews, where the load names one."""
        place = self.load.model.components.get(SKETCHER)
        if place is not None:
            module = diffusers_module(config_of(Path(place)), ("AutoencoderTiny",), place)
            self.bind(SKETCHER, module, Weights(Path(place)))

    def settled(self, model: Family) -> Family:
        """A model that was made of what was filled, with the account of it."""
        model.resident_bytes, model.phases_ms = self.total_bytes, self.phases_ms
        if self.sketcher is not None:
            config: Any = self.sketcher.config
            if config.latent_channels != model.latent_channels:
                why = f"{config.latent_channels} latent channels, not {model.latent_channels}"
                raise ModelLoad("the VAE for previews does not fit the model", why)
            # So small that it stays on the device whatever the plan.
            model.sketcher = self.sketcher.to(self.device.torch)
        return model

    def fill(self) -> dict[str, nn.Module]:
        """Read all weights; gives the modules by role."""
        self._bind_sketcher()
        read_ms = (time.perf_counter() - self.started) * 1e3
        widths = {role: torch.finfo(dtype).bits // 8 for role, dtype in self.dtypes.items()}
        total = sum(binding.elements() * widths[role] for role, binding in self.bindings.items())
        self.total_bytes = total
        budget = self.load.budget_bytes
        if budget and total > budget and not self.stays_on_host:
            raise OutOfMemory(
                "the model does not fit its budget",
                f"{total} bytes of {self.load.dtype} are needed, {budget} are granted",
            )
        read_ms -= self.device.segments.spent_ms.get("map", 0.0)
        self.device.segments.lock()
        started, done = time.perf_counter(), 0

        def progress(bytes: int) -> None:
            nonlocal done
            done += bytes
            # What copies by itself is told of once it is there.
            if not self.uploader.runs_ahead:
                self.progress(done, total)

        modules = {}
        for role, binding in self.bindings.items():
            modules[role] = binding.fill(self._put_of(role), progress)
            for _, part in binding.parts:
                for leaf, buffer in part._buffers.items():
                    part._buffers[leaf] = None if buffer is None else buffer.to(self.device.torch)
        self.sketcher = modules.get(SKETCHER)
        self.device.synchronize()
        if self.uploader.runs_ahead:
            self.progress(total, total)
        upload_ms = (time.perf_counter() - started) * 1e3
        phase = "convert" if self.device.torch.type == "cpu" else "upload"
        self.phases_ms = {"read": read_ms, **self.device.segments.spent_ms, phase: upload_ms}
        return modules

    def _put_of(self, role: str) -> Put:
        dtype = self.dtypes[role]
        if self.stays_on_host or not self.device.is_cuda:
            return lambda tensor: self.uploader.put(tensor, dtype)
        slots = Slots(self.device, dtype, self.bindings[role].shapes())
        return lambda tensor: self.uploader.put_into(slots.take(tensor.shape), tensor)
