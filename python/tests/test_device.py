"""Which devices a worker takes, and what it says of those that it cannot."""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from calotype_worker.device import Device
from calotype_worker.errors import DeviceLost, NotSupported, WorkerError
from calotype_worker.wire.down import WorkerDevice

FIRST, SECOND = "11111111-2222-3333-4444-555555555555", "66666666-7777-8888-9999-aaaaaaaaaaaa"


def opened(kind: str, index: int = 0, uuid: str | None = None) -> Device:
    return Device.open(WorkerDevice(kind=kind, index=index, uuid=uuid), threads=0, deterministic=False)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Have torch see cards of these UUIDs; gives the list in which the index comes that is taken."""

    def see(*uuids: Any, name: str = "NVIDIA H200") -> list[int]:
        taken: list[int] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(uuids))
        monkeypatch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda index: (
                SimpleNamespace(name=name) if uuids[index] is None else SimpleNamespace(name=name, uuid=uuids[index])
            ),
        )
        monkeypatch.setattr(torch.cuda, "set_device", taken.append)
        return taken

    return see


def test_the_card_is_taken_by_its_uuid_where_cuda_numbers_the_cards_anew(
    cards: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = cards(FIRST, SECOND)
    assert opened("cuda", 0, f"GPU-{SECOND}").torch == torch.device("cuda", 1)
    assert opened("cuda", 1, f"GPU-{FIRST.upper()}").torch == torch.device("cuda", 0)
    # CUDA_VISIBLE_DEVICES=1: the second card is the only one that is seen, with the index 0.
    taken = cards(SECOND)
    assert opened("cuda", 1, f"GPU-{SECOND}").torch == torch.device("cuda", 0)
    assert taken == [0]


def test_a_card_that_is_hidden_is_refused_and_no_other_is_taken_for_it(
    cards: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = cards(SECOND)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(DeviceLost, match=f"GPU-{FIRST} is hidden .* CUDA_VISIBLE_DEVICES is `1`.*GPU-{SECOND}"):
        opened("cuda", 0, f"GPU-{FIRST}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(DeviceLost, match=f"torch does not see the card GPU-{FIRST}"):
        opened("cuda", 0, f"GPU-{FIRST}")
    assert taken == []


def test_the_index_decides_where_no_uuid_can(cards: Callable[..., list[int]]) -> None:
    taken = cards(FIRST, SECOND)
    opened("cuda", 1)
    # A torch that tells no UUIDs, a part of a card, and a driver whose form is another.
    cards(None, None)
    opened("cuda", 1, f"GPU-{FIRST}")
    cards(FIRST, name="NVIDIA H100 80GB HBM3 MIG 1g.10gb")
    opened("cuda", 0, f"GPU-{SECOND}")
    cards(FIRST)
    opened("rocm", 0, "GPU-00000000000000ff")
    assert taken == [1]


def test_a_card_of_rocm_is_found_by_the_digits_that_hip_tells_as_text(cards: Callable[..., list[int]]) -> None:
    def hip(digits: str) -> Any:
        return SimpleNamespace(bytes=list(digits.encode()))

    taken = cards(hip("00000000000000aa"), hip("00000000000000ff"))
    opened("rocm", 0, "GPU-00000000000000ff")
    assert taken == [1]


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
