"""Runs of the denoiser as captured CUDA graphs: the device replays a step without waiting for a launch of each kernel.

Plain UNets are bound by these launches: on an H100 a graph makes a step of SD 1.5 at 512² four to six times as fast. A
graph is captured the second time that a model, its ControlNets, shape, batch bucket and set of adapters meet; the first
time runs eagerly, as does everything that cannot be captured: other devices, weights that wait on the host, a capture
that failed.

All graphs share one pool: they never run beside one another, and each output is copied before the next replay. Where
a denoiser was compiled meanwhile, its shapes are captured anew from the compiled one.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from calotype_worker.compiling import Compiler, laid_out, stance
from calotype_worker.device import Device
from calotype_worker.job import Shape
from calotype_worker.pipelines.adapted import AdapterSet
from calotype_worker.pipelines.control import ControlNet
from calotype_worker.pipelines.family import ControlInput, DenoiseInput, Family

BUCKETS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32)
"""Samples of a graph; a run is padded to the next of them."""
MOST_GRAPHS = 48
MOST_SHARE = 1 / 8
"""The most of the device's memory that the pool may take before all graphs are dropped. It is no job's, and a part of
what the engine does not lease."""
WARM_UPS = 2

Key = tuple[tuple[int, ...], bool, str, int, tuple[int, ...], tuple[int, ...], tuple[str, ...]]
"""The first are the ids of the objects whose weights are read: the model and the ControlNets."""


@dataclass(frozen=True)
class Captured:
    """A graph with the tensors that it reads and writes.

    `model`, `bound` and the nets in `input` are held because the graph reads their weights by address.
    """

    graph: "torch.cuda.CUDAGraph"
    input: DenoiseInput
    output: torch.Tensor
    model: Family
    bound: AdapterSet

    def replay(self, input: DenoiseInput) -> torch.Tensor:
        """The output for `input`, whose samples may be fewer than the graph's."""
        _fill(self.input, input)
        self.graph.replay()
        return self.output[: len(input.sample)].clone()


