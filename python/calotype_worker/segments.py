"""Weights in shared memory: a segment is mapped read-only, page-locked once for CUDA, and kept until its release.

A segment is laid out as a safetensors file. While a model with segments is loaded, `weights` reads them in place of the
files of their components. Tensors are views of the mapping: one that has the type to compute with is never copied on a
CPU, and what is page-locked goes to a device without a staging copy. Knows no message but a segment's description.
"""

import gc
import mmap
import os
import time
import warnings
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from calotype_worker.errors import DeviceLost, ModelLoad
from calotype_worker.weights import read_instead
from calotype_worker.wire.down import ModelSpec, Segment
from calotype_worker.wire.words import LogLevel

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Safetensors' names of types."""
LENGTH_BYTES = 8
"""The length of the header stands before it, little-endian."""
PORTABLE, READ_ONLY = 1, 8
"""`cudaHostRegisterPortable` and `cudaHostRegisterReadOnly`; without the second a read-only mapping is refused."""


class Entry(msgspec.Struct, frozen=True):
    """A tensor of the header's table; the offsets count from the header's end."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]

    def get_shape(self) -> list[int]:
        """As safetensors' slices tell it."""
        return self.shape

    def get_dtype(self) -> str:
        """As safetensors' slices tell it."""
        return self.dtype


class PageLock(Protocol):
    """Locks pages of the host so that a device copies from them by itself."""

    def lock(self, address: int, size: int) -> str | None:
        """Lock memory; gives why that was refused."""

    def unlock(self, address: int) -> None:
        """Give it back, once nothing copies from it any more; raises `DeviceLost` where that fails."""


