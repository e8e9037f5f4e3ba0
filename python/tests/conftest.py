"""Where the repository's fixtures lie, and one thread for everything that computes."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parents[2]
FIXTURES = REPOSITORY / "crates" / "worker" / "tests" / "fixtures"
GOLDEN = REPOSITORY / "schema" / "golden"
MODELS = REPOSITORY / "models"


@pytest.fixture(scope="session")
def fixtures() -> Path:
    return FIXTURES


@pytest.fixture(scope="session")
def models() -> Path:
    return MODELS
