"""How fast weights reach a device: from a segment in memory, from a file's mapping, and by plain safetensors.

Needs twice the file's size in memory of the host, half of it below the folder that holds the segment.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from bench.sizes import DEVICE, DTYPE, configs
from calotype_worker.device import Device
from calotype_worker.upload import Uploader
from calotype_worker.weights import WeightFile, without_weights
from calotype_worker.wire import down

FOLDER = Path("/dev/shm")
COPY_BYTES = 1 << 30
RUNS = 3


def measure(name: str) -> dict[str, Any]:
    """Seconds and GB/s by way; the segment's first load is told apart from the next ones."""
    path = FOLDER / f"calotype-bench-{name}.safetensors"
    try:
        size = _written(name, path)
        return {"model": name, "bytes": size, **_measured(path, size)}
    finally:
        path.unlink(missing_ok=True)


def _written(name: str, path: Path) -> int:
    """Write a UNet of an architecture in f16; gives the file's size. The numbers do not matter."""
    with without_weights():
        unet = UNet2DConditionModel.from_config(configs(name)["unet"])
    needed, free = sum(p.numel() for p in unet.parameters()) * DTYPE.itemsize, shutil.disk_usage(path.parent).free
    if needed > free:
        raise RuntimeError(f"{path.parent} has {free} bytes free, {needed} are needed")
    save_file({key: torch.full(p.shape, 0.5, dtype=DTYPE) for key, p in unet.named_parameters()}, path)
    return path.stat().st_size


def _measured(path: Path, size: int) -> dict[str, Any]:
    device = Device("cuda", torch.device(DEVICE, 0))
    found: dict[str, Any] = {"page_locked_copy_gb_per_s": COPY_BYTES / _copy_s() / 1e9}

    def tell(way: str, seconds: float) -> None:
        found[way] = {"s": seconds, "gb_per_s": size / seconds / 1e9}

    def plain() -> Any:
        return {name: tensor.to(DEVICE) for name, tensor in load_file(path).items()}

    tell("plain_first", _seconds(plain))
    tell("plain_warm", min(_seconds(plain) for _ in range(RUNS)))
    tell("ring_warm", min(_seconds(lambda: _uploaded(path, device)) for _ in range(RUNS + 1)))
    segment = down.Segment(id="bench", path=str(path), bytes=size)
    spec = down.ModelSpec(
        id="bench", family="sdxl", format="diffusers", components={"unet": str(path)}, segments={"unet": segment}
    )

    def from_segment() -> Any:
        with device.segments.read_for(spec):
            device.segments.lock()
            return _uploaded(path, device)

    tell("segment_first", _seconds(from_segment))
    found["segment_first"] |= {f"{phase}_ms": ms for phase, ms in device.segments.spent_ms.items()}
    tell("segment_warm", min(_seconds(from_segment) for _ in range(RUNS)))
    found["said"] = [message for _, message in device.segments.said]
    started = time.perf_counter()
    found["released"] = device.segments.release("bench") == ["bench"]
    found["release_s"] = time.perf_counter() - started
    return found


def _uploaded(path: Path, device: Device) -> dict[str, torch.Tensor]:
    """All tensors of a file on the device, as a load takes them there."""
    file, uploader = WeightFile(path), Uploader(device, device.segments.is_locked)
    return {name: uploader.put(file.read(name), DTYPE) for name in file.names}


def _copy_s() -> float:
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device=DEVICE)
    return min(_seconds(lambda: target.copy_(source, non_blocking=True)) for _ in range(RUNS + 1))


def _seconds(work: Callable[[], object]) -> float:
    """Until everything is there; what it gave is dropped afterwards, and its memory stays cached."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    made = work()
    torch.cuda.synchronize()
    taken = time.perf_counter() - started
    del made
    return taken
