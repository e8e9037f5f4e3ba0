"""What the worker says of itself: `hello` and `ready`. `hello` needs no torch, so it comes at once."""

import os
import time
from importlib import metadata
from typing import TYPE_CHECKING

from calotype_worker import VERSION
from calotype_worker.wire import up
from calotype_worker.wire.words import MODES, PROTOCOL_MAJOR, PROTOCOL_MINOR, SAMPLERS, SCHEDULES, Version

if TYPE_CHECKING:
    from calotype_worker.device import Device

LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "numpy")


def hello() -> up.Hello:
    """The first line."""
    pid = os.getpid()
    return up.Hello(
        protocol=Version(major=PROTOCOL_MAJOR, minor=PROTOCOL_MINOR),
        worker=f"calotype-python {VERSION}",
        runtime="python",
        instance=f"python-{pid}-{time.time_ns():x}",
        pid=pid,
        libraries={name: metadata.version(name) for name in LIBRARIES},
    )


def plans(device: "Device") -> list[str]:
    """What of a load's or run's plan can be done on the device, and is of use there."""
    # Where the device's memory is the host's there is nowhere to put anything.
    offloads = ["offload_model", "offload_sequential"] if device.is_apart else []
    slices = [] if device.fuses_attention else ["attention_slicing"]
    return [*offloads, *slices, "vae_slicing", "vae_tiling", "compile"]


def ready(device: "Device") -> up.Ready:
    """The end of the handshake."""
    from calotype_worker.job import MAX_EDGE
    from calotype_worker.phases import WORK
    from calotype_worker.pipelines import registry
    from calotype_worker.step import Stepper

    return up.Ready(
        device=device.facts(),
        capabilities=up.Capabilities(
            engine=device.engine(),
            families=list(registry.LOADERS),
            formats=list(registry.FORMATS),
            work=list(WORK),
            modes=list(MODES),
            samplers=list(SAMPLERS),
            schedules=list(SCHEDULES),
            adapters=list(registry.ADAPTERS),
            plans=plans(device),
            segments=True,
            # A load runs on the loop's thread.
            loads_beside_runs=False,
            max_batch=Stepper(device).max_jobs,
            pauses=True,
            previews=True,
            max_edge=MAX_EDGE,
        ),
    )
