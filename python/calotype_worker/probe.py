"""Figures of the device: what it has, and what it was measured to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Literal

import torch

from calotype_worker.pipelines.adapted import PLAIN
from calotype_worker.pipelines.family import DenoiseInput, Family

if TYPE_CHECKING:
    from calotype_worker.tick import Loop

COPY_BYTES = 64 << 20
MATMUL_EDGE = 1024
RUNS = 3


def figures(loop: Loop, op: Literal["device", "benchmark"]) -> dict[str, float]:
    """Name to figure; the unit is in the name."""
    total, free = loop.device.total_and_free_bytes()
    found = {
        "total_bytes": float(total),
        "free_bytes": float(free),
        "used_bytes": float(loop.device.used_bytes()),
        "threads": float(torch.get_num_threads()),
    }
    if op == "benchmark":
        found |= _measured(loop)
    return found


def _measured(loop: Loop) -> dict[str, float]:
    device = loop.device.torch
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source, device=device)
    dtype = torch.float16 if loop.device.is_cuda else torch.float32
    matrix = torch.full((MATMUL_EDGE, MATMUL_EDGE), 0.5, dtype=dtype, device=device)
    copy_s = _seconds(loop, lambda: target.copy_(source))
    matmul_s = _seconds(loop, lambda: matrix @ matrix)
    found = {"copy_bytes_per_s": COPY_BYTES / copy_s, "matmul_flops_per_s": 2 * MATMUL_EDGE**3 / matmul_s}
    for model in loop.models.values():
        if isinstance(model, Family):
            found[f"step_256_ms.{model.id}"] = _seconds(loop, _step(model)) * 1e3
    return found


def _step(model: Family) -> Callable[[], object]:
    """One run of the denoiser for one image of 256²."""
    latent = (model.latent_channels, 256 // model.scale, 256 // model.scale)
    conditioning = model.encode(PLAIN, [], [], 1.0, 0).cond
    model.activate(PLAIN)
    model.whereabouts.bring(model.denoiser)
    input = DenoiseInput(
        torch.full((1, latent[0] + model.extra_channels, *latent[1:]), 0.5, device=model.device),
        torch.full((1,), 500.0, device=model.device),
        conditioning.states[None].to(model.dtype),
        {name: value[None] for name, value in model.added(conditioning, latent, 1.0).items()},
    )
    return lambda: model.denoise(input)


def _seconds(loop: Loop, work: Callable[[], object]) -> float:
    """The median time of a piece of work, after one run that is not counted."""
    times = []
    for _ in range(RUNS + 1):
        loop.device.synchronize()
        started = time.perf_counter()
        work()
        loop.device.synchronize()
        times.append(time.perf_counter() - started)
    return max(median(times[1:]), 1e-9)
