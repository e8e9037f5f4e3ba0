"""Each kernel against exact numbers: on a GPU by `test_gpu`, on a CPU as a process of its own in Triton's interpreter.

The tolerances are a few roundings of the type at the values' size.
"""

import sys

import torch
from torch.nn import functional

from calotype_worker.kernels import geglu, group_norm, layer_norm, pixels

ROUNDING = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Relative, and absolute at values of 1."""


def near(ours: torch.Tensor, exact: torch.Tensor, times: float = 1.0) -> None:
    tolerance = ROUNDING[ours.dtype] * times
    assert ours.shape == exact.shape
    torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance)


def random(*shape: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    return torch.randn(*shape, device=device).to(dtype)


def picture(*shape: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    return random(*shape, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)


def group_norms(dtype: torch.dtype, device: str, edges: tuple[int, ...]) -> None:
    """Small groups by one kernel, large ones by three; odd sizes; each of the biases with and without."""
    for images, channels, groups, edge, silu, biased, left in (
        (2, 80, 8, edges[0], True, True, True),
        (1, 40, 4, edges[1], False, False, False),
        (1, 24, 3, edges[2], True, True, False),
        (2, 48, 4, edges[2], False, False, True),
    ):
        norm = group_norm.GroupNorm(groups, channels, eps=1e-5).to(device, dtype)
        norm.weight.data.normal_()
        norm.bias.data.normal_()
        norm.silu = silu
        x = picture(images, channels, edge, edge, dtype=dtype, device=device) + 4.0
        bias = random(images, channels, dtype=dtype, device=device) if biased else None
        shared = random(channels, dtype=dtype, device=device) if left else None
        ours = group_norm.fused(x, bias, norm, shared)
        assert ours.is_contiguous(memory_format=torch.channels_last)
        exact = x.double() + (0 if bias is None else bias.double()[:, :, None, None])
        exact = exact + (0 if shared is None else shared.double()[:, None, None])
        exact = functional.group_norm(exact, groups, norm.weight.double(), norm.bias.double(), 1e-5)
        near(ours, functional.silu(exact) if silu else exact, times=4)


def layer_norms(dtype: torch.dtype, device: str, rows: int) -> None:
    for shape in ((3, rows, 40), (1, 5, 320), (2, 3, 1280), (7, 33)):
        norm = layer_norm.SumNorm(shape[-1]).to(device, dtype)
        norm.weight.data.normal_()
        norm.bias.data.normal_()
        x, residual = (random(*shape, dtype=dtype, device=device) for _ in range(2))
        weight, bias = norm.weight.double(), norm.bias.double()
        total, normed = layer_norm.fused(x, residual, norm)
        near(total, x.double() + residual.double())
        near(normed, functional.layer_norm(total.double(), shape[-1:], weight, bias, norm.eps), times=2)
        same, normed = layer_norm.fused(x, None, norm)
        assert same is x
        near(normed, functional.layer_norm(x.double(), shape[-1:], weight, bias, norm.eps), times=2)


def sums(dtype: torch.dtype, device: str, rows: int) -> None:
    """Biases before a norm, which the sum keeps only together with what comes after them."""
    for shape in ((3, rows, 40), (1, 5, 320), (7, 33)):
        norm = layer_norm.LayerNorm(shape[-1]).to(device, dtype)
        norm.weight.data.normal_()
        norm.bias.data.normal_()
        x = random(*shape, dtype=dtype, device=device)
        one, two, then = (random(shape[-1], dtype=dtype, device=device) for _ in range(3))
        weight, bias = norm.weight.double(), norm.bias.double()
        kept = x.clone()
        exact = functional.layer_norm(x.double() + one.double(), shape[-1:], weight, bias, norm.eps)
        near(layer_norm.fused_with(kept, [one], norm, None), exact, times=2)
        assert torch.equal(kept, x)
        exact = x.double() + one.double() + two.double()
        normed = layer_norm.fused_with(kept, [one, two], norm, then)
        near(normed, functional.layer_norm(exact, shape[-1:], weight, bias, norm.eps), times=2)
        near(kept, exact + then.double(), times=2)
        near(layer_norm._plain_with(x, [one, two], norm, then), normed.double(), times=4)
        near(x, kept.double(), times=2)


def gates(dtype: torch.dtype, device: str, rows: int) -> None:
    for shape in ((2, rows, 2 * 40), (13, 2 * 256), (1, 3, 2 * 333)):
        x = 2 * random(*shape, dtype=dtype, device=device)
        values, gate = x.double().chunk(2, dim=-1)
        near(geglu.fused(x), values * functional.gelu(gate), times=2)


def gated_products(dtype: torch.dtype, device: str, rows: int) -> None:
    for inputs, width in ((40, 64), (320, 128)):
        layer = torch.nn.Linear(inputs, 2 * width).to(device, dtype)
        x = random(2, rows, inputs, dtype=dtype, device=device)
        weight, bias = layer.weight.double(), layer.bias.double()
        values, gate = functional.linear(x.double(), weight, bias).chunk(2, dim=-1)
        near(geglu.fused_product(x, layer), values * functional.gelu(gate), times=2)


def totals(dtype: torch.dtype, device: str, edge: int) -> None:
    for images, channels in ((2, 4), (1, 70), (1, 128)):
        x, residual = (picture(images, channels, edge, edge + 3, dtype=dtype, device=device) for _ in range(2))
        bias = random(channels, dtype=dtype, device=device)
        exact = x.double() + bias.double()[:, None, None]
        ours = pixels.fused_total(x.clone(), bias, residual)
        assert pixels.is_channels_last(ours)
        near(ours, exact + residual.double())
        near(pixels.fused_total(x.clone(), bias, None), exact)
        # What lies otherwise is brought into order first.
        near(pixels.fused_total(x.contiguous(), bias, residual.contiguous()), exact + residual.double())


def remembered(dtype: torch.dtype, device: str, edge: int) -> None:
    """The sum of a large picture tells its moments to the norm after it, until something else writes to it."""
    x, residual = (picture(2, 48, edge, edge, dtype=dtype, device=device) for _ in range(2))
    bias = random(48, dtype=dtype, device=device) + 3.0
    total = pixels.fused_total(x, bias, residual)
    moments = group_norm.remembered(total)
    assert moments is not None
    near(moments[:, 0, 0], total.flatten(2)[:, :, : group_norm.BLOCK_ROWS].double().mean(-1), times=1)
    norm = group_norm.GroupNorm(4, 48).to(device, dtype)
    near(group_norm.fused(total, None, norm), functional.group_norm(total.double(), 4, eps=norm.eps), times=4)
    total += 1.0
    assert group_norm.remembered(total) is None
    assert group_norm.remembered(pixels.fused_total(x[:, :, :8, :8].clone(), bias, None)) is None


def doublings(dtype: torch.dtype, device: str, edge: int) -> None:
    for images, channels in ((3, 4), (2, 70)):
        x = picture(images, channels, edge, edge + 2, dtype=dtype, device=device)
        ours = pixels.fused_doubled(x)
        assert pixels.is_channels_last(ours)
        assert torch.equal(ours, functional.interpolate(x, scale_factor=2.0, mode="nearest"))


@torch.no_grad()
def main() -> None:
    """All of them in the interpreter, at small sizes."""
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float16):
        group_norms(dtype, "cpu", (13, 8, 67))
        layer_norms(dtype, "cpu", 19)
        sums(dtype, "cpu", 19)
        gates(dtype, "cpu", 11)
        if dtype == torch.float16:
            gated_products(dtype, "cpu", 67)
        totals(dtype, "cpu", 9)
        remembered(dtype, "cpu", 67)
        doublings(dtype, "cpu", 7)
    print("exact")


if __name__ == "__main__":
    sys.exit(main())
