"""The worker as a process: handshake, hygiene of stdout, ping, pulse, a clean leave, and the end of stdin."""

import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from calotype_worker.channel import FrameError
from calotype_worker.wire import down, up

from .desk import Desk, array_of, generate
from .process import FAULTY, PLAIN, Start, faulty, workers

SILENCE_S = 1.0
"""Twenty beats."""


@pytest.fixture
def start() -> Iterator[Start]:
    with workers() as begin:
        yield begin


def test_a_picture_comes_out_of_the_process_while_it_beats(start: Start) -> None:
    worker = start(PLAIN)
    ready = worker.handshake()
    assert ready.device.total_bytes > 0
    assert "sd" in ready.capabilities.families
    assert ready.capabilities.segments
    worker.load().run("j", edge=256, steps=6)
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


def test_a_signal_ends_the_process_at_once(start: Start) -> None:
    worker = start(PLAIN)
    worker.handshake()
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(10) == -signal.SIGTERM


@pytest.fixture(scope="module")
def expected() -> bytes:
    desk = Desk().tiny()
    work, blobs = generate()
    job = desk.run(work, *blobs)
    desk.finish()
    return desk.picture(job).tobytes()


@pytest.mark.parametrize("fault", ["none", "stdout_noise"])
def test_nothing_that_prints_can_corrupt_the_stream(start: Start, fault: str, expected: bytes) -> None:
    worker = faulty(start, fault).run("j")
    assert worker.picture("j") == expected
    for seq in range(50):
        worker.say(down.Ping(seq=seq))
        worker.until(lambda message, seq=seq: message == up.Pong(seq=seq))  # type: ignore[misc]
    worker.leave()


def test_an_import_that_fails_is_said_as_fatal_and_the_next_process_may_be_well(start: Start, tmp_path: Path) -> None:
    once = ["import_error", "--once", str(tmp_path / "once")]
    worker = start([FAULTY, *once])
    assert isinstance(worker.reader.read().message, up.Hello)
    worker.welcome()
    fatal = worker.reader.read().message
    assert isinstance(fatal, up.Fatal)
    assert "libcudart" in fatal.reason
    assert worker.process.wait(10) == 1
    start([FAULTY, *once]).handshake()


def test_a_hang_that_holds_the_interpreter_stops_the_pulse_and_a_signal_still_ends_it(start: Start) -> None:
    worker = faulty(start, "hang").run("j")
    worker.step(2)
    said: queue.Queue[up.Up] = queue.Queue()

    def read() -> None:
        with suppress(FrameError):
            while True:
                said.put(worker.reader.read().message)

    threading.Thread(target=read, daemon=True).start()
    with pytest.raises(queue.Empty):
        # What was on its way when it hung, then nothing.
        while True:
            assert isinstance(said.get(timeout=SILENCE_S), up.Beat)
    worker.say(down.Ping(seq=1))
    with pytest.raises(queue.Empty):
        said.get(timeout=SILENCE_S)
    assert worker.process.poll() is None
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(10) == -signal.SIGTERM


def test_a_step_without_memory_fails_its_job_and_the_same_process_serves_the_next(
    start: Start, tmp_path: Path, expected: bytes
) -> None:
    mark = tmp_path / "once"
    worker = faulty(start, "oom", "--once", str(mark)).run("j")
    failed = worker.until(lambda message: isinstance(message, up.Failed)).message
    assert isinstance(failed, up.Failed)
    assert (failed.job, failed.failure.outcome, mark.exists()) == ("j", "out_of_memory", True)
    assert "bytes are free" in (failed.failure.detail or "")
    assert worker.run("again").picture("again") == expected
    worker.leave()


def test_a_device_that_is_lost_is_said_as_fatal_and_the_process_ends(start: Start) -> None:
    worker = faulty(start, "device_fault").run("j")
    worker.step(1)
    worker.ends_with("illegal memory access")


def test_a_process_that_is_killed_in_a_step_says_nothing_more_and_the_next_is_well(
    start: Start, tmp_path: Path, expected: bytes
) -> None:
    once = ["kill", "--once", str(tmp_path / "once")]
    worker = faulty(start, *once).run("j")
    worker.step(1)
    with pytest.raises(FrameError):
        worker.until(lambda message: not isinstance(message, up.Beat))
    assert worker.process.wait(10) == -signal.SIGKILL
    assert faulty(start, *once).run("j").picture("j") == expected


def test_a_worker_that_was_stopped_in_a_step_goes_on_where_it_was(start: Start) -> None:
    worker = faulty(start, "stop").run("j")
    for _ in range(3):
        # At each step from the second on.
        os.waitid(os.P_PID, worker.process.pid, os.WSTOPPED)
        worker.say(down.Ping(seq=3))
        worker.process.send_signal(signal.SIGCONT)
    seen: list[up.Up] = []

    def all_there(message: up.Up) -> bool:
        seen.append(message)
        return seen.count(up.Pong(seq=3)) == 3 and any(isinstance(one, up.Result) for one in seen)

    worker.until(all_there)
