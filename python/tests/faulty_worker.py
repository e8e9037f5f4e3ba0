"""The worker with a fault: `python faulty_worker.py FAULT [--once FILE]`, for tests of whoever starts workers.

Steps are runs of the denoiser, counted from 1 over the life of the process. A fault of a step happens at each from that
one on. With `--once` it happens only while FILE is not there; it is made at that moment, so that what is tried again,
by this process or the next, goes well.

    none            no fault
    import_error    torch cannot be imported: `fatal` after `welcome`
    stdout_noise    everything that can print does, before `hello` and in each step; the stream stays clean
    hang            step 3 blocks in C and holds the interpreter's lock: beats and pongs stop
    oom             step 2 has no memory
    device_fault    step 2 loses the device's context: `fatal`, and the process ends
    device_assert   step 3 has a CUDA device find out, later, that an index is beyond its tensor: likewise
    kill            step 2 kills the process with SIGKILL
    stop            step 2 stops it with SIGSTOP; SIGCONT lets it go on
    slow_load       each load after the first takes 6 s more, with progress at its end only; beats go on
    hung_load       the load after the first never ends; beats go on
"""

import sys
from pathlib import Path

# As `python -m calotype_worker` would find it, and without this folder, whose modules are tests.
sys.path[0] = str(Path(__file__).resolve().parents[1])

# Before any other import, as in `__main__`.
from calotype_worker.stdout import claim  # noqa: E402

PROTOCOL_FD = claim()

import argparse  # noqa: E402
import ctypes  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from importlib.machinery import ModuleSpec  # noqa: E402
from typing import Any  # noqa: E402

from calotype_worker import handshake  # noqa: E402
from calotype_worker.serve import main  # noqa: E402

LIBC = ctypes.CDLL(None)
# Calls through this one keep the interpreter's lock.
LOCKING_LIBC = ctypes.PyDLL(None)


class Once:
    """Whether the fault happens."""

    def __init__(self, mark: Path | None) -> None:
        self._mark = mark

    def happens(self) -> bool:
        """It does, unless it is to happen once and has."""
        if self._mark is None:
            return True
        try:
            self._mark.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class NoTorch:
    """A finder that fails for torch."""

    def __init__(self, once: Once) -> None:
        self._once = once

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        """Raise for torch; anything else is left to the other finders."""
        if name == "torch" and self._once.happens():
            raise ImportError("libcudart.so.13: cannot open shared object file: No such file or directory")
        return None


def noise() -> None:
    """Write to stdout in every way that is known to happen behind one's back."""
    print("noise from print", flush=True)
    if sys.__stdout__ is not None:
        sys.__stdout__.write("noise from the first stdout\n")
        sys.__stdout__.flush()
    os.write(1, b"noise from fd 1\n")
    LIBC.puts(b"noise from C")
    LIBC.fflush(None)
    subprocess.run(["echo", "noise from a grandchild"], check=True)
    child = os.fork()
    if child == 0:
        os.write(1, b"noise from a fork\n")
        try:
            os.write(PROTOCOL_FD, b"noise on the protocol\n")
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def hang() -> None:
    """Never come back, and let no other thread run."""
    while True:
        LOCKING_LIBC.pause()


def out_of_memory() -> None:
    """What torch says when an allocation fails."""
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free")


def device_fault() -> None:
    """What torch says of a lost context."""
    import torch

    kind = getattr(torch, "AcceleratorError", RuntimeError)
    raise kind("CUDA error: an illegal memory access was encountered")


def device_assert() -> None:
    """A kernel that fails on the device while the host goes on: the context is lost with it."""
    import torch

    table, beyond = torch.zeros(4, device="cuda"), torch.tensor([4], device="cuda")
    table[beyond]


def send(number: signal.Signals) -> Callable[[], None]:
    """A signal to this process."""
    return lambda: os.kill(os.getpid(), number)


STEPS: dict[str, tuple[int, Callable[[], None]]] = {
    "stdout_noise": (1, noise),
    "hang": (3, hang),
    "oom": (2, out_of_memory),
    "device_fault": (2, device_fault),
    # The first step is told once the second is launched.
    "device_assert": (3, device_assert),
    "kill": (2, send(signal.SIGKILL)),
    "stop": (2, send(signal.SIGSTOP)),
}
"""Faults of a step: from which on, and what happens."""
LOADS: dict[str, float] = {"slow_load": 6.0, "hung_load": float("inf")}
"""Faults of a load: seconds that it takes more."""
FAULTS = ("none", "import_error", *STEPS, *LOADS)


def when_ready(change: Callable[[], None]) -> None:
    """Change what imports torch, which `hello` does not wait for: it is there once `ready` is said."""
    ready = handshake.ready

    def changed(device: Any) -> Any:
        change()
        return ready(device)

    handshake.ready = changed


def at_loads(seconds: float, once: Once) -> None:
    """Have each load after the first take longer."""

    def change() -> None:
        from calotype_worker.pipelines import registry

        load, loads = registry.load, 0

        def faulty(*arguments: Any) -> Any:
            nonlocal loads
            loads += 1
            if loads > 1 and once.happens():
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    time.sleep(0.1)
            return load(*arguments)

        registry.load = faulty  # type: ignore[assignment]

    when_ready(change)


def at_steps(first: int, fault: Callable[[], None], once: Once) -> None:
    """Have a fault happen at steps."""

    def change() -> None:
        from calotype_worker.graphs import StepGraphs

        denoise, steps = StepGraphs.denoise, 0

        def faulty(graphs: StepGraphs, *arguments: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps >= first and once.happens():
                fault()
            return denoise(graphs, *arguments)

        StepGraphs.denoise = faulty  # type: ignore[method-assign, assignment]

    when_ready(change)


def inject(fault: str, once: Once) -> None:
    """Have a fault happen in this process, later."""
    if fault == "import_error":
        sys.meta_path.insert(0, NoTorch(once))
    if fault == "stdout_noise":
        if not once.happens():
            return
        noise()
        # It goes on in this process.
        once = Once(None)
    if fault in STEPS:
        at_steps(*STEPS[fault], once)
    if fault in LOADS:
        at_loads(LOADS[fault], once)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fault", choices=FAULTS)
    parser.add_argument("--once", type=Path, metavar="FILE", help="made when the fault happens; where it is, none does")
    asked = parser.parse_args()
    inject(asked.fault, Once(asked.once))
    sys.exit(main(PROTOCOL_FD))
