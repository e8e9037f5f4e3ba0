"""A tick loop without a process around it, and what it said."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from calotype_worker import noise
from calotype_worker.channel import Buffer, Frame
from calotype_worker.device import Device
from calotype_worker.pulse import Pulse
from calotype_worker.tick import Loop
from calotype_worker.wire import down, up
from calotype_worker.wire.words import BlobRef, Message
from calotype_worker.wire.work import Generate, Span, Work

from .conftest import MODELS

M = TypeVar("M", bound=Message)
TINY = MODELS / "calotype-tiny"


@dataclass
class Said:
    """A message with its blobs."""

    message: Message
    blobs: list[bytes]


@dataclass
class Desk:
    """The orchestrator's side of a loop."""

    said: list[Said] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.loop = Loop(Device("cpu", torch.device("cpu")), Pulse(), self._hear)
        self.jobs = 0

    def _hear(self, message: Message, blobs: Sequence[Buffer] = ()) -> None:
        self.said.append(Said(message, [bytes(blob) for blob in blobs]))

    def tell(self, message: down.Down, *blobs: bytes) -> None:
        self.loop.handle(Frame(message, [bytearray(blob) for blob in blobs]))

    def load(self, spec: down.ModelSpec, budget: int = 0, dtype: Any = "f32") -> up.Loaded | up.LoadFailed:
        self.tell(down.Load(load=f"load_{spec.id}", model=spec, dtype=dtype, budget_bytes=budget))
        answer = self.said[-1].message
        assert isinstance(answer, (up.Loaded, up.LoadFailed))
        return answer

    def tiny(self) -> "Desk":
        loaded = self.load(folder_spec("calotype-tiny", TINY))
        assert isinstance(loaded, up.Loaded), loaded
        return self

    def run(
        self, work: Work, *blobs: bytes, priority: int = 0, job: str | None = None, vae: down.VaePlan = "whole"
    ) -> str:
        self.jobs += 1
        job = job or f"job_{self.jobs}"
        self.tell(down.Run(job=job, attempt=1, step="generate", priority=priority, vae=vae, work=work), *blobs)
        return job

    def until(self, done: Callable[[], bool]) -> None:
        for _ in range(5000):
            if done():
                return
            assert self.loop.has_work(), "nothing left to do"
            self.loop.tick()
        raise AssertionError("it never came")

    def finish(self) -> None:
        self.until(lambda: not self.loop.has_work())

    def all(self, kind: type[M], job: str | None = None) -> list[M]:
        found = [said.message for said in self.said if isinstance(said.message, kind)]
        return [message for message in found if job is None or getattr(message, "job", None) == job]

    def result(self, job: str) -> tuple[up.Result, list[np.ndarray[Any, Any]]]:
        for said in self.said:
            if isinstance(said.message, up.Result) and said.message.job == job:
                return said.message, [array_of(ref, said.blobs) for ref in said.message.images]
        raise AssertionError([said.message for said in self.said if getattr(said.message, "job", None) == job])

    def picture(self, job: str) -> np.ndarray[Any, Any]:
        return self.result(job)[1][0]

    def all_jobs(self) -> list[str]:
        return [message.job for message in self.all(up.Result)]

    def failure(self, job: str) -> up.Failure:
        return self.all(up.Failed, job)[-1].failure


def array_of(ref: BlobRef, blobs: list[bytes]) -> np.ndarray[Any, Any]:
    kind = {"u8": np.uint8, "f32": np.float32}[ref.dtype]
    return np.frombuffer(blobs[ref.blob], kind).reshape(ref.shape)


def folder_spec(id: str, root: Path, family: str = "sd", **components: Path) -> down.ModelSpec:
    parts = {"root": str(root)} | {role: str(path) for role, path in components.items()}
    return down.ModelSpec(id=id, family=family, format="diffusers", components=parts)


def spans(text: str) -> list[Span]:
    return [Span(text=text, weight=1.0)] if text else []


def generate(
    seeds: Sequence[int] = (1,),
    *,
    edge: int = 64,
    channels: int = 4,
    scale: int = 8,
    prompt: str | list[Span] = "a red apple on the beach, 3d",
    init_image: np.ndarray[Any, Any] | None = None,
    mask: np.ndarray[Any, Any] | None = None,
    **changes: Any,
) -> tuple[Generate, list[bytes]]:
    """A request of `edge`², with its blobs."""
    shape = (channels, edge // scale, edge // scale)
    blobs = [b"".join(noise.normal(seed, noise.INITIAL, shape).tobytes() for seed in seeds)]
    fields: dict[str, Any] = {
        "model": "calotype-tiny",
        "mode": "text_to_image",
        "prompt": spans(prompt) if isinstance(prompt, str) else prompt,
        "width": edge,
        "height": edge,
        "steps": 4,
        "guidance": 3.0,
        "sampler": "dpmpp_2m",
        "schedule": "default",
        "seeds": list(seeds),
        "noise": "philox",
        "initial_noise": BlobRef(blob=0, dtype="f32", shape=[len(seeds), *shape]),
        "strength": 1.0,
    }
    for name, image in (("init_image", init_image), ("mask", mask)):
        if image is not None:
            fields[name] = BlobRef(blob=len(blobs), dtype="u8", shape=list(image.shape))
            blobs.append(image.tobytes())
    return Generate(**(fields | changes)), blobs


def psnr(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """Peak signal-to-noise ratio of two pictures, in dB."""
    error = float(((one.astype(np.float64) - other.astype(np.float64)) ** 2).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(255.0**2 / error))
