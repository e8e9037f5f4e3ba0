"""The bundled vocabulary of T5: it is the published one, and serves encoders that come without one."""

import gzip
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from calotype_worker.errors import ModelLoad
from calotype_worker.t5 import BUNDLED, BUNDLED_PIECES, BUNDLED_ROWS, T5Tokenizer
from calotype_worker.wire import up

from . import single, tiny
from .conftest import REPOSITORY
from .desk import TINY, Desk
from .test_single_files import AXES

# As transformers' documentation of T5 has them: the inputs of its first examples.
KNOWN = {
    "translate English to German: That is good.": [13959, 1566, 12, 2968, 10, 466, 19, 207, 5],
    "Studies have shown that owning a dog is good for you": [6536, 43, 2008, 24, 293, 53, 3, 9, 1782, 19, 207, 21, 25],
}
TEXTS = [
    *KNOWN,
    "a red apple on the beach, 3d",
    "two  spaces, a\ttab and\na line",
    " spaces around ",
    "\ufb01 \u2460 \uff46\uff55\uff4c\uff4c\u3000width, Ünïcode, 東京",
    "(weights:1.2) [brackets] <extra_id_0> 😀",
    "",
]


@pytest.fixture(scope="module")
def text() -> bytes:
    return gzip.decompress(BUNDLED.read_bytes())


@pytest.fixture(scope="module")
def plain(text: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("t5") / "plain.json"
    path.write_bytes(text)
    return path


def test_its_ids_are_the_published_ones() -> None:
    tokenizer = T5Tokenizer(BUNDLED)
    assert (tokenizer.pad, tokenizer.end, tokenizer.pieces) == (0, 1, BUNDLED_PIECES)
    assert {text: tokenizer.ids(text) for text in KNOWN} == KNOWN
    # The extra pieces are counted from the end.
    assert tokenizer.ids("<extra_id_0>") == [32_099]
    assert tokenizer.ids("<extra_id_99>") == [32_000]


@pytest.mark.parametrize("prompt", TEXTS)
def test_it_gives_what_transformers_makes_of_the_same_file(plain: Path, prompt: str) -> None:
    theirs: Any = T5TokenizerFast(tokenizer_file=str(plain))
    assert T5Tokenizer(BUNDLED).ids(prompt) == theirs(prompt, add_special_tokens=False).input_ids


def test_its_notice_names_the_text_that_is_there_and_it_is_small(text: bytes) -> None:
    notice = BUNDLED.with_name("NOTICE").read_text()
    assert hashlib.sha256(text).hexdigest() in notice
    # Without a time, so that the same text gives the same file.
    assert BUNDLED.read_bytes()[4:8] == bytes(4)
    assert BUNDLED.stat().st_size < 900_000


def test_it_travels_in_the_package(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    build = "from setuptools import setup; setup()"
    subprocess.run(
        [
            sys.executable,
            "-c",
            build,
            "--quiet",
            "egg_info",
            "-e",
            str(tmp_path),
            "build_py",
            "-d",
            str(tmp_path / "to"),
        ],
        cwd=REPOSITORY / "python",
        check=True,
    )
    there = tmp_path / "to" / BUNDLED.relative_to(REPOSITORY / "python")
    assert there.read_bytes() == BUNDLED.read_bytes()
    assert there.with_name("LICENSE").is_file()


def flux(rows: int) -> Any:
    pipeline = tiny.flux(True, heads=1, axes=AXES)
    config = T5Config(vocab_size=rows, d_model=tiny.TEXT, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    pipeline.text_encoder_2 = T5EncoderModel(config).eval()
    return single.halved(pipeline)


@pytest.mark.parametrize("rows", BUNDLED_ROWS)
def test_a_file_of_flux_with_t5_needs_no_tokenizer_beside_it(
    rows: int, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, desk = flux(rows), Desk()
    single.know(pipeline, "flux", tmp_path / "configs", monkeypatch)
    path = single.written(single.whole(pipeline, "flux"), tmp_path / "flux.safetensors")
    (tmp_path / "t5").mkdir()
    loose = single.written(dict(pipeline.text_encoder_2.named_parameters()), tmp_path / "t5" / "t5xxl.safetensors")
    assert isinstance(desk.load(single.spec(path, "flux", tokenizer_2=plain)), up.Loaded), desk.said[-1]
    expected = single.picture(desk, "single")
    for parts in ({}, {"text_encoder_2": loose}):
        assert isinstance(desk.load(single.spec(path, "flux", **parts)), up.Loaded), desk.said[-1]
        assert (single.picture(desk, "single") == expected).all()
    # One that lies beside the encoder is believed.
    tiny.t5_tokenizer().save_pretrained(tmp_path / "words")
    beside = loose.with_name("tokenizer.json")
    beside.write_bytes((tmp_path / "words" / "tokenizer.json").read_bytes())
    assert isinstance(desk.load(single.spec(path, "flux", text_encoder_2=loose)), up.Loaded), desk.said[-1]
    assert (single.picture(desk, "single") != expected).any()


def test_a_folder_without_a_vocabulary_beside_the_encoder_is_no_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, desk = flux(BUNDLED_PIECES), Desk()
    single.know(pipeline, "flux", tmp_path / "configs", monkeypatch)
    path = single.written(single.whole(pipeline, "flux"), tmp_path / "flux.safetensors")
    pipeline.text_encoder_2.save_pretrained(tmp_path / "text_encoder_2")
    # That of CLIP, as a folder of FLUX has it.
    (tmp_path / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "tokenizer" / name).write_bytes((TINY / "tokenizer" / name).read_bytes())
    given = single.spec(path, "flux", text_encoder_2=tmp_path / "text_encoder_2")
    assert isinstance(desk.load(given), up.Loaded), desk.said[-1]


def test_an_encoder_with_another_vocabulary_has_no_use_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: Path
) -> None:
    pipeline, desk = flux(BUNDLED_PIECES - 1), Desk()
    single.know(pipeline, "flux", tmp_path / "configs", monkeypatch)
    path = single.written(single.whole(pipeline, "flux"), tmp_path / "flux.safetensors")
    answer = desk.load(single.spec(path, "flux"))
    assert isinstance(answer, up.LoadFailed)
    assert "component `tokenizer_2`" in (answer.failure.detail or "")
    # Its last piece would lie beyond the encoder's table.
    answer = desk.load(single.spec(path, "flux", tokenizer_2=plain))
    assert isinstance(answer, up.LoadFailed)
    assert answer.failure.outcome == "model_load"
    assert "32100 pieces" in (answer.failure.detail or "")
    assert str(plain) in (answer.failure.detail or "")


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    for content in (b"", b"\x1f\x8b", b"{"):
        path = tmp_path / "tokenizer.json.gz"
        path.write_bytes(content)
        with pytest.raises(ModelLoad) as caught:
            T5Tokenizer(path)
        assert str(path) in (caught.value.detail or "")
