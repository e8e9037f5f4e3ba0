"""The worker as a process: handshake, hygiene of stdout, ping, pulse, a clean leave, and the end of stdin."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from calotype_worker.channel import Closed, Frame, Reader, Writer
from calotype_worker.wire import codec, down, up
from calotype_worker.wire.words import Version

from .conftest import MODELS, REPOSITORY
from .desk import array_of, folder_spec, generate

PLAIN = ["-m", "calotype_worker"]
# Everything that is known to write to stdout behind one's back, at once and again while the worker serves.
NOISY = """
from calotype_worker.stdout import claim
fd = claim()
import ctypes, os, subprocess, sys, threading, time
libc = ctypes.CDLL(None)
def noise():
    print("noise from print", flush=True)
    sys.__stdout__.write("noise from the first stdout\\n"); sys.__stdout__.flush()
    os.write(1, b"noise from fd 1\\n")
    libc.puts(b"noise from C"); libc.fflush(None)
    subprocess.run(["echo", "noise from a grandchild"])
    child = os.fork()
    if child == 0:
        os.write(1, b"noise from a fork\\n")
        try:
            os.write(fd, b"noise on the protocol\\n")
        except OSError:
            pass
        os._exit(0)
    os.waitpid(child, 0)
noise()
def again():
    while True:
        noise(); time.sleep(0.02)
threading.Thread(target=again, daemon=True).start()
from calotype_worker.serve import main
main(fd)
"""


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
            assert not isinstance(frame.message, (up.Fatal, up.Failed, up.LoadFailed)), frame.message
            if wanted(frame.message):
                return frame

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

    def handshake(self) -> up.Ready:
        hello = self.reader.read().message
        assert isinstance(hello, up.Hello)
        assert (hello.runtime, hello.pid) == ("python", self.process.pid)
        self.welcome()
        ready = self.until(lambda message: isinstance(message, up.Ready)).message
        assert isinstance(ready, up.Ready)
        return ready


@pytest.fixture
def start() -> Iterator[Callable[[list[str]], Worker]]:
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

    yield begin
    for process in started:
        process.kill()
        process.wait()


Start = Callable[[list[str]], Worker]


def test_nothing_that_prints_can_corrupt_the_stream(start: Start) -> None:
    worker = start(["-c", NOISY])
    worker.handshake()
    for seq in range(50):
        worker.say(down.Ping(seq=seq))
        worker.until(lambda message, seq=seq: message == up.Pong(seq=seq))  # type: ignore[misc]
    worker.say(down.Drain())
    worker.until(lambda message: message == up.Bye())
    with pytest.raises(Closed):
        worker.reader.read()
    assert worker.process.wait(10) == 0


def test_a_picture_comes_out_of_the_process_while_it_beats(start: Start) -> None:
    worker = start(PLAIN)
    ready = worker.handshake()
    assert ready.device.total_bytes > 0
    assert "sd" in ready.capabilities.families
    worker.say(
        down.Load(
            load="l", model=folder_spec("calotype-tiny", MODELS / "calotype-tiny"), dtype="f32", budget_bytes=1 << 30
        )
    )
    worker.until(lambda message: isinstance(message, up.Loaded))
    work, blobs = generate(edge=256, steps=6)
    worker.say(down.Run(job="j", attempt=1, step="generate", work=work), *blobs)
    worker.until(lambda message: isinstance(message, up.Progress) and message.phase == "denoise")
    beat = worker.until(lambda message: isinstance(message, up.Beat) and bool(message.running)).message
    assert isinstance(beat, up.Beat)
    assert (beat.resident, beat.running) == (["calotype-tiny"], ["j"])
    frame = worker.until(lambda message: isinstance(message, up.Result))
    assert isinstance(frame.message, up.Result)
    assert array_of(frame.message.images[0], [bytes(blob) for blob in frame.blobs]).shape == (256, 256, 3)
    worker.say(down.Exit())
    assert worker.process.wait(10) == 0


def test_ping_is_answered_before_torch_is_there_and_stdin_ends_the_process(start: Start) -> None:
    worker = start(PLAIN)
    started = time.monotonic()
    worker.say(down.Ping(seq=1))
    worker.until(lambda message: message == up.Pong(seq=1))
    assert time.monotonic() - started < 10
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    assert worker.process.wait(10) == 0


@pytest.mark.parametrize("line", [b"not json\n", b'{"type":"new"}\n', b'{"type":"ping","blobs":[999999999999]}\n'])
def test_a_bad_frame_ends_the_process(start: Start, line: bytes) -> None:
    worker = start(PLAIN)
    assert worker.process.stdin is not None
    os.write(worker.process.stdin.fileno(), line)
    assert worker.process.wait(10) == 2


def test_a_wrong_major_and_a_missing_device_are_said(start: Start) -> None:
    worker = start(PLAIN)
    worker.welcome(major=2)
    assert worker.process.wait(10) == 1
    worker = start(PLAIN)
    worker.reader.read()
    worker.welcome(kind="directml")
    fatal = worker.reader.read().message
    assert isinstance(fatal, up.Fatal)
    assert "directml" in fatal.reason
    assert worker.process.wait(10) == 1


def test_an_import_that_fails_is_said_as_fatal(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = start(PLAIN)
    worker.reader.read()
    worker.welcome()
    fatal = worker.reader.read().message
    assert isinstance(fatal, up.Fatal)
    assert "libcudart" in fatal.reason
    assert worker.process.wait(10) == 1


def test_a_worker_that_was_stopped_goes_on_where_it_was(start: Start) -> None:
    worker = start(PLAIN)
    worker.handshake()
    worker.process.send_signal(signal.SIGSTOP)
    worker.say(down.Ping(seq=3))
    time.sleep(0.2)
    worker.process.send_signal(signal.SIGCONT)
    worker.until(lambda message: message == up.Pong(seq=3))


def test_a_signal_ends_the_process_at_once(start: Start) -> None:
    worker = start(PLAIN)
    worker.handshake()
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(10) == -signal.SIGTERM
