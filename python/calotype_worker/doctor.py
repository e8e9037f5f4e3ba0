"""`python -m calotype_worker.doctor`: what this environment has and lacks, as one JSON object on stdout.

Fields: `version`, `python`, `libraries` (name to version, null where it is missing), `problem` (why torch cannot be
imported, or null) and `devices` (each with kind, index, name, memory). Exits with 1 where the worker would not start.
"""

import importlib.util
import json
import platform
import sys
from importlib import metadata
from typing import Any

from calotype_worker import VERSION

NEEDED = ("torch", "diffusers", "transformers", "safetensors", "msgspec", "numpy", "pillow", "psutil", "sentencepiece")


def libraries() -> dict[str, str | None]:
    """The needed libraries with their versions; None where one is missing."""
    found: dict[str, str | None] = {}
    for name in NEEDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def devices() -> list[dict[str, Any]]:
    """The devices that torch finds, the CPU last."""
    import torch

    from calotype_worker.device import Device
    from calotype_worker.wire.down import WorkerDevice

    kinds: list[tuple[str, int]] = []
    if torch.cuda.is_available():
        kinds += [("rocm" if torch.version.hip else "cuda", index) for index in range(torch.cuda.device_count())]
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        kinds += [("xpu", index) for index in range(torch.xpu.device_count())]
    if torch.backends.mps.is_available():
        kinds.append(("mps", 0))
    found = []
    for kind, index in [*kinds, ("cpu", 0)]:
        facts = Device.open(WorkerDevice(kind=kind, index=index), 0, False).facts()
        found.append({"kind": kind, "index": index, "name": facts.name, "total_bytes": facts.total_bytes})
    return found


def main() -> int:
    """Print the findings; gives the exit status."""
    found: dict[str, Any] = {"version": VERSION, "python": platform.python_version(), "libraries": libraries()}
    found["problem"], found["devices"] = None, []
    missing = [name for name, version in found["libraries"].items() if version is None]
    if missing or importlib.util.find_spec("torch") is None:
        found["problem"] = f"missing: {', '.join(missing)}"
    else:
        try:
            found["devices"] = devices()
        except Exception as error:  # Whatever a broken installation raises is what is to be told.
            found["problem"] = f"{type(error).__name__}: {error}"
    print(json.dumps(found))
    return 0 if found["problem"] is None else 1


if __name__ == "__main__":
    sys.exit(main())
