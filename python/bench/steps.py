"""Where the time of one run of the denoiser goes: its CUDA kernels by total time, eager and compiled."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.sizes import DEVICE, family
from calotype_worker.compiling import laid_out, stance
from calotype_worker.pipelines.adapted import PLAIN
from calotype_worker.pipelines.family import DenoiseInput, Family

SAMPLES, RUNS, KERNELS = 16, 5, 15
ATTENTION = {
    "cudnn": [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH],
    "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH],
}


def attention(name: str) -> AbstractContextManager[Any]:
    """Inside, attention is computed by a backend; `default` is torch's own choice."""
    return nullcontext() if name == "default" else sdpa_kernel(ATTENTION[name], set_priority=True)


@torch.no_grad()
def profile(name: str, edge: int) -> str:
    """The kernels of a run of 16 samples, as text: eager, then its graph's time by attention backend."""
    model = family(name)
    input = _input(model, edge)
    lines = [f"{name} {edge}², {SAMPLES} samples"]
    for backend in ("default", *ATTENTION):
        try:
            with attention(backend):
                lines.append(f"graph of eager, attention {backend}: {_graph_ms(lambda: model.denoise(input)):.2f} ms")
        except RuntimeError as error:
            lines.append(f"attention {backend}: {error}")
    lines.append(_kernels(lambda: model.denoise(input)))
    latents = torch.randn((8, *input.sample.shape[1:]), device=DEVICE)
    for count in (1, 8):
        decoding = _graph_ms(lambda count=count: model.decode(latents[:count]))  # type: ignore[misc]
        lines.append(f"VAE, {count} pictures: {decoding:.2f} ms")
    lines.append(_kernels(lambda: model.decode(latents)))
    return "\n".join(lines)


def compiled_kernels(model: Family, network: Any, edge: int) -> str:
    """The kernels of a run of the compiled denoiser."""
    input = _input(model, edge)
    with torch.no_grad(), stance("eager_on_recompile"):
        return _kernels(lambda: model.denoise(laid_out(input), network))


def _input(model: Family, edge: int) -> DenoiseInput:
    latent = (model.latent_channels, edge // model.scale, edge // model.scale)
    conditioning = model.encode(PLAIN, [], [], 1.0, 0).cond
    added = {name: _rows(value) for name, value in model.added(conditioning, latent, 1.0).items()}
    return DenoiseInput(
        torch.randn((SAMPLES, *latent), device=DEVICE),
        torch.full((SAMPLES,), 500.0, device=DEVICE),
        _rows(conditioning.states.to(model.dtype)),
        added,
    )


def _rows(value: torch.Tensor) -> torch.Tensor:
    return value[None].repeat(SAMPLES, *[1] * value.ndim)


def _graph_ms(work: Callable[[], object]) -> float:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    graph.replay()
    begin.record()
    for _ in range(RUNS):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / RUNS


def _kernels(work: Callable[[], object]) -> str:
    for _ in range(2):
        work()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        work()
        torch.cuda.synchronize()
    rows = sorted(found.key_averages(), key=lambda row: -row.self_device_time_total)
    total = sum(row.self_device_time_total for row in rows)
    lines = [f"{total / 1e3:9.2f} ms in all kernels"]
    for row in rows[:KERNELS]:
        lines.append(f"{row.self_device_time_total / 1e3:9.2f} ms {row.count:5d}x  {row.key[:110]}")
    return "\n".join(lines)
