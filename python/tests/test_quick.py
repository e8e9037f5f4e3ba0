"""The exchanged modules compute what diffusers' own compute, by kernels and without them."""

import copy
from typing import Any

import pytest
import torch

from calotype_worker.kernels.group_norm import GroupNorm
from calotype_worker.kernels.layer_norm import LayerNorm, SumNorm
from calotype_worker.kernels.pixels import Convolution, ConvolutionApart, Pointwise
from calotype_worker.pipelines.blocks import Attend, Gated, Resnet, Transformer2D, TransformerBlock, Upsample
from calotype_worker.pipelines.quick import quicken

from . import tiny
from .conftest import assert_in_tritons_interpreter


def test_quickened_modules_compute_the_same_by_kernels_in_tritons_interpreter() -> None:
    assert_in_tritons_interpreter("tests.interpreted", "same")


@pytest.mark.parametrize("times", [None, 6])
def test_a_quickened_unet_gives_diffusers_numbers_and_keeps_its_names(times: int | None) -> None:
    torch.manual_seed(0)
    plain = tiny.unet(tiny.TEXT, times).eval()
    quick = copy.deepcopy(plain)
    quicken(quick)
    kinds = {type(part) for part in quick.modules()}
    assert {Resnet, Transformer2D, TransformerBlock, Gated, Upsample, GroupNorm, LayerNorm, SumNorm} <= kinds
    assert {Convolution, ConvolutionApart, Pointwise} <= kinds
    assert not {torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm} & kinds
    assert all(part.adds_in_place for part in quick.modules() if isinstance(part, TransformerBlock))
    assert all(isinstance(part.processor, Attend) for part in quick.modules() if hasattr(part, "processor"))
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
