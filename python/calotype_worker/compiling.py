"""Compiles the denoisers of models whose plan asks for it, on a thread of its own, while steps go on uncompiled.

One compilation serves every number of samples of a shape. Compiling takes a minute or two, less where the compiler's
own cache on disk (`TORCHINDUCTOR_CACHE_DIR`) knows the model already. A failure is said once, and nothing else changes.
The loop itself never compiles: what would need it runs uncompiled.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from calotype_worker.device import Device
from calotype_worker.pipelines.family import DenoiseInput, Family
from calotype_worker.wire.words import LogLevel

MOST_SAMPLES = 32
EXAMPLES = (16, 2)
"""Samples of the runs that warm up: the compiler tunes for the first, and the second must need little that is new."""
CPU_EXAMPLES = (8, 2)
"""From 16 on, convolutions of a CPU take another way, which would be compiled apart."""
SWITCH_S = 0.0005
"""How long the compiling thread may keep the interpreter from the loop; Python's own 5 ms would slow every step."""

Shapes = tuple[tuple[int, ...], ...]


@dataclass
class Compiled:
    """A model's compiled denoiser and the shapes that it is ready for."""

    network: Any
    ready: set[Shapes] = field(default_factory=set)
    asked: set[Shapes] = field(default_factory=set)


class Compiler:
    """Compiles one shape at a time."""

    backend = "inductor"

    def __init__(self, device: Device) -> None:
        self._device = device
        self._models: dict[int, Compiled] = {}
        self._thread: threading.Thread | None = None
        self.said: deque[tuple[LogLevel, str]] = deque()
        """What is to be logged."""

    @property
    def busy(self) -> bool:
        """Whether something is being compiled."""
        return self._thread is not None and self._thread.is_alive()

    def network(self, model: Family, input: DenoiseInput) -> Any:
        """The compiled denoiser for an input; None where there is none."""
        compiled = self._models.get(id(model))
        # What a run is allowed to do is a setting of the whole process: it waits while the thread needs it otherwise.
        if compiled is None or self.busy or not _serves(model, input):
            return None
        return compiled.network if _shapes(model, input) in compiled.ready else None

    def ask(self, model: Family, input: DenoiseInput) -> None:
        """Have the denoiser compiled for inputs like this one, unless that was tried before."""
        if not model.plan.compile or not model.can_capture or self.busy or not _serves(model, input):
            return
        compiled = self._models.get(id(model))
        if compiled is None:
            network = torch.compile(model.denoiser, backend=self.backend)
            compiled = self._models[id(model)] = Compiled(network)
        shapes = _shapes(model, input)
        if shapes in compiled.asked:
            return
        compiled.asked.add(shapes)
        several = EXAMPLES if self._device.is_cuda else CPU_EXAMPLES
        sizes = several if model.compiles_any_batch else (len(input.sample),)
        examples = [_example(input, model, size) for size in sizes]
        arguments = (model, compiled, shapes, examples, input)
        self._thread = threading.Thread(target=self._compile, args=arguments, name="compiler", daemon=True)
        self._thread.start()

    def compiled(self, model: Family) -> Any:
        """A model's compiled denoiser, whatever it is ready for."""
        return self._models[id(model)].network

    def _compile(
        self, model: Family, compiled: Compiled, shapes: Shapes, examples: list[DenoiseInput], asked: DenoiseInput
    ) -> None:
        started = time.perf_counter()
        before = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        try:
            with torch.no_grad(), self._stream():
                for example in examples:
                    if model.compiles_any_batch:
                        _mark(example)
                    model.denoise(example, compiled.network)
                # What the loop will run must be served as it is.
                with stance("fail_on_recompile"):
                    model.denoise(laid_out(asked), compiled.network)
            compiled.ready.add(shapes)
            self.said.append(("info", f"`{model.id}` is compiled, in {time.perf_counter() - started:.0f} s"))
        except Exception as error:
            why = f"{type(error).__name__}: {error}"[:2000]
            self.said.append(("warn", f"`{model.id}` was not compiled and goes on as before: {why}"))
        finally:
            sys.setswitchinterval(before)

    @contextmanager
    def _stream(self) -> Iterator[None]:
        if not self._device.is_cuda:
            yield
            return
        torch.cuda.set_device(self._device.torch)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            yield
        stream.synchronize()

    def wait(self) -> None:
        """Wait until nothing is being compiled."""
        if self._thread is not None:
            self._thread.join()

    def forget(self, model: Family) -> None:
        """Drop what was compiled for a model. One that is being compiled is held until that is over."""
        if self._models.pop(id(model), None) is not None and not self._models and not self.busy:
            torch.compiler.reset()


def stance(name: str) -> Any:
    """Inside, what was not compiled before fails (`fail_on_recompile`) or runs uncompiled (`eager_on_recompile`)."""
    set_stance = getattr(torch.compiler, "set_stance", None)
    return nullcontext() if set_stance is None else set_stance(name)


def laid_out(input: DenoiseInput) -> DenoiseInput:
    """The same without strides of their own, which the compiler would take for another case."""
    added = {name: tensor.contiguous() for name, tensor in input.added.items()}
    return DenoiseInput(input.sample.contiguous(), input.timesteps.contiguous(), input.states.contiguous(), added)


def _serves(model: Family, input: DenoiseInput) -> bool:
    # The compiler takes one sample for a case of its own.
    least = 2 if model.compiles_any_batch else 1
    return not input.control and least <= len(input.sample) <= MOST_SAMPLES


def _shapes(model: Family, input: DenoiseInput) -> Shapes:
    samples = 0 if model.compiles_any_batch else len(input.sample)
    tensors = [input.sample, input.states, *input.added.values()]
    return ((samples,), *(tuple(tensor.shape[1:]) for tensor in tensors))


def _example(input: DenoiseInput, model: Family, samples: int) -> DenoiseInput:
    """A copy with so many samples, as it reaches the denoiser."""

    def resized(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[:1].repeat(samples, *[1] * (tensor.ndim - 1))

    sample = resized(input.sample).to(model.dtype)
    if sample.is_cuda:
        sample = sample.contiguous(memory_format=torch.channels_last)
    added = {name: resized(tensor) for name, tensor in input.added.items()}
    return DenoiseInput(sample, resized(input.timesteps), resized(input.states), added)


def _mark(example: DenoiseInput) -> None:
    for tensor in (example.sample, example.timesteps, example.states, *example.added.values()):
        # Not `mark_dynamic`, which fails where any operation has a limit; the second example finds those.
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
