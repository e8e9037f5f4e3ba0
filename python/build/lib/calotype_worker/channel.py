"""One frame: a JSON object on one line, then its blobs. Limits are enforced before memory is taken.

After any error of a reader the stream's position is lost: the caller stops reading. Only `Writer` writes to the
protocol's descriptor. Knows no message's meaning.
"""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Generic, TypeVar

import msgspec

from calotype_worker.wire import codec
from calotype_worker.wire.words import Message

HEAD_BYTES = 256
"""Bytes of a bad line that an error keeps."""
PIECE_BYTES = 4 << 20
"""A blob grows as its bytes arrive, so that a peer that announces much and sends little costs little."""

Buffer = bytes | bytearray | memoryview
M = TypeVar("M")


@dataclass(frozen=True)
class FrameLimits:
    """What a reader takes: the longest line without its newline, the largest blob, how many, and all together."""

    line_bytes: int = 1 << 20
    blob_bytes: int = 256 << 20
    blobs: int = 64
    total_bytes: int = 512 << 20


@dataclass(frozen=True)
class Frame(Generic[M]):
    """A message with its blobs."""

    message: M
    blobs: list[bytearray] = field(default_factory=list)


class FrameError(Exception):
    """A stream of frames cannot be read any further."""


class Closed(FrameError):
    """The peer left between two frames; the only clean end."""


class Truncated(FrameError):
    """The peer left inside a frame."""


class LineTooLong(FrameError):
    """No newline within the limit."""


class NotAMessage(FrameError):
    """The line is not a JSON object, or not a message that we know."""


class BlobsRefused(FrameError):
    """Announced blobs break a limit; none of them was read."""


class _Announcement(msgspec.Struct):
    blobs: list[int] = []


_announcement = msgspec.json.Decoder(_Announcement)


def _beginning(line: bytes) -> str:
    return f", it begins {line[:HEAD_BYTES]!r}"


def announced_blobs(line: bytes, limits: FrameLimits) -> list[int]:
    """The lengths of the blobs that follow `line`; refuses what breaks `limits`."""
    # Only an object may announce: msgspec would take an array for a struct of another kind.
    if not line.lstrip(b" \t\r\n").startswith(b"{"):
        raise NotAMessage(f"not a JSON object{_beginning(line)}")
    try:
        sizes = _announcement.decode(line).blobs
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NotAMessage(f"{error}{_beginning(line)}") from None
    if any(size < 0 for size in sizes):
        raise NotAMessage(f"a blob of a negative length{_beginning(line)}")
    if len(sizes) > limits.blobs:
        raise BlobsRefused(f"{len(sizes)} blobs announced, at most {limits.blobs} are taken")
    for size in sizes:
        if size > limits.blob_bytes:
            raise BlobsRefused(f"a blob of {size} bytes announced, at most {limits.blob_bytes} are taken")
    if sum(sizes) > limits.total_bytes:
        raise BlobsRefused(f"{sum(sizes)} bytes in blobs announced, at most {limits.total_bytes} are taken")
    return sizes


class Reader(Generic[M]):
    """Reads frames from a buffered pipe; `decode` makes a message of a line."""

    def __init__(self, pipe: BinaryIO, decode: Callable[[bytes], M], limits: FrameLimits | None = None) -> None:
        self._pipe = pipe
        self._decode = decode
        self._limits = limits or FrameLimits()

    def read(self) -> Frame[M]:
        """Wait for the next frame."""
        line = self._line()
        sizes = announced_blobs(line, self._limits)
        # Blobs come before the message is decoded: an unknown type must not leave its blobs in the stream.
        blobs = [self._blob(size, line) for size in sizes]
        try:
            return Frame(self._decode(line), blobs)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise NotAMessage(f"{error}{_beginning(line)}") from None

    def _line(self) -> bytes:
        line = self._pipe.readline(self._limits.line_bytes + 1)
        if line.endswith(b"\n"):
            return line[:-1]
        if not line:
            raise Closed("the stream ended")
        if len(line) > self._limits.line_bytes:
            raise LineTooLong(f"a line is longer than {self._limits.line_bytes} bytes{_beginning(line)}")
        raise Truncated(f"the stream ended inside a frame{_beginning(line)}")

    def _blob(self, size: int, line: bytes) -> bytearray:
        blob = bytearray()
        while len(blob) < size:
            piece = self._pipe.read(min(PIECE_BYTES, size - len(blob)))
            if not piece:
                raise Truncated(f"the stream ended inside a frame{_beginning(line)}")
            blob += piece
        return blob


class Writer:
    """Writes whole frames to a descriptor, from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def write(self, message: Message, blobs: Sequence[Buffer] = ()) -> None:
        """Write one frame. Raises `OSError` where nobody listens any more."""
        views = [memoryview(blob).cast("B") for blob in blobs]
        line = codec.encode(message, [len(view) for view in views]) + b"\n"
        with self._lock:
            self._write_all([memoryview(line), *(view for view in views if len(view))])

    def _write_all(self, parts: list[memoryview]) -> None:
        while parts:
            written = _write_some(self._descriptor, parts)
            while parts and written >= len(parts[0]):
                written -= len(parts.pop(0))
            if written:
                parts[0] = parts[0][written:]


def _write_some(descriptor: int, parts: list[memoryview]) -> int:
    """Bytes written of `parts`, at least one. Windows has no `writev`."""
    if hasattr(os, "writev"):
        return os.writev(descriptor, parts)
    return os.write(descriptor, parts[0])
