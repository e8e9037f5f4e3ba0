"""Weights that wait on the host until they are used, for devices that do not hold a whole model.

`model` brings one of encoders, denoiser and VAE to the device and sends the others away; `sequential` the weights
of one layer at a time, so that hardly any stay. The host's copies are kept: nothing is ever copied back.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn


class Whereabouts(ABC):
    """Where a model's weights are."""

    word: str | None = None
    """How a result's plan tells of it."""

    @abstractmethod
    def bring(self, *wanted: nn.Module) -> None:
        """Have what these modules need on the device."""


class Resident(Whereabouts):
    """All weights are on the device and stay there."""

    def bring(self, *wanted: nn.Module) -> None:
        """They are there."""


class Away:
    """The parameters of a module, which are on the host or copied to the device."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def bring(self, device: torch.device) -> None:
        """Copy to the device what is not there, which another set of adapters may have put in its place."""
        for number, parameter in enumerate(self._parameters):
            _, copied = self._copies.get(number, (None, None))
            if copied is None or copied.data_ptr() != parameter.data.data_ptr():
                host = parameter.data
                parameter.data = host.to(device, copy=True, non_blocking=True)
                self._copies[number] = host, parameter.data

    def send_back(self) -> None:
        """Drop the copies."""
        for number, (host, copied) in self._copies.items():
            parameter = self._parameters[number]
            if parameter.data.data_ptr() == copied.data_ptr():
                parameter.data = host
        self._copies.clear()


class ModelOffload(Whereabouts):
    """Only the modules that are used are on the device."""

    word = "offload_model"

    def __init__(self, device: torch.device, encoders: Sequence[nn.Module], others: Sequence[nn.Module]) -> None:
        self._device = device
        self._modules = {module: Away(module.parameters()) for module in (*encoders, *others)}
        self._there: tuple[nn.Module, ...] = ()

    def bring(self, *wanted: nn.Module) -> None:
        """Send the others back first, so that both never lie on the device."""
        for module in self._there:
            if module not in wanted:
                self._modules[module].send_back()
        for module in wanted:
            if module in self._modules:
                self._modules[module].bring(self._device)
        self._there = tuple(module for module in wanted if module in self._modules)


class SequentialOffload(ModelOffload):
    """Of the denoiser and the VAE only the layer that computes is on the device; text encoders are there as a whole."""

    word = "offload_sequential"

    def __init__(self, device: torch.device, encoders: Sequence[nn.Module], others: Sequence[nn.Module]) -> None:
        super().__init__(device, encoders, ())
        for part in (part for module in others for part in module.modules()):
            own = list(part.parameters(recurse=False))
            if own:
                away = Away(own)
                part.register_forward_pre_hook(_brings(away, device))
                part.register_forward_hook(_sends_back(away))


def _brings(away: Away, device: torch.device) -> Callable[[nn.Module, Any], None]:
    return lambda module, inputs: away.bring(device)


def _sends_back(away: Away) -> Callable[[nn.Module, Any, Any], None]:
    return lambda module, inputs, output: away.send_back()


KINDS: dict[str, type[ModelOffload]] = {"model": ModelOffload, "sequential": SequentialOffload}
