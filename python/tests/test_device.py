"""Which devices a worker takes, and what it says of those that it cannot."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from calotype_worker.device import Device
from calotype_worker.errors import DeviceLost, NotSupported, WorkerError
from calotype_worker.wire.down import WorkerDevice


def opened(kind: str, index: int = 0) -> Device:
    return Device.open(WorkerDevice(kind=kind, index=index), threads=0, deterministic=False)


def test_directml_is_the_device_that_its_package_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    library = SimpleNamespace(device_count=lambda: 2, device=lambda index: torch.device("meta", index))
    monkeypatch.setitem(sys.modules, "torch_directml", library)
    device = opened("directml", 1)
    assert (device.kind, device.torch, device.is_cuda) == ("directml", torch.device("meta", 1), False)
    with pytest.raises(DeviceLost, match="2 devices, none with the index 2"):
        opened("directml", 2)


def test_directml_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_directml", None)
    with pytest.raises(NotSupported, match="torch-directml") as refused:
        opened("directml")
    assert "torch 2.4" in (refused.value.detail or "")


@pytest.mark.parametrize(
    ("kind", "problem", "words"),
    [("quantum", NotSupported, "it knows cpu, cuda"), ("xpu", DeviceLost, "no device of the kind `xpu`")],
)
def test_a_device_that_is_not_here_is_told_apart_from_one_that_nobody_knows(
    kind: str, problem: type[WorkerError], words: str
) -> None:
    if kind == "xpu" and torch.xpu.is_available():
        pytest.skip("there is an XPU here")
    with pytest.raises(problem, match=words):
        opened(kind)


def test_an_xpu_counts_its_own_memory_and_not_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: dict[str, Any] = {
        "mem_get_info": (3 << 30, 16 << 30),
        "memory_stats_as_nested_dict": {
            "reserved_bytes": {"all": {"current": 5 << 30}},
            "allocated_bytes": {"all": {"current": 4 << 30, "peak": 6 << 30}},
        },
        "get_device_properties": SimpleNamespace(name="Arc"),
        "reset_peak_memory_stats": None,
    }
    for name, figure in figures.items():
        monkeypatch.setattr(torch.xpu, name, lambda device, figure=figure: figure)
    device = Device("xpu", torch.device("xpu", 0))
    facts, report = device.facts(), device.report()
    assert (facts.name, facts.total_bytes, facts.free_bytes) == ("Arc", 16 << 30, 3 << 30)
    assert (report.used_bytes, report.cached_bytes, report.peak_bytes) == (5 << 30, 1 << 30, 6 << 30)
    assert (device.held_bytes(), device.room_bytes(), device.end_lap()) == (4 << 30, 4 << 30, 6 << 30)
