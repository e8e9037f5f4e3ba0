"""The golden conversations, both ways."""

import json
from pathlib import Path
from typing import Any, cast, get_args

import msgspec
import pytest

from calotype_worker.wire import codec, down, up, words, work

from .conftest import GOLDEN, REPOSITORY

LINES = [
    pytest.param(direction, message, id=f"{path.stem}-{number}-{direction}")
    for path in sorted(GOLDEN.glob("*.jsonl"))
    for number, line in enumerate(path.read_text().splitlines(), 1)
    for direction, message in json.loads(line).items()
]


def test_there_are_golden_conversations() -> None:
    assert len(LINES) > 30


@pytest.mark.parametrize(("direction", "message"), LINES)
def test_a_golden_line_decodes_and_encodes_to_itself(direction: str, message: dict[str, Any]) -> None:
    decode = codec.decode_down if direction == "down" else codec.decode_up
    assert json.loads(codec.encode(decode(json.dumps(message).encode()))) == message


def test_every_message_type_has_a_golden_line() -> None:
    seen = {(str(param.values[0]), cast("dict[str, str]", param.values[1])["type"]) for param in LINES}
    for direction, union in (("down", down.Down), ("up", up.Up)):
        for kind in get_args(union):
            assert (direction, kind.__struct_config__.tag) in seen


def test_unknown_fields_are_ignored() -> None:
    assert codec.decode_down(b'{"type":"ping","seq":1,"new":[1]}') == down.Ping(seq=1)


@pytest.mark.parametrize("line", [b'{"type":"pong","seq":1}', b'{"type":"no"}', b'{"seq":1}', b'{"type":"ping"}'])
def test_an_unknown_type_or_a_missing_field_is_an_error(line: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        codec.decode_down(line)


def test_a_field_that_is_none_is_not_written() -> None:
    assert codec.encode(down.Unload(unload="u")) == b'{"type":"unload","unload":"u"}'


def _names(schema: dict[str, Any], definition: str) -> set[str]:
    found = schema["$defs"][definition]
    variants = found.get("oneOf", [found])
    return {name for variant in variants for name in variant.get("enum", [variant.get("const")])}


@pytest.mark.parametrize(
    ("definition", "ours"),
    [
        ("Sampler", words.SAMPLERS),
        ("Schedule", words.SCHEDULES),
        ("Mode", words.MODES),
        ("Dtype", get_args(words.Dtype)),
        ("NoiseSource", get_args(words.NoiseSource)),
    ],
)
def test_our_words_are_the_schemas_words(definition: str, ours: tuple[str, ...]) -> None:
    schema = json.loads(Path(REPOSITORY / "schema" / "down.json").read_text())
    assert _names(schema, definition) == set(ours)


def test_every_kind_of_work_is_known() -> None:
    schema = json.loads(Path(REPOSITORY / "schema" / "down.json").read_text())
    kinds = {variant["properties"]["kind"]["const"] for variant in schema["$defs"]["Work"]["oneOf"]}
    assert kinds == {kind.__struct_config__.tag for kind in get_args(work.Work)}
