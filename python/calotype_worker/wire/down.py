"""Orchestrator to worker."""

from typing import Literal

import msgspec

from calotype_worker.wire.words import Dtype, Message, ModelFormat, Version
from calotype_worker.wire.work import Work


class WorkerDevice(Message, frozen=True, kw_only=True):
    """A device by kind (`cpu`, `cuda`, `rocm`, `xpu`, `mps`, ...) and index."""

    kind: str
    index: int
    uuid: str | None = None


class Limits(Message, frozen=True, kw_only=True):
    """The largest frames that the orchestrator takes."""

    frame_bytes: int
    blob_bytes: int


class Heartbeat(Message, frozen=True, kw_only=True):
    """Time between two beats."""

    every_ms: int


class Welcome(Message, frozen=True, kw_only=True, tag="welcome"):
    """What the worker owns, and the rules of the house."""

    protocol: Version
    device: WorkerDevice
    limits: Limits
    heartbeat: Heartbeat
    scratch: str
    threads: int = 0
    deterministic: bool = False


class Segment(Message, frozen=True, kw_only=True):
    """Shared memory with the weights of a component, laid out as a safetensors file; mapped until `release`."""

    id: str
    path: str
    bytes: int


class ModelSpec(Message, frozen=True, kw_only=True):
    """Where a model's parts lie: role (`root`, `unet`, …) to absolute path, or to shared memory with its weights."""

    id: str
    family: str
    format: ModelFormat
    components: dict[str, str]
    segments: dict[str, Segment] = msgspec.field(default_factory=dict)


class LoadPlan(Message, frozen=True, kw_only=True):
    """How a model is to live on the device: what waits on the host meanwhile, what is sliced or compiled."""

    offload: Literal["none", "model", "sequential"] = "none"
    attention_slicing: bool = False
    compile: bool = False


class Load(Message, frozen=True, kw_only=True, tag="load"):
    """Make a model resident; answered by `loaded` or `load_failed`. Without a plan all of it is off."""

    load: str
    model: ModelSpec
    dtype: Dtype
    budget_bytes: int
    plan: LoadPlan | None = None


class Release(Message, frozen=True, kw_only=True, tag="release"):
    """Unmap a shared-memory segment; answered by `released`."""

    segment: str


class Unload(Message, frozen=True, kw_only=True, tag="unload"):
    """Drop one model, or all of them; answered by `unloaded`."""

    unload: str
    model: str | None = None


VaePlan = Literal["whole", "slicing", "tiling"]
"""How pictures go through the VAE: several at once, one by one, or each in overlapping tiles."""


class Run(Message, frozen=True, kw_only=True, tag="run"):
    """A job for the worker; a larger priority goes first when not all can tick."""

    job: str
    attempt: int
    step: str
    priority: int = 0
    deadline_ms: int | None = None
    vae: VaePlan = "whole"
    work: Work


class Pause(Message, frozen=True, kw_only=True, tag="pause"):
    """Leave the tick loop at the next step and keep the state; `offload` moves it off the device too.

    Answered by one `paused`, also where the job is paused already; by nothing where it has ended.
    """

    job: str
    attempt: int
    offload: bool = False


class Resume(Message, frozen=True, kw_only=True, tag="resume"):
    """Rejoin the tick loop. Answered by one `resumed`, also where the job runs; by nothing where it has ended."""

    job: str
    attempt: int


class Cancel(Message, frozen=True, kw_only=True, tag="cancel"):
    """Drop at the next tick."""

    job: str
    attempt: int


class AskMemory(Message, frozen=True, kw_only=True, tag="memory"):
    """Answered by `memory`, after `op` was done."""

    seq: int
    op: Literal["status", "trim", "reset_peak"]


class Probe(Message, frozen=True, kw_only=True, tag="probe"):
    """Answered by `probed`."""

    seq: int
    op: Literal["device", "benchmark"]


class Ping(Message, frozen=True, kw_only=True, tag="ping"):
    """Answered by `pong`, by a thread that the work cannot block."""

    seq: int


class Drain(Message, frozen=True, kw_only=True, tag="drain"):
    """Finish what runs, take nothing new, say `bye` and leave."""


class Exit(Message, frozen=True, kw_only=True, tag="exit"):
    """Leave now."""


class Dismissed(Message, frozen=True, kw_only=True, tag="bye"):
    """The handshake failed; leave."""

    reason: str


Down = (
    Welcome
    | Load
    | Release
    | Unload
    | Run
    | Pause
    | Resume
    | Cancel
    | AskMemory
    | Probe
    | Ping
    | Drain
    | Exit
    | Dismissed
)
