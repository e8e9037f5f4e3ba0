"""Worker to orchestrator."""

from calotype_worker.wire.words import BlobRef, LogLevel, Message, Mode, Outcome, Phase, Sampler, Schedule, Version


class Hello(Message, frozen=True, kw_only=True, tag="hello"):
    """Who is there."""

    protocol: Version
    worker: str
    runtime: str
    instance: str
    pid: int
    libraries: dict[str, str]


class DeviceFacts(Message, frozen=True, kw_only=True):
    """The device as this process sees it."""

    name: str
    total_bytes: int
    free_bytes: int
    dtypes: list[str]
    compute_capability: str | None = None


class Capabilities(Message, frozen=True, kw_only=True):
    """What may be asked of this worker.

    `loads_beside_runs` is whether running jobs go on while a model is loaded; `max_batch` counts no paused jobs.
    """

    engine: str
    families: list[str]
    formats: list[str]
    work: list[str]
    modes: list[Mode]
    samplers: list[Sampler]
    schedules: list[Schedule]
    adapters: list[str]
    plans: list[str] | None = None
    segments: bool = False
    loads_beside_runs: bool = False
    max_batch: int
    pauses: bool
    previews: bool
    max_edge: int


class Ready(Message, frozen=True, kw_only=True, tag="ready"):
    """The handshake is over; work may come."""

    device: DeviceFacts
    capabilities: Capabilities


class LoadProgress(Message, frozen=True, kw_only=True, tag="load_progress"):
    """Bytes of a load so far."""

    load: str
    done_bytes: int
    total_bytes: int


class Loaded(Message, frozen=True, kw_only=True, tag="loaded"):
    """A model is resident; bytes as measured, milliseconds by phase (`read`, `convert`, `upload`)."""

    load: str
    model: str
    resident_bytes: int
    phases_ms: dict[str, float]


class Failure(Message, frozen=True, kw_only=True):
    """Why there is no picture: its class, one sentence, and the rest."""

    outcome: Outcome
    message: str
    detail: str | None = None


class LoadFailed(Message, frozen=True, kw_only=True, tag="load_failed"):
    """A model could not be made resident; the worker stays usable."""

    load: str
    failure: Failure


class Unloaded(Message, frozen=True, kw_only=True, tag="unloaded"):
    """Models were dropped."""

    unload: str
    freed_bytes: int


class Released(Message, frozen=True, kw_only=True, tag="released"):
    """A segment is unmapped."""

    segment: str


class Progress(Message, frozen=True, kw_only=True, tag="progress"):
    """One piece of work has ended."""

    job: str
    attempt: int
    phase: Phase
    done: int
    total: int
    step_ms: float


class Preview(Message, frozen=True, kw_only=True, tag="preview"):
    """What the picture looks like after `done` steps."""

    job: str
    attempt: int
    done: int
    image: BlobRef


class Result(Message, frozen=True, kw_only=True, tag="result"):
    """A job is done: its images, one a seed, and how they came about.

    `phase_peaks_bytes` is the peak of each phase, where it is measured. `plan` says what was done for memory or speed,
    for instance `graphs` or `vae_tiling`.
    """

    job: str
    attempt: int
    images: list[BlobRef]
    seeds: list[int]
    timings_ms: dict[Phase, float]
    peak_bytes: int
    phase_peaks_bytes: dict[Phase, int] | None = None
    batch_sizes: list[int]
    engine: str
    plan: list[str] | None = None


class Failed(Message, frozen=True, kw_only=True, tag="failed"):
    """A job ended without a picture; the worker stays usable."""

    job: str
    attempt: int
    failure: Failure


class Cancelled(Message, frozen=True, kw_only=True, tag="cancelled"):
    """A job was dropped as asked."""

    job: str
    attempt: int
    at_step: int


class Paused(Message, frozen=True, kw_only=True, tag="paused"):
    """A job left the tick loop and keeps its state: the one answer to a `pause` of a job that is here."""

    job: str
    attempt: int
    at_step: int


class Resumed(Message, frozen=True, kw_only=True, tag="resumed"):
    """A job ticks again: the one answer to a `resume` of a job that is here."""

    job: str
    attempt: int
    at_step: int


class MemoryReport(Message, frozen=True, kw_only=True):
    """Memory as the worker sees it."""

    total_bytes: int
    free_bytes: int
    used_bytes: int
    peak_bytes: int
    cached_bytes: int


class Memory(Message, frozen=True, kw_only=True, tag="memory"):
    """The answer to `memory`."""

    seq: int
    report: MemoryReport


class Probed(Message, frozen=True, kw_only=True, tag="probed"):
    """The answer to `probe`: name to figure, the unit in the name."""

    seq: int
    figures: dict[str, float]


class Pong(Message, frozen=True, kw_only=True, tag="pong"):
    """The answer to `ping`."""

    seq: int


class Beat(Message, frozen=True, kw_only=True, tag="beat"):
    """The pulse, from a thread of its own."""

    seq: int
    free_bytes: int
    used_bytes: int
    resident: list[str]
    running: list[str]
    oldest_step_ms: int


class Log(Message, frozen=True, kw_only=True, tag="log"):
    """A line for the log, and how many were left out before it."""

    level: LogLevel
    job: str | None = None
    message: str
    dropped: int = 0


class Fatal(Message, frozen=True, kw_only=True, tag="fatal"):
    """The device's context is lost; the process exits after this."""

    reason: str


class Bye(Message, frozen=True, kw_only=True, tag="bye"):
    """A clean leave."""


Up = (
    Hello | Ready | LoadProgress | Loaded | LoadFailed | Unloaded | Released | Progress | Preview | Result | Failed
    | Cancelled | Paused | Resumed | Memory | Probed | Pong | Beat | Log | Fatal | Bye
)  # fmt: skip
