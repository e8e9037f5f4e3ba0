"""Noise, bit for bit."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from calotype_worker import noise

from .conftest import FIXTURES, GOLDEN

# The file moves to the golden conversations; both places are good.
GOLDEN_NOISE = next(path for path in (GOLDEN / "noise.json", FIXTURES / "noise.json") if path.is_file())
CASES = json.loads(GOLDEN_NOISE.read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['seed']}-{case['offset']}")
def test_noise_equals_the_golden_values_bit_for_bit(case: dict[str, Any]) -> None:
    seed, offset = int(case["seed"]), case["offset"]
    words = noise.philox(seed, offset, 16)
    assert words[0].tolist() == case["g0"]
    assert words[1].tolist() == case["g1"]
    assert noise.normal(seed, offset, (16,)).view(np.uint32).tolist() == case["normal_bits"]


def test_a_longer_request_begins_with_the_shorter_one() -> None:
    assert (noise.normal(7, 3, (4, 16)).reshape(-1)[:16] == noise.normal(7, 3, (16,))).all()


def test_numbers_are_standard_normal() -> None:
    sample = noise.normal(42, noise.INITIAL, (100_000,)).astype(np.float64)
    assert abs(sample.mean()) < 0.02
    assert abs(sample.var() - 1) < 0.02


def test_the_second_convention_is_torchs_own_generator() -> None:
    torch.manual_seed(2**63 + 5)
    assert (noise.torch_cpu(2**63 + 5, (2, 3, 4)) == torch.randn(2, 3, 4).numpy()).all()