class CudaPageLock:
    """Page-locking by the CUDA runtime."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def lock(self, address: int, size: int) -> str | None:
        """Takes about as long as touching each page once."""
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        code = runtime.cudaHostRegister(address, size, PORTABLE | READ_ONLY)
        if int(code) == 0:
            return None
        # The runtime keeps the error for the next launch, which shall be one that nobody needs.
        with suppress(RuntimeError):
            torch.zeros(1, device=self._device).add_(1)
        torch.cuda.synchronize(self._device)
        return f"cudaHostRegister gave the error {int(code)} ({runtime.cudaGetErrorString(code)})"

    def unlock(self, address: int) -> None:
        """Waits for the device first."""
        torch.cuda.synchronize(self._device)
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        code = runtime.cudaHostUnregister(address)
        if int(code) != 0:
            raise DeviceLost(f"page-locked memory was not given back: cudaHostUnregister gave the error {int(code)}")


class Mapped:
    """A mapped segment with its table. Reads as safetensors' open files do."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.path = Path(segment.path)
        self._memory = _map(segment)
        self._base: weakref.ref[memoryview] | None = None
        self._read: torch.Tensor | None = None
        """All bytes, while a model is loaded: thousands of tensors are made of them."""
        self.is_locked = False
        self.refused: str | None = None
        """Why its pages could not be locked."""
        try:
            self._checked()
            with self._memory_view() as whole:
                self._begin, self._table, self._metadata = _header(whole)
        except (SafetensorError, msgspec.MsgspecError, OSError, ValueError) as error:
            self._memory.close()
            raise ModelLoad("a segment is not laid out as a safetensors file", f"{self.path}: {error}") from None
        self.address = self._whole().data_ptr()

    def _memory_view(self) -> memoryview:
        return memoryview(self._memory)

    def _checked(self) -> None:
        # The library's checks of header, offsets and size; its own mapping is closed at once.
        with safe_open(self.path, framework="pt", device="cpu"):
            pass

    def keys(self) -> list[str]:
        """The names of its tensors."""
        return list(self._table)

    def metadata(self) -> dict[str, str]:
        """What it says of itself."""
        return self._metadata

    def get_slice(self, name: str) -> Entry:
        """Shape and type of a tensor."""
        return self._table[name]

    def get_tensor(self, name: str) -> torch.Tensor:
        """A view of the mapping, not to be written to; raises `ValueError` for what the table says wrongly."""
        entry = self._table[name]
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            raise ValueError(f"has the type {entry.dtype}")
        begin, end = entry.data_offsets
        size = prod(entry.shape) * dtype.itemsize
        if not (0 <= begin <= end and self._begin + end <= self.segment.bytes and end - begin == size):
            raise ValueError(f"lies at {begin} to {end}, where {size} bytes of {self.segment.bytes} are needed")
        if not size:
            return torch.empty(entry.shape, dtype=dtype)
        raw = self._whole()[self._begin + begin : self._begin + end]
        # A header of any length may leave them unaligned.
        raw = raw if raw.data_ptr() % dtype.itemsize == 0 else raw.clone()
        return raw.view(dtype).reshape(entry.shape)

    @contextmanager
    def being_read(self) -> Iterator[None]:
        """Inside, what all tensors are made of is kept, so that reading one takes half the time."""
        self._read = self._whole()
        try:
            yield
        finally:
            self._read = None

    def _whole(self) -> torch.Tensor:
        """All bytes. Each tensor made of them holds the same `memoryview`, by which use is told."""
        if self._read is not None:
            return self._read
        base = self._base() if self._base is not None else None
        if base is None:
            base = self._memory_view()
            self._base = weakref.ref(base)
        with warnings.catch_warnings():
            # That it cannot be written to is meant.
            warnings.simplefilter("ignore", UserWarning)
            return torch.frombuffer(base, dtype=torch.uint8)

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lies in it."""
        begin = tensor.data_ptr() - self.address
        return begin >= 0 and begin + tensor.nbytes <= self.segment.bytes

    def in_use(self) -> bool:
        """Whether anything still sees it."""
        if self._base is not None and self._base() is not None:
            # An error's traceback, for instance.
            gc.collect()
        return self._base is not None and self._base() is not None

    def close(self) -> None:
        """Unmap it; nothing may use it any more."""
        self._memory.close()


def _map(segment: Segment) -> mmap.mmap:
    """Map a segment's file read-only, if it has the size that was announced."""
    try:
        with open(segment.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != segment.bytes or size <= LENGTH_BYTES:
                why = f"{segment.path}: it has {size} bytes, {segment.bytes} were announced"
                raise ModelLoad("a segment has the wrong size", why)
            return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ModelLoad("a segment cannot be mapped", f"{segment.path}: {error}") from None


def _header(whole: memoryview) -> tuple[int, dict[str, Entry], dict[str, str]]:
    """Where the data begin, the table of the tensors, and what the file says of itself."""
    length = int.from_bytes(whole[:LENGTH_BYTES], "little")
    begin = LENGTH_BYTES + length
    if begin > len(whole):
        raise ValueError(f"a header of {length} bytes in {len(whole)}")
    raw = msgspec.json.decode(bytes(whole[LENGTH_BYTES:begin]), type=dict[str, msgspec.Raw])
    said = raw.pop("__metadata__", None)
    metadata = msgspec.json.decode(said, type=dict[str, str] | None) if said is not None else None
    table = {name: msgspec.json.decode(entry, type=Entry) for name, entry in raw.items()}
    return begin, table, metadata or {}


class Segments:
    """The segments of this process, by their ids. They outlive models, until they are released."""

    def __init__(self, page_lock: PageLock | None) -> None:
        """`page_lock` is None for a device that shares the host's memory."""
        self._page_lock = page_lock
        self._mapped: dict[str, Mapped] = {}
        self._leaving: list[str] = []
        self._loading: list[Mapped] = []
        self.spent_ms: dict[str, float] = {}
        """Milliseconds of the last load for `map` and `pin`; empty where it had no segments."""
        self.said: deque[tuple[LogLevel, str]] = deque()
        """What is to be logged."""

    @contextmanager
    def read_for(self, spec: ModelSpec) -> Iterator[None]:
        """Inside, the weights of a model's components are read from its segments, where it has any."""
        self.spent_ms, self._loading = {}, []
        if not spec.segments:
            yield
            return
        started = time.perf_counter()
        by_place: dict[Path, Any] = {}
        for role, segment in spec.segments.items():
            mapped = self._of(segment)
            self._loading.append(mapped)
            by_place |= dict.fromkeys(_places(spec, role), mapped)
        self.spent_ms = {"map": (time.perf_counter() - started) * 1e3}
        try:
            with ExitStack() as reading, read_instead(by_place) as used:
                for mapped in self._loading:
                    reading.enter_context(mapped.being_read())
                yield
                unread = [role for role in spec.segments if not used.intersection(_places(spec, role))]
                if unread:
                    why = f"{', '.join(f'`{role}`' for role in unread)}: this model reads no such component"
                    raise ModelLoad("a segment is of no use to the model", why)
        finally:
            self._loading = []

    def _of(self, segment: Segment) -> Mapped:
        if segment.id in self._leaving:
            raise ModelLoad("a segment is being released", f"{segment.path}: `{segment.id}`")
        mapped = self._mapped.get(segment.id)
        if mapped is None:
            mapped = self._mapped[segment.id] = Mapped(segment)
        elif mapped.segment != segment:
            why = f"{segment.path}: `{segment.id}` is {mapped.path} with {mapped.segment.bytes} bytes"
            raise ModelLoad("a segment is mapped already and is another", why)
        return mapped

    def lock(self) -> None:
        """Lock the pages of what is being loaded, unless that was done or tried before."""
        if self._page_lock is None or not self._loading:
            return
        started = time.perf_counter()
        for mapped in self._loading:
            if mapped.is_locked or mapped.refused is not None:
                continue
            mapped.refused = self._page_lock.lock(mapped.address, mapped.segment.bytes)
            mapped.is_locked = mapped.refused is None
            if mapped.refused is not None:
                self.said.append(("warn", f"{mapped.path} is copied in pieces, its pages are not: {mapped.refused}"))
        self.spent_ms["pin"] = (time.perf_counter() - started) * 1e3

    def is_locked(self, tensor: torch.Tensor) -> bool:
        """Whether a device may copy from this tensor by itself, since it lies in locked memory of ours."""
        return any(mapped.is_locked and mapped.holds(tensor) for mapped in self._mapped.values())

    def release(self, id: str) -> list[str]:
        """Unmap a segment as soon as nothing uses it; gives the ids of those that are gone now."""
        if id not in self._leaving:
            self._leaving.append(id)
        gone = self.settle()
        if id not in gone:
            self.said.append(("info", f"the segment `{id}` is released once the models that use it are unloaded"))
        return gone

    def settle(self) -> list[str]:
        """Unmap what is to be released and not used any more; gives the ids of those that are gone now."""
        gone = [id for id in self._leaving if id not in self._mapped or self._unmapped(self._mapped[id])]
        self._leaving = [id for id in self._leaving if id not in gone]
        return gone

    def _unmapped(self, mapped: Mapped) -> bool:
        if mapped.in_use():
            return False
        if mapped.is_locked and self._page_lock is not None:
            self._page_lock.unlock(mapped.address)
            mapped.is_locked = False
        mapped.close()
        del self._mapped[mapped.segment.id]
        return True


def _places(spec: ModelSpec, role: str) -> list[Path]:
    """Where the weights of a role are read from files: what a segment of it stands for."""
    if role in spec.components:
        return [Path(spec.components[role])]
    root = Path(spec.components.get("root", ""))
    # These may be the root itself; see `Checkpoint` and `control`.
    return [root / role, root] if role in ("checkpoint", "controlnet") else [root / role]
