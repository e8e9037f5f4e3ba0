"""The device that this worker owns: its facts, its memory, and when what was launched on it is done.

The only file that tells devices apart. On a CPU everything is done when it returns; on an accelerator work is queued,
and a `Fence` says when it is over.
"""

import ctypes
import gc
import importlib
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from calotype_worker.errors import DeviceLost, NotSupported, first_line
from calotype_worker.pipelines.offloaded import Offload, Whereabouts
from calotype_worker.segments import CudaPageLock, Segments
from calotype_worker.wire.down import LoadPlan, WorkerDevice
from calotype_worker.wire.up import DeviceFacts, MemoryReport
from calotype_worker.wire.words import Dtype

TORCH_DTYPES: dict[Dtype, torch.dtype] = {
    "u8": torch.uint8,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
}
VAE_BYTES_A_PIXEL = 2048
"""What a decoding takes at its end: some tensors of 256 channels in f16."""
VAE_SHARE = 0.25
"""The most of the free memory that is taken for more than one picture."""
PROOF = 1024
"""Numbers that are added up to see whether a device works; the sum is exact in f32."""
_TORCH_KINDS = {"cpu": "cpu", "cuda": "cuda", "rocm": "cuda", "xpu": "xpu", "mps": "mps", "directml": "directml"}


