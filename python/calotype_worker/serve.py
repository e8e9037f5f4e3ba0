"""The worker as a process: handshake, a thread that reads, a thread that beats, and the loop on the main thread.

Pings are answered and `exit` is obeyed by the reading thread, so that no step can delay them. The end of stdin ends
the process at once.
"""

import gc
import os
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import NoReturn

from calotype_worker import handshake
from calotype_worker.channel import Buffer, Closed, Frame, FrameError, FrameLimits, Reader, Writer
from calotype_worker.errors import WorkerError, told
from calotype_worker.pulse import Pulse
from calotype_worker.wire import codec, down, up
from calotype_worker.wire.words import PROTOCOL_MAJOR, Message

MOST_WAITING = 256
"""Messages that wait at most; after them the pipe itself fills."""

Inbox = queue.Queue[Frame[down.Down]]


def leave(why: str, code: int) -> NoReturn:
    """End the process from any thread, without waiting for what runs."""
    if why:
        print(f"calotype-worker: {why}", file=sys.stderr, flush=True)
    os._exit(code)


class Voice:
    """The one writer, shared by the loop, the reader and the beat."""

    def __init__(self, descriptor: int) -> None:
        self._writer = Writer(descriptor)

    def say(self, message: Message, blobs: Sequence[Buffer] = ()) -> None:
        """Send a frame up. Where nobody listens any more, the process ends."""
        try:
            self._writer.write(message, blobs)
        except OSError as error:
            leave(f"the orchestrator is gone: {error}", 0)


def listen(voice: Voice, inbox: Inbox) -> None:
    """Read messages on a thread of their own."""
    # A buffer of our own over fd 0: nothing else may read from it.
    pipe = os.fdopen(os.dup(0), "rb", buffering=1 << 16)
    reader = Reader(pipe, codec.decode_down, FrameLimits())

    def read() -> None:
        while True:
            try:
                frame = reader.read()
            except Closed:
                leave("", 0)
            except (FrameError, OSError) as error:
                leave(f"bad frame from the orchestrator: {error}", 2)
            match frame.message:
                case down.Ping(seq=seq):
                    voice.say(up.Pong(seq=seq))
                case down.Exit():
                    leave("", 0)
                case down.Dismissed(reason=reason):
                    leave(reason, 0)
                case _:
                    inbox.put(frame)

    threading.Thread(target=read, name="reader", daemon=True).start()


def main(descriptor: int) -> int:
    """Serve the orchestrator until it says that it is enough. Gives the exit status."""
    voice = Voice(descriptor)
    inbox: Inbox = queue.Queue(MOST_WAITING)
    listen(voice, inbox)
    voice.say(handshake.hello())
    welcome = inbox.get().message
    if not isinstance(welcome, down.Welcome):
        leave("the first message was not a welcome", 1)
    if welcome.protocol.major != PROTOCOL_MAJOR:
        leave(f"speaks protocol {PROTOCOL_MAJOR}, not {welcome.protocol.major}", 1)
    try:
        _serve(voice, inbox, welcome)
    except BaseException as error:
        # The state is in doubt: it is said, and the process ends.
        problem = error if isinstance(error, WorkerError) else told(error)
        voice.say(up.Fatal(reason=problem.message))
        leave(problem.detail or problem.message, 1)
    # Threads of libraries are not waited for.
    leave("", 0)


def _serve(voice: Voice, inbox: Inbox, welcome: down.Welcome) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
    # Imports of torch take seconds: they come after `hello`, while pings are answered already.
    from calotype_worker import beat, warm
    from calotype_worker.device import Device
    from calotype_worker.tick import Loop

    device = Device.open(welcome.device, welcome.threads, welcome.deterministic)
    voice.say(handshake.ready(device))
    pulse = Pulse()
    beat.start(voice.say, pulse, device, welcome.heartbeat.every_ms)
    loop = Loop(device, pulse, voice.say)
    warming: Iterator[str | None] | None = warm.up(device)
    goes_on = True
    while goes_on:
        frame = _next(inbox, wait=warming is None and not loop.has_work())
        if frame is not None:
            goes_on = loop.handle(frame)
        elif loop.has_work():
            goes_on = loop.tick()
        elif loop.models:
            # Its jobs fetch what they need themselves; the next one shall not wait for what it may not need.
            warming = None
        elif warming is not None:
            try:
                problem = next(warming)
            except StopIteration:
                warming = None
                continue
            if problem is not None:
                voice.say(up.Log(level="warn", message=f"not fetched ahead: {problem}"))
            # Libraries live as long as the process. To look at their half a million objects in each collection costs
            # 0.2 s, in the middle of a step or while a model leaves.
            gc.collect()
            gc.freeze()


def _next(inbox: Inbox, wait: bool) -> Frame[down.Down] | None:
    """The next message; None where there is none and there is work to do instead."""
    try:
        return inbox.get(block=wait)
    except queue.Empty:
        return None
