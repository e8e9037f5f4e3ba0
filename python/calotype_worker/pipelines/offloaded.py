"""Weights that wait on the host until they are used, for devices that do not hold whole models.

Of all that waits, whatever models it is of, only what computes is on the device. By a plan `model` that is a whole
module at a time, the denoiser together with its ControlNets; by `sequential` the weights of one layer, so that hardly
any stay. What the host has stays as it is, and nothing is ever copied back. From a page-locked segment weights come at
the rate of the bus, from a file at an eighth of it.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn

Offload = Literal["none", "model", "sequential"]


def plan_words(offload: Offload) -> list[str]:
    """How a result's plan tells of it."""
    return [] if offload == "none" else [f"offload_{offload}"]


class Away:
    """The parameters of a module, which are on the host or copied to the device."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._hosts: dict[int, torch.Tensor] = {}
        """What those that are copied have on the host."""

    def bring(self, device: torch.device) -> None:
        """Copy to the device what is not there."""
        for number, parameter in enumerate(self._parameters):
            if number not in self._hosts:
                host = parameter.data
                parameter.data = _laid_out(host.to(device, copy=True, non_blocking=True))
                self._hosts[number] = host

    def send_home(self) -> None:
        """Drop the copies."""
        for number, host in self._hosts.items():
            self._parameters[number].data = host
        self._hosts.clear()


class Whereabouts:
    """What is on a device of the modules that wait on the host."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # A model that is dropped is not kept by these.
        self._whole: WeakKeyDictionary[nn.Module, Away] = WeakKeyDictionary()
        self._there: WeakSet[nn.Module] = WeakSet()

    def keep_away(self, offload: Offload, encoders: Sequence[nn.Module], others: Sequence[nn.Module]) -> None:
        """Have modules wait on the host, where their weights are. Text encoders come as a whole by either plan."""
        for module in encoders if offload == "sequential" else (*encoders, *others):
            self._whole[module] = Away(module.parameters())
        if offload == "sequential":
            for module in others:
                _come_by_layers(module, self._device)

    def bring(self, *wanted: nn.Module) -> None:
        """Have these modules on the device, and none of the others that wait on the host."""
        # First, so that both never lie there.
        self.send_home(*(module for module in self._there if module not in wanted))
        for module in wanted:
            away = self._whole.get(module)
            if away is not None:
                # Whatever was copied until memory ran out goes home too.
                self._there.add(module)
                away.bring(self._device)

    def send_home(self, *modules: nn.Module) -> None:
        """Have none of these modules on the device, if they can wait on the host."""
        for module in modules:
            if module in self._there:
                self._whole[module].send_home()
                self._there.remove(module)


def _laid_out(weights: torch.Tensor) -> torch.Tensor:
    # On the host it would need copies of their own, which no device fetches by itself.
    is_convolution = weights.is_cuda and weights.ndim == 4
    return weights.contiguous(memory_format=torch.channels_last) if is_convolution else weights


def _come_by_layers(module: nn.Module, device: torch.device) -> None:
    for part in module.modules():
        own = list(part.parameters(recurse=False))
        if own:
            away = Away(own)
            part.register_forward_pre_hook(_brings(away, device))
            # A layer that fails does not stay either.
            part.register_forward_hook(_sends_home(away), always_call=True)


def _brings(away: Away, device: torch.device) -> Callable[[nn.Module, Any], None]:
    return lambda module, inputs: away.bring(device)


def _sends_home(away: Away) -> Callable[[nn.Module, Any, Any], None]:
    return lambda module, inputs, output: away.send_home()