@dataclass(frozen=True)
class Fence:
    """The end of what was launched until now."""

    event: "torch.cuda.Event | None"

    def ready(self) -> bool:
        """Whether it has come; does not wait."""
        return self.event is None or bool(self.event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Wait for it."""
        if self.event is not None:
            self.event.synchronize()


class Device:
    """A device with its figures. `run_ahead` is how many steps are queued before the first of them is waited for."""

    def __init__(self, kind: str, torch_device: torch.device) -> None:
        self.kind = kind
        self.torch = torch_device
        self.is_cuda = torch_device.type == "cuda"
        self.is_apart = torch_device.type in ("cuda", "xpu")
        """Whether its memory is another than the host's."""
        self.fuses_attention = torch_device.type in ("cpu", "cuda", "xpu")
        """Whether torch computes attention without holding the scores of all pairs of tokens."""
        self.whereabouts = Whereabouts(torch_device)
        self._account: Any = getattr(torch, torch_device.type) if self.is_apart else None
        """Where torch counts what is held of memory that is the device's own."""
        self._side: torch.cuda.Stream | None = None
        self._peak_bytes = 0
        """Of the laps before this one."""
        self.segments = Segments(CudaPageLock(torch_device) if self.is_cuda else None)
        # One step queued behind the one that runs keeps the device busy while the host reports.
        self.run_ahead = 1 if self.is_cuda else 0

    @staticmethod
    def open(asked: WorkerDevice, threads: int, deterministic: bool) -> "Device":
        """Take the device that the orchestrator gave."""
        kind = _TORCH_KINDS.get(asked.kind)
        if kind is None:
            known = ", ".join(_TORCH_KINDS)
            raise NotSupported(f"this worker does not know the device kind `{asked.kind}`; it knows {known}")
        if threads > 0:
            torch.set_num_threads(threads)
        if deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)
        if kind == "cpu":
            return Device(asked.kind, torch.device("cpu"))
        if kind == "directml":
            return Device(asked.kind, _directml(asked.index))
        accelerator = getattr(torch, kind) if kind != "mps" else torch.backends.mps
        if not accelerator.is_available():
            raise DeviceLost(f"torch {torch.__version__} finds no device of the kind `{asked.kind}`")
        if kind == "mps":
            return Device(asked.kind, torch.device("mps"))
        index = asked.index if kind != "cuda" else _index_by_uuid(asked)
        if index >= accelerator.device_count():
            raise DeviceLost(f"torch finds {accelerator.device_count()} devices, none with the index {index}")
        accelerator.set_device(index)
        return Device(asked.kind, torch.device(kind, index))

    def fence(self) -> Fence:
        """The end of what was launched until now on the current stream."""
        if not self.is_cuda:
            return Fence(None)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return Fence(event)

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the host that is there when a fence after it is."""
        if not self.is_cuda:
            return tensor.cpu()
        # Only a page-locked copy goes on beside the host.
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """What is launched inside runs beside the steps that are launched after it, where the device can."""
        if not self.is_cuda:
            yield
            return
        if self._side is None:
            self._side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            yield

    def pictures_at_once(self, pixels: int) -> int:
        """How many pictures of so many pixels a VAE decodes in one run: as many as surely fit, in powers of two."""
        if not self.is_cuda:
            return 1
        report = self.report()
        fitting = (report.free_bytes + report.cached_bytes) * VAE_SHARE / (pixels * VAE_BYTES_A_PIXEL)
        return next((count for count in (8, 4, 2) if count <= fitting), 1)

    def offload_of(self, plan: LoadPlan) -> Offload:
        """What of a plan can be kept to: where its memory is the host's there is nowhere to put anything."""
        return plan.offload if self.is_apart else "none"

    def synchronize(self) -> None:
        """Wait for everything that was launched."""
        if self.torch.type in ("cuda", "xpu", "mps"):
            getattr(torch, self.torch.type).synchronize()

    def facts(self) -> DeviceFacts:
        """What `ready` says of it."""
        total, free = self.total_and_free_bytes()
        if self.is_cuda:
            properties = torch.cuda.get_device_properties(self.torch)
            dtypes = ["f32", "f16"] + (["bf16"] if torch.cuda.is_bf16_supported() else [])
            capability = f"{properties.major}.{properties.minor}"
            return DeviceFacts(
                name=properties.name, total_bytes=total, free_bytes=free, dtypes=dtypes, compute_capability=capability
            )
        if self.torch.type == "cpu":
            return DeviceFacts(name=_processor(), total_bytes=total, free_bytes=free, dtypes=["f32", "bf16"])
        name = self.kind if self._account is None else str(self._account.get_device_properties(self.torch).name)
        return DeviceFacts(name=name, total_bytes=total, free_bytes=free, dtypes=["f32", "f16"])

    def total_and_free_bytes(self) -> tuple[int, int]:
        """Memory of the device in all, and free now as its driver says; the host's where they are one."""
        if self._account is not None:
            free, total = self._account.mem_get_info(self.torch)
            return int(total), int(free)
        memory = psutil.virtual_memory()
        return int(memory.total), int(memory.available)

    def used_bytes(self) -> int:
        """Memory of the device that this process holds."""
        if self._account is not None:
            return self._counted_bytes("reserved_bytes")
        return int(psutil.Process().memory_info().rss)

    def peak_bytes(self) -> int:
        """The most that was held since the start or `reset_peak`."""
        return max(self._peak_bytes, self.lap_peak_bytes())

    def lap_peak_bytes(self) -> int:
        """The most that was held since `reset_peak` or the end of the last lap."""
        if self._account is not None:
            return self._counted_bytes("allocated_bytes", "peak")
        return _status_bytes("VmHWM:") or self.used_bytes()

    def end_lap(self) -> int | None:
        """`lap_peak_bytes`, and a new lap begins; None where the system does not let us tell laps apart."""
        if self._account is None and self.torch.type != "cpu":
            return None
        peak = self.lap_peak_bytes()
        if not self._forget_peak():
            return None
        self._peak_bytes = max(self._peak_bytes, peak)
        return peak

    def reset_peak(self) -> None:
        """Forget the peak, where the system lets us; elsewhere it stays an upper bound, which is still true."""
        self._peak_bytes = 0
        self._forget_peak()

    def _forget_peak(self) -> bool:
        if self.is_cuda:
            # Before its first use the device has no figures to forget.
            torch.cuda.init()  # type: ignore[no-untyped-call]
        if self._account is not None:
            # A matter of the host's account: nothing waits for the device.
            self._account.reset_peak_memory_stats(self.torch)
            return True
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return False
        return True

    def held_bytes(self) -> int | None:
        """Memory of the device in tensors, to the byte; None where that is not told. Nothing waits for the device."""
        return None if self._account is None else self._counted_bytes("allocated_bytes")

    def _counted_bytes(self, what: str, figure: str = "current") -> int:
        # `memory_allocated` and its like sort all figures by name first, for a quarter of a millisecond.
        figures = self._account.memory_stats_as_nested_dict(self.torch)
        # Before its first use the device has none.
        return int(figures[what]["all"][figure]) if figures else 0

    def room_bytes(self) -> int | None:
        """What could be had at once: free, or cached by this process; None where that is not told to the byte."""
        if self._account is None:
            return None
        report = self.report()
        return report.free_bytes + report.cached_bytes

    def prove(self) -> None:
        """Compute something small and look at it; raises `DeviceLost` where that does not come out right."""
        try:
            self.synchronize()
            found = float(torch.arange(PROOF, dtype=torch.float32, device=self.torch).add_(1).sum())
        except Exception as error:
            raise DeviceLost(f"the device does not compute any more: {first_line(str(error))}") from None
        if found != PROOF * (PROOF + 1) / 2:
            raise DeviceLost(f"the device computes wrongly: {found}")

    def drop_workspaces(self) -> None:
        """Free what cuBLAS keeps for each stream, 33 MiB on an H100; no captured graph may be left that uses it."""
        clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
        if self.is_cuda and clear is not None:
            self.synchronize()
            clear()

    def trim(self) -> None:
        """Give cached memory back to the system."""
        gc.collect()
        if self.torch.type in ("cuda", "xpu", "mps"):
            getattr(torch, self.torch.type).empty_cache()
        unpin = getattr(torch._C, "_host_emptyCache", None)
        if self.is_cuda and unpin is not None:
            # Page-locked memory that is not in use.
            unpin()
        if sys.platform == "linux":
            # glibc keeps what was freed; `freed_bytes` is to be what the system has again.
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:
                trim(0)

    def report(self) -> MemoryReport:
        """All figures at once."""
        total, free = self.total_and_free_bytes()
        held = self.held_bytes()
        cached = 0 if held is None else self.used_bytes() - held
        return MemoryReport(
            total_bytes=total,
            free_bytes=free,
            used_bytes=self.used_bytes(),
            peak_bytes=self.peak_bytes(),
            cached_bytes=cached,
        )

    def numbers(self) -> str:
        """What an out-of-memory error tells."""
        total, free = self.total_and_free_bytes()
        return f"{free} of {total} bytes are free, this process holds {self.used_bytes()}"

    def engine(self) -> str:
        """What computes, for instance `torch 2.11.0 cuda`."""
        return f"torch {torch.__version__.split('+')[0]} {self.kind}"


