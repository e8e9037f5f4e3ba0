"""Moves the tensors of a job's state between devices, wherever they are held."""

from collections import deque
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from calotype_worker.pipelines.adapted import AdapterSet


def moved(value: Any, device: torch.device) -> Any:
    """`value` with every tensor in it on `device`; objects that only hold tensors are changed in place.

    Merged weights stay: they are the model's.
    """
    if isinstance(value, AdapterSet):
        return value
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(moved(item, device) for item in value)
    if isinstance(value, deque):
        return deque((moved(item, device) for item in value), maxlen=value.maxlen)
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            # Frozen to their users; here the same value only changes its place.
            object.__setattr__(value, field.name, moved(getattr(value, field.name), device))
        return value
    if type(value).__module__.startswith("calotype_worker.samplers"):
        for name, item in list(vars(value).items()):
            setattr(value, name, moved(item, device))
    return value
