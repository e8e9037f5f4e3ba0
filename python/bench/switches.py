"""How long a model takes that comes in another's place from shared memory: `load` to `loaded`, by the worker's loop.

Two SDXL of random weights in f16, each part a segment, in turn. Needs 14 GB in /dev/shm.
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from bench.sizes import DEVICE, DTYPE, configs
from calotype_worker.channel import Buffer, Frame
from calotype_worker.device import Device
from calotype_worker.pipelines.checkpoint import CONFIGS
from calotype_worker.pipelines.parts import diffusers_module, transformers_module
from calotype_worker.pulse import Pulse
from calotype_worker.tick import Loop
from calotype_worker.wire import down, up
from calotype_worker.wire.words import Message

FOLDER = Path("/dev/shm")
ROUNDS = 4
SPREAD = 0.02
"""Of the random weights."""


def measure(name: str) -> dict[str, Any]:
    """Seconds of each load and each unload, the first of a model apart: then its segments are page-locked."""
    with models(name) as specs:
        device, said = Device("cuda", torch.device(DEVICE, 0)), list[Message]()

        def hear(message: Message, blobs: Sequence[Buffer] = ()) -> None:
            said.append(message)

        loop, rows = Loop(device, Pulse(), hear), []

        def seconds_of(message: down.Down) -> float:
            torch.cuda.synchronize()
            started = time.perf_counter()
            loop.handle(Frame(message, []))
            return time.perf_counter() - started

        for spec in specs * ROUNDS:
            device.reset_peak()
            load_s = seconds_of(down.Load(load="load", model=spec, dtype="f16", budget_bytes=0))
            loaded = said[-1]
            if not isinstance(loaded, up.Loaded):
                raise RuntimeError(str(loaded))
            row = {"model": spec.id, "load_s": load_s, "phases_ms": loaded.phases_ms, "bytes": loaded.resident_bytes}
            row |= {"held_bytes": device.held_bytes(), "peak_bytes": device.peak_bytes(), "used": device.used_bytes()}
            rows.append(row | {"unload_s": seconds_of(down.Unload(unload="unload"))})
        return {"model": name, "first": rows[: len(specs)], "next": rows[len(specs) :], "left": device.used_bytes()}


@contextmanager
def models(name: str) -> Iterator[list[down.ModelSpec]]:
    """Two models of an architecture in shared memory."""
    root = Path(mkdtemp(dir=FOLDER, prefix="calotype-bench-"))
    try:
        yield [_written(name, root / f"{name}-{letter}") for letter in "ab"]
    finally:
        shutil.rmtree(root)


def _written(name: str, root: Path) -> down.ModelSpec:
    config, segments = configs(name), {}
    for role, module in _modules(config).items():
        path = root / role / "model.safetensors"
        path.parent.mkdir(parents=True)
        # The VAE in f16 too, whatever the architecture says.
        plain = config[role] | ({"force_upcast": False} if role == "vae" else {})
        (path.parent / "config.json").write_text(json.dumps(plain))
        values = {key: torch.randn(p.shape, device=DEVICE) * SPREAD for key, p in module.named_parameters()}
        save_file({key: value.to("cpu", DTYPE) for key, value in values.items()}, path)
        segments[role] = down.Segment(id=f"{root.name}-{role}", path=str(path), bytes=path.stat().st_size)
        if role.startswith("text_encoder"):
            shutil.copytree(CONFIGS / "clip_tokenizer", root / role.replace("text_encoder", "tokenizer"))
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text(json.dumps(config["scheduler"]))
    components = {"root": str(root)}
    return down.ModelSpec(
        id=root.name, family=config["family"], format="diffusers", components=components, segments=segments
    )


def _modules(config: dict[str, Any]) -> dict[str, nn.Module]:
    parts = {role: diffusers_module(config[role], (config[role]["_class_name"],), role) for role in ("unet", "vae")}
    for role in ("text_encoder", "text_encoder_2"):
        if role in config:
            parts[role] = transformers_module(config[role], tuple(config[role]["architectures"]), role)
    return parts
