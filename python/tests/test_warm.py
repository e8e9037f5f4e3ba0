"""What is fetched ahead is there, and what cannot be fetched harms nothing."""

import subprocess
import sys

import pytest
import torch

from calotype_worker import warm
from calotype_worker.device import Device
from calotype_worker.errors import DeviceLost

FETCHED = """
import sys
import torch
from calotype_worker import warm
from calotype_worker.device import Device

assert not any(name.startswith(("diffusers", "transformers")) for name in sys.modules)
assert list(warm.up(Device("cpu", torch.device("cpu")))) == [None]
for name in ("diffusers.models.unets.unet_2d_condition", "transformers.models.clip.modeling_clip"):
    assert name in sys.modules, name
print("fetched")
"""


def test_a_process_has_imported_what_the_first_load_needs_before_it_comes() -> None:
    run = subprocess.run([sys.executable, "-c", FETCHED], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "fetched", run.stderr[-2000:]


def test_what_cannot_be_fetched_is_told_of_and_the_rest_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise ImportError("there is no diffusers")

    monkeypatch.setattr(warm, "_import", fails)
    (problem,) = warm.up(Device("cpu", torch.device("cpu")))
    assert problem is not None and "there is no diffusers" in problem


def test_a_device_that_is_lost_meanwhile_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_lost() -> None:
        raise DeviceLost("the device is lost")

    monkeypatch.setattr(warm, "_import", is_lost)
    with pytest.raises(DeviceLost):
        next(warm.up(Device("cpu", torch.device("cpu"))))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_on_cuda_every_piece_is_fetched_and_no_memory_is_kept_but_the_libraries() -> None:
    device = Device("cuda", torch.device("cuda", 0))
    assert all(problem is None for problem in warm.up(device))
    held = torch.cuda.memory_allocated()
    assert all(problem is None for problem in warm.up(device))
    assert torch.cuda.memory_allocated() == held
