"""transformers' modules with the names that their files have.

A newer transformers renames what a module's parameters are called and translates the names of files as it loads them
(`transformers/conversion_mapping.py`). Files are read here without it, but by its list.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from calotype_worker.errors import NotSupported
from calotype_worker.pipelines.parts import Config, Loader, named_class, transformers_module
from calotype_worker.weights import Source, Weights

DTYPE = torch.float32
"""What these networks compute in, whatever a load asks: they run once for a picture, and the steps of a half float's
depth would be edges in its normals."""


def kind_of(config: Config, allowed: tuple[str, ...], where: Path) -> str:
    """The class of a transformers folder, which must be allowed and be known to the transformers that is here."""
    import transformers

    name = named_class(config, "model without `architectures`")
    if name not in allowed:
        raise NotSupported(f"a preprocessor with a {name} is not supported; {', '.join(allowed)} are", f"{where}")
    if not hasattr(transformers, name):
        raise NotSupported(f"transformers {transformers.__version__} has no {name}", f"{where}")
    return name


def bind(loader: Loader, role: str, config: Config, allowed: tuple[str, ...], where: Path) -> None:
    """Bind a transformers folder of an allowed class to its weights; the statistics of norms are among them."""
    module = transformers_module(config, allowed, str(where))
    fixed_buffers(module)
    loader.bind(role, module, Stored(module, Weights(where)), DTYPE)


def fixed_buffers(module: nn.Module) -> None:
    """Make parameters without memory of the buffers that files hold, to be filled, counted and moved as those are."""
    for part in module.modules():
        for name, buffer in list(part._buffers.items()):
            if buffer is None or name in part._non_persistent_buffers_set or not buffer.is_floating_point():
                continue
            del part._buffers[name]
            part.register_parameter(name, nn.Parameter(torch.empty_like(buffer, device="meta"), requires_grad=False))


class Stored:
    """Where the parameters of a transformers module are, by the names that it has now."""

    def __init__(self, module: nn.Module, weights: Weights) -> None:
        self.path = weights.path
        self._weights = weights
        self._names: dict[str, str] = {}
        renamings = _renamings(module)
        for name in weights.where:
            now = name
            for renaming in renamings:
                now = renaming.rename_source_key(now)[0]
            self._names.setdefault(now, name)

    def find(self, name: str) -> Source | None:
        """Where a parameter is."""
        stored = self._names.get(name)
        return None if stored is None else Source(self._weights.where[stored], stored)


def _renamings(module: nn.Module) -> list[Any]:
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming
    except ImportError:  # Before 5, modules and files have the same names.
        return []
    return [one for one in get_model_conversion_mapping(module) if isinstance(one, WeightRenaming)]
