"""The exchanged modules compute what diffusers' own compute; the kernels what PyTorch's group norm computes."""

import copy
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from calotype_worker.norms import GroupNorm
from calotype_worker.pipelines.quick import Resnet, Transformer2D, quicken

from . import tiny

KERNELS = """
import torch
from torch.nn import functional
from calotype_worker import norms

torch.manual_seed(0)
for images, channels, groups, edge, dtype, silu, biased in (
    (2, 80, 8, 13, torch.float32, True, True),
    (1, 40, 4, 8, torch.float16, False, False),
    (1, 24, 8, 96, torch.float32, True, False),
):
    norm = norms.GroupNorm(groups, channels, eps=1e-5).to(dtype)
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    norm.silu = silu
    x = (torch.randn(images, channels, edge, edge) + 30.0).to(dtype)
    bias = torch.randn(images, channels).to(dtype) if biased else None
    with torch.no_grad():
        ours = norms.fused(x, bias, norm)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    exact = x.double() + (0 if bias is None else bias.double()[:, :, None, None])
    exact = functional.group_norm(exact, groups, norm.weight.double(), norm.bias.double(), 1e-5)
    exact = functional.silu(exact) if silu else exact
    worst = (ours.double() - exact).abs().max().item()
    assert worst < (1e-4 if dtype == torch.float32 else 2e-2), (dtype, worst)
print("agree")
"""


def test_the_kernels_agree_with_an_exact_group_norm_in_tritons_interpreter() -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, "-c", KERNELS], capture_output=True, text=True, env=environment, check=False)
    assert run.stdout.strip() == "agree", run.stderr[-2000:]


@pytest.mark.parametrize("times", [None, 6])
def test_a_quickened_unet_gives_diffusers_numbers_and_keeps_its_names(times: int | None) -> None:
    torch.manual_seed(0)
    plain = tiny.unet(tiny.TEXT, times).eval()
    quick = copy.deepcopy(plain)
    quicken(quick)
    kinds = {type(part) for part in quick.modules()}
    assert {Resnet, Transformer2D, GroupNorm} <= kinds
    assert list(dict(quick.named_parameters())) == list(dict(plain.named_parameters()))
    added: Any = None
    if times is not None:
        added = {"text_embeds": torch.randn(2, tiny.TEXT), "time_ids": torch.ones(2, 6)}
    inputs = torch.randn(2, 4, 16, 16), torch.tensor([500.0, 20.0]), torch.randn(2, 77, tiny.TEXT)
    with torch.no_grad():
        ours, theirs = (one(*inputs, added_cond_kwargs=added, return_dict=False)[0] for one in (quick, plain))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_quickened_vae_gives_diffusers_numbers() -> None:
    torch.manual_seed(0)
    plain = tiny.vae().eval()
    quick = copy.deepcopy(plain)
    quicken(quick)
    exchanged = [module for module in quick.modules() if isinstance(module, Resnet)]
    assert exchanged and all(isinstance(block.norm1, GroupNorm) for block in exchanged)
    latents, pixels = torch.randn(2, 4, 8, 8), torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(quick.decode(latents).sample, plain.decode(latents).sample, atol=1e-5)
        ours, theirs = (one.encode(pixels).latent_dist.mode() for one in (quick, plain))
    assert torch.allclose(ours, theirs, atol=1e-5)
