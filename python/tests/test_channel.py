"""Frames over pipes: what is refused, and that nothing is lost."""

import io
import os
import threading
from typing import BinaryIO, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calotype_worker import channel
from calotype_worker.channel import FrameLimits, Reader, Writer
from calotype_worker.wire import codec, down, up


def reader(data: bytes, limits: FrameLimits | None = None) -> Reader[down.Down]:
    return Reader(cast(BinaryIO, io.BytesIO(data)), codec.decode_down, limits)


def test_frames_come_out_as_they_went_in() -> None:
    into, out = os.pipe()
    writer = Writer(out)
    image = os.urandom(3_000_000)
    message = up.Released(segment="s")

    def write() -> None:
        writer.write(message, [image, b"", b"xyz"])
        os.close(out)

    thread = threading.Thread(target=write)
    thread.start()
    frames = Reader(os.fdopen(into, "rb"), codec.decode_up)
    frame = frames.read()
    assert frame.message == message
    assert [bytes(blob) for blob in frame.blobs] == [image, b"", b"xyz"]
    with pytest.raises(channel.Closed):
        frames.read()
    thread.join()


def test_a_blob_above_the_limit_is_refused_before_it_is_read() -> None:
    for line in [b'{"blobs":[268435457]}', b'{"blobs":[18446744073709551615]}', b'{"blobs":[268435456,268435456,1]}']:
        with pytest.raises(channel.BlobsRefused):
            channel.announced_blobs(line, FrameLimits())
    with pytest.raises(channel.BlobsRefused):
        channel.announced_blobs(b'{"blobs":[' + b"1," * 64 + b"1]}", FrameLimits())


@pytest.mark.parametrize(
    "line", [b'{"blobs":[-1]}', b'{"blobs":[1.5]}', b'{"blobs":"x"}', b"[[1]]", b"7", b"", b"null"]
)
def test_lengths_that_are_no_lengths_are_not_a_message(line: bytes) -> None:
    with pytest.raises(channel.NotAMessage):
        channel.announced_blobs(line, FrameLimits())


def test_a_line_without_an_end_is_refused_at_the_limit() -> None:
    with pytest.raises(channel.LineTooLong):
        reader(b"x" * ((1 << 20) + 1)).read()


def test_an_end_inside_a_frame_is_told_apart_from_a_clean_one() -> None:
    for data in [b'{"type":"ping"', b'{"type":"drain","blobs":[5]}\nab']:
        with pytest.raises(channel.Truncated):
            reader(data).read()
    with pytest.raises(channel.Closed):
        reader(b"").read()


def test_an_error_keeps_no_more_than_the_first_256_bytes() -> None:
    with pytest.raises(channel.NotAMessage) as error:
        reader(b"x" * 10_000 + b"\n").read()
    assert len(str(error.value)) < 400


def test_an_unknown_type_leaves_no_blobs_in_the_stream() -> None:
    frames = reader(b'{"type":"new","blobs":[3]}\nabc{"type":"drain"}\n')
    with pytest.raises(channel.NotAMessage):
        frames.read()
    assert frames.read().message == down.Drain()


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(alphabet='{}[]":,1-blobstypeping \n', max_size=80).map(str.encode)))
def test_no_stream_does_more_than_raise_a_frame_error(data: bytes) -> None:
    frames = reader(data, FrameLimits(line_bytes=64, blob_bytes=32, blobs=3, total_bytes=48))
    with pytest.raises(channel.FrameError):
        for _ in range(500):
            frames.read()
