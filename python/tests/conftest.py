"""Where the repository's fixtures lie, and one thread for everything that computes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parents[2]
FIXTURES = REPOSITORY / "crates" / "worker" / "tests" / "fixtures"
GOLDEN = REPOSITORY / "schema" / "golden"
MODELS = REPOSITORY / "models"


def assert_in_tritons_interpreter(module: str, word: str) -> None:
    """Run a module in a process with Triton's kernels interpreted on the host; it prints `word` at its end."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", module]
    folder = REPOSITORY / "python"
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert run.stdout.strip() == word, run.stderr[-2000:]


@pytest.fixture(scope="session")
def fixtures() -> Path:
    return FIXTURES


@pytest.fixture(scope="session")
def models() -> Path:
    return MODELS


@pytest.fixture
def memory_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the memory of a device were another than the host's: weights that wait there are really copied."""
    from calotype_worker.device import Device

    made = Device.__init__

    def apart(device: Device, *arguments: Any) -> None:
        made(device, *arguments)
        device.is_apart = True

    monkeypatch.setattr(Device, "__init__", apart)


@pytest.fixture(scope="module")
def loaded() -> Any:
    """A desk with the embedded model, for all tests of a file."""
    from .desk import Desk

    return Desk().tiny()


@pytest.fixture
def fresh(loaded: Any) -> Any:
    """The same with nothing said and nothing learned."""
    from calotype_worker.step import Stepper

    loaded.finish()
    loaded.said.clear()
    loaded.loop.stepper = Stepper(loaded.loop.device)
    return loaded