def _index_by_uuid(asked: WorkerDevice) -> int:
    """The index at which torch sees the card of that UUID; raises `DeviceLost` where it does not see it.

    CUDA_VISIBLE_DEVICES hides cards and numbers the others anew: by index alone another card would be taken.
    """
    if asked.uuid is None:
        return asked.index
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    seen = [_uuids(card) for card in cards]
    for index, uuids in enumerate(seen):
        if _plain(asked.uuid) in uuids:
            return index
    # A part of a card tells its own UUID and not the card's, an old torch tells none, and what ROCm's driver and
    # torch tell is not of one form in all versions.
    if asked.kind != "cuda" or any(not uuids for uuids in seen) or any("MIG" in card.name for card in cards):
        return asked.index
    names = ", ".join(f"GPU-{card.uuid}" for card in cards) or "none"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    raise DeviceLost(
        f"the card {asked.uuid} is hidden from this process: CUDA_VISIBLE_DEVICES is `{hidden}`, torch sees {names}"
        if hidden is not None
        else f"torch does not see the card {asked.uuid}; it sees {names}"
    )


def _uuids(card: Any) -> set[str]:
    """What a card's UUID may be written as, plainly; empty where torch tells none."""
    uuid = getattr(card, "uuid", None)
    if uuid is None:
        return set()
    # HIP puts the digits of the card's id there as text.
    text = bytes(getattr(uuid, "bytes", b"")).decode("ascii", errors="ignore")
    return {_plain(str(uuid)), _plain(text)} - {""}


def _plain(uuid: str) -> str:
    return uuid.lower().removeprefix("gpu-").replace("-", "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names and names[0] else platform.processor() or f"{platform.machine()} CPU"


def _status_bytes(field: str) -> int:
    try:
        lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


def _directml(index: int) -> torch.device:
    """A device of the package torch-directml, which registers itself with torch under a name of its own."""
    try:
        library = importlib.import_module("torch_directml")
    except ImportError as error:
        raise NotSupported(
            "DirectML needs the package torch-directml",
            f"{error}; it is made for torch 2.4 and older, install both in this Python's environment",
        ) from None
    count = int(library.device_count())
    if index >= count:
        raise DeviceLost(f"torch-directml finds {count} devices, none with the index {index}")
    device: torch.device = library.device(index)
    return device
