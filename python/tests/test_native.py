"""The native worker as a process beside this one: the same requests, the same pictures.

`CALOTYPE_BINARY` names the program; without it, one that was built in `target/` is taken; without one, it is skipped
aloud. The reference values in `test_pictures` and `test_samplers` hold both workers to one another in any case.
"""

import os
import subprocess
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pytest

from calotype_worker.channel import Reader, Writer
from calotype_worker.wire import codec, down, up
from calotype_worker.wire.words import SAMPLERS, SCHEDULES, Sampler, Schedule, Version
from calotype_worker.wire.work import Span

from .conftest import MODELS, REPOSITORY
from .desk import TINY, Desk, array_of, folder_spec, generate, psnr


def binary() -> Path | None:
    named = [Path(os.environ["CALOTYPE_BINARY"])] if "CALOTYPE_BINARY" in os.environ else []
    built = [REPOSITORY / "target" / profile / "calotype" for profile in ("release", "debug")]
    return next((path for path in (*named, *built) if path.is_file()), None)


pytestmark = pytest.mark.skipif(binary() is None, reason="the native worker is not built: `cargo build -p calotype`")


class Native:
    """The native worker with the embedded model."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [str(binary()), "worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self.process.stdin is not None
        self.writer = Writer(self.process.stdin.fileno())
        self.reader = Reader(cast(BinaryIO, self.process.stdout), codec.decode_up)
        hello = self.until(up.Hello)[0]
        assert hello.runtime == "native"
        self.writer.write(
            down.Welcome(
                protocol=Version(major=1, minor=0),
                device=down.WorkerDevice(kind="cpu", index=0),
                limits=down.Limits(frame_bytes=1 << 20, blob_bytes=1 << 28),
                heartbeat=down.Heartbeat(every_ms=1000),
                scratch="",
                threads=1,
            )
        )
        self.ready = self.until(up.Ready)[0]
        spec = folder_spec("calotype-tiny", TINY, graphs=MODELS / "graphs" / "calotype-tiny")
        self.writer.write(down.Load(load="l", model=spec, dtype="f32", budget_bytes=0))
        self.until(up.Loaded)

    def until(self, kind: type[Any]) -> tuple[Any, list[bytes]]:
        while True:
            frame = self.reader.read()
            assert not isinstance(frame.message, (up.Failed, up.LoadFailed, up.Fatal)), frame.message
            if isinstance(frame.message, kind):
                return frame.message, [bytes(blob) for blob in frame.blobs]

    def picture(self, **changes: Any) -> np.ndarray[Any, Any]:
        work, blobs = generate([11], **changes)
        self.writer.write(down.Run(job="j", attempt=1, step="generate", work=work), blobs)
        result, found = self.until(up.Result)
        return array_of(result.images[0], found)


@pytest.fixture(scope="module")
def native() -> Any:
    worker = Native()
    yield worker
    worker.process.kill()
    worker.process.wait()


@pytest.fixture(scope="module")
def desk() -> Desk:
    return Desk().tiny()


def ours(desk: Desk, **changes: Any) -> np.ndarray[Any, Any]:
    work, blobs = generate([11], **changes)
    job = desk.run(work, *blobs)
    desk.finish()
    return desk.picture(job)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_both_workers_agree_after_20_steps(native: Native, desk: Desk, sampler: Sampler) -> None:
    if sampler not in native.ready.capabilities.samplers:
        pytest.skip(f"the native worker has no {sampler}")
    request = {"edge": 64, "steps": 20, "sampler": sampler}
    assert psnr(ours(desk, **request), native.picture(**request)) >= 45


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_both_workers_agree_on_schedules(native: Native, desk: Desk, schedule: Schedule) -> None:
    if schedule not in native.ready.capabilities.schedules:
        pytest.skip(f"the native worker has no {schedule}")
    for sampler in ("euler", "dpmpp_2m"):
        request = {"edge": 64, "steps": 12, "sampler": sampler, "schedule": schedule}
        assert psnr(ours(desk, **request), native.picture(**request)) >= 45


def test_both_workers_agree_on_weights_clip_skip_and_images(native: Native, desk: Desk) -> None:
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    weighted = [Span(text="a red", weight=1.3), Span(text=" apple", weight=0.7)]
    for request in (
        {"prompt": weighted, "clip_skip": 1},
        {"prompt": "apple " * 90},
        {"mode": "image_to_image", "init_image": image, "strength": 0.7},
        {"mode": "inpaint", "init_image": image, "mask": mask, "strength": 0.7},
        {"mode": "inpaint", "init_image": image, "mask": mask, "strength": 1.0, "sampler": "euler"},
    ):
        assert psnr(ours(desk, steps=8, **request), native.picture(steps=8, **request)) >= 45