class StepGraphs:
    """The graphs of a device. Does nothing where there is no CUDA."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._graphs: OrderedDict[Key, Captured] = OrderedDict()
        self._met: set[Key] = set()
        self._refused: set[Key] = set()
        self._pool: object = None
        self._warm_up: torch.cuda.Stream | None = None
        self._pool_bytes = 0
        self.compiler = Compiler(device)
        self.problem: str | None = None
        """Why the last capture failed."""
        self.did: tuple[str, ...] = ()
        """What the last run was, in words of a result's plan."""

    def denoise(self, model: Family, bound: AdapterSet, input: DenoiseInput) -> torch.Tensor:
        """One run of the denoiser, replayed where it can be; `bound` is active."""
        samples = len(input.sample)
        if samples > BUCKETS[-1] or not self._can_capture(model, input):
            self.compiler.ask(model, input)
            return self._run(model, input, self.compiler.network(model, input))
        bucket = next(size for size in BUCKETS if size >= samples)
        network = self.compiler.network(model, input)
        shapes = tuple(input.sample.shape[1:]), tuple(input.states.shape[1:])
        read = (id(model), *(id(unit.net) for unit in input.control))
        key: Key = (read, network is not None, bound.key, bucket, *shapes, tuple(input.added))
        captured = self._graphs.get(key)
        if captured is None:
            # No capture beside a compilation, which waits for the device in its own way.
            if key in self._refused or key not in self._met or self.compiler.busy:
                self._met.add(key)
                return self._run(model, input, network)
            captured = self._captured(key, model, bound, _padded(input, bucket), network)
            if captured is None:
                return self._run(model, input, network)
        self._graphs.move_to_end(key)
        self.did = ("graphs",) if network is None else ("graphs", "compiled")
        output = captured.replay(input)
        # Its graph serves until it is compiled.
        self.compiler.ask(model, captured.input)
        return output

    def _can_capture(self, model: Family, input: DenoiseInput) -> bool:
        stay = all(unit.net.offload == "none" for unit in input.control)
        return self._device.is_cuda and model.can_capture and stay

    def _run(self, model: Family, input: DenoiseInput, network: Any) -> torch.Tensor:
        self.did = () if network is None else ("compiled",)
        if network is None:
            return model.denoise(input)
        with stance("eager_on_recompile"):
            return model.denoise(laid_out(input), network)

    def _captured(
        self, key: Key, model: Family, bound: AdapterSet, static: DenoiseInput, network: Any
    ) -> Captured | None:
        most = self._device.total_and_free_bytes()[0] * MOST_SHARE
        if len(self._graphs) >= MOST_GRAPHS or self._pool_bytes > most:
            self.clear()
        try:
            # One stream for all: cuBLAS keeps a workspace of 33 MiB for each that it has met.
            stream = self._warm_up = self._warm_up or torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                # What is made once (workspaces, choices of algorithms) must not be made inside a graph.
                for _ in range(WARM_UPS):
                    self._run(model, static, network)
            torch.cuda.current_stream().wait_stream(stream)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            # As the capture does itself, or what it frees would hide what it takes.
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved()
            graph = torch.cuda.CUDAGraph()
            # The beat's thread may ask for the free memory meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):  # type: ignore[arg-type]
                output = self._run(model, static, network)
        except RuntimeError as error:
            self.problem = str(error)
            self._refused.add(key)
            torch.cuda.synchronize()
            return None
        self._pool_bytes += max(torch.cuda.memory_reserved() - before, 0)
        self._graphs[key] = Captured(graph, static, output, model, bound)
        return self._graphs[key]

    @property
    def pool_bytes(self) -> int:
        """Memory that the graphs keep for their runs, whether they run or not."""
        return self._pool_bytes

    def captured_samples(self, shape: Shape) -> int:
        """The most samples of a graph for runs of this shape."""
        return max((key[3] for key, captured in self._graphs.items() if _serves(key, captured, shape)), default=0)

    def forget(self, model: Family | ControlNet) -> None:
        """Drop the graphs of a model, which would keep its weights; none of them may be running."""
        for key in [key for key in self._graphs if id(model) in key[0]]:
            del self._graphs[key]
        if isinstance(model, Family):
            self.compiler.forget(model)
        self._met = {key for key in self._met if id(model) not in key[0]}
        self._refused = {key for key in self._refused if id(model) not in key[0]}
        if not self._graphs:
            self._pool, self._pool_bytes = None, 0
            self._device.drop_workspaces()

    def forget_sets(self, sets: Sequence[AdapterSet]) -> None:
        """Drop the graphs that read these weights, and so keep them, once none of them runs."""
        reading = [key for key, captured in self._graphs.items() if any(captured.bound is one for one in sets)]
        if reading:
            self._device.synchronize()
        for key in reading:
            del self._graphs[key]

    def clear(self) -> None:
        """Drop all graphs and their memory, once none of them runs."""
        if self._graphs:
            self._device.synchronize()
        self._graphs.clear()
        self._pool, self._pool_bytes = None, 0
        self._device.drop_workspaces()
        self._device.trim()


def _serves(key: Key, captured: Captured, shape: Shape) -> bool:
    _, _, adapters, _, sample, states, _ = key
    nets = tuple(unit.net.id for unit in captured.input.control)
    ours = (captured.model.id, adapters, sample[1:], states, nets)
    return ours == (shape.model, shape.adapters, shape.latent[1:], shape.context, shape.control)


def _padded(input: DenoiseInput, bucket: int) -> DenoiseInput:
    """A copy with `bucket` samples: those of `input`, then zeros."""

    def padded(tensor: torch.Tensor) -> torch.Tensor:
        copy = torch.zeros((bucket, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device)
        copy[: len(tensor)] = tensor
        return copy

    added = {name: padded(tensor) for name, tensor in input.added.items()}
    control = [ControlInput(unit.net, padded(unit.image), padded(unit.factors)) for unit in input.control]
    return DenoiseInput(padded(input.sample), padded(input.timesteps), padded(input.states), added, control)


def _fill(static: DenoiseInput, input: DenoiseInput) -> None:
    samples = len(input.sample)
    static.sample[:samples].copy_(input.sample)
    static.timesteps[:samples].copy_(input.timesteps)
    static.states[:samples].copy_(input.states)
    for name, tensor in input.added.items():
        static.added[name][:samples].copy_(tensor)
    for unit, own in zip(static.control, input.control):
        unit.image[:samples].copy_(own.image)
        unit.factors[:samples].copy_(own.factors)
