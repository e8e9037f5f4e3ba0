"""The worker as a process, and a test's side of its pipes."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from calotype_worker.channel import Closed, Frame, Reader, Writer
from calotype_worker.wire import codec, down, up
from calotype_worker.wire.words import Version

from .conftest import MODELS, REPOSITORY
from .desk import folder_spec, generate

PLAIN = ["-m", "calotype_worker"]
FAULTY = str(Path(__file__).with_name("faulty_worker.py"))


@dataclass
class Worker:
    process: "subprocess.Popen[bytes]"
    reader: Reader[up.Up]
    writer: Writer

    def say(self, message: down.Down, *blobs: bytes) -> None:
        self.writer.write(message, blobs)

    def until(self, wanted: Callable[[up.Up], bool]) -> Frame[up.Up]:
        while True:
            frame = self.reader.read()
            if wanted(frame.message):
                return frame
            assert not isinstance(frame.message, (up.Fatal, up.Failed, up.LoadFailed)), frame.message

    def welcome(self, kind: str = "cpu", every_ms: int = 50, major: int = 1) -> None:
        self.say(
            down.Welcome(
                protocol=Version(major=major, minor=0),
                device=down.WorkerDevice(kind=kind, index=0),
                limits=down.Limits(frame_bytes=1 << 20, blob_bytes=1 << 28),
                heartbeat=down.Heartbeat(every_ms=every_ms),
                scratch="",
                threads=1,
            )
        )

    def handshake(self, kind: str = "cpu") -> up.Ready:
        hello = self.reader.read().message
        assert isinstance(hello, up.Hello)
        assert (hello.runtime, hello.pid) == ("python", self.process.pid)
        self.welcome(kind)
        ready = self.until(lambda message: isinstance(message, up.Ready)).message
        assert isinstance(ready, up.Ready)
        return ready

    def load(self) -> "Worker":
        spec = folder_spec("calotype-tiny", MODELS / "calotype-tiny")
        self.say(down.Load(load="l", model=spec, dtype="f32", budget_bytes=1 << 30))
        self.until(lambda message: isinstance(message, up.Loaded))
        return self

    def run(self, job: str, **changes: Any) -> "Worker":
        work, blobs = generate(**changes)
        self.say(down.Run(job=job, attempt=1, step="generate", work=work), *blobs)
        return self

    def step(self, done: int) -> None:
        self.until(lambda m: isinstance(m, up.Progress) and m.phase == "denoise" and m.done == done)

    def picture(self, job: str) -> bytes:
        frame = self.until(lambda message: isinstance(message, up.Result) and message.job == job)
        return bytes(frame.blobs[0])

    def ends_with(self, words: str) -> None:
        """Its last line is `fatal` with these words, and the process leaves."""
        fatal = self.until(lambda message: isinstance(message, up.Fatal)).message
        assert isinstance(fatal, up.Fatal)
        assert words in fatal.reason
        with pytest.raises(Closed):
            self.reader.read()
        assert self.process.wait(10) == 1

    def leave(self) -> None:
        self.say(down.Drain())
        self.until(lambda message: message == up.Bye())
        with pytest.raises(Closed):
            self.reader.read()
        assert self.process.wait(10) == 0


Start = Callable[[list[str]], Worker]


@contextmanager
def workers() -> Iterator[Start]:
    """Starts workers, none of which outlives the block."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(arguments: list[str]) -> Worker:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=REPOSITORY / "python",
        )
        started.append(process)
        assert process.stdin is not None
        reader = Reader(cast(BinaryIO, process.stdout), codec.decode_up)
        return Worker(process, reader, Writer(process.stdin.fileno()))

    try:
        yield begin
    finally:
        for process in started:
            process.kill()
            process.wait()


def faulty(start: Start, fault: str, *options: str, kind: str = "cpu") -> Worker:
    """One with a fault, ready and with the embedded model."""
    worker = start([FAULTY, fault, *options])
    worker.handshake(kind)
    return worker.load()
