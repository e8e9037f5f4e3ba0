"""Messages to JSON and back. Knows no blob and no pipe; see `channel`."""

from typing import Any

import msgspec

from calotype_worker.wire import down, up
from calotype_worker.wire.words import Message

_encoder = msgspec.json.Encoder()
_down: msgspec.json.Decoder[down.Down] = msgspec.json.Decoder(down.Down)
_up: msgspec.json.Decoder[up.Up] = msgspec.json.Decoder(up.Up)


def decode_down(line: bytes) -> down.Down:
    """A line from the orchestrator; raises `msgspec.MsgspecError`."""
    return _down.decode(line)


def decode_up(line: bytes) -> up.Up:
    """A line from a worker; raises `msgspec.MsgspecError`."""
    return _up.decode(line)


def encode(message: Message, blob_bytes: list[int] | None = None) -> bytes:
    """The line of a message without its newline, announcing blobs of these lengths."""
    tree: dict[str, Any] = _without_none(msgspec.to_builtins(message))
    if blob_bytes:
        tree["blobs"] = blob_bytes
    return _encoder.encode(tree)


def _without_none(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _without_none(value) for name, value in tree.items() if value is not None}
    if isinstance(tree, list):
        return [_without_none(value) for value in tree]
    return tree
