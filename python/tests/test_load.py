"""Loads that fail name the file and the tensor, and leave the worker usable."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from calotype_worker.wire import down, up

from .desk import TINY, Desk, folder_spec, generate


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def config(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


UNET = "unet/diffusion_pytorch_model.safetensors"


def drop_tensor(root: Path) -> str:
    rewrite(root / UNET, lambda tensors: tensors.pop("conv_in.weight"))
    return "conv_in.weight"


def wrong_shape(root: Path) -> str:
    rewrite(root / UNET, lambda tensors: tensors.update({"conv_in.weight": np.zeros((3, 4), np.float32)}))
    return "conv_in.weight"


def wrong_type(root: Path) -> str:
    rewrite(root / UNET, lambda tensors: tensors.update({"conv_in.bias": np.zeros(64, np.int64)}))
    return "conv_in.bias"


def truncated(root: Path) -> str:
    (root / UNET).write_bytes((root / UNET).read_bytes()[:-1000])
    return UNET


def garbage(root: Path) -> str:
    (root / UNET).write_bytes(b"\xff" * 5000)
    return UNET


def no_weights(root: Path) -> str:
    (root / UNET).unlink()
    return "unet: no safetensors"


def only_pickle(root: Path) -> str:
    (root / UNET).rename(root / "unet" / "diffusion_pytorch_model.bin")
    return "diffusion_pytorch_model.bin"


def no_config(root: Path) -> str:
    (root / "vae/config.json").unlink()
    return "vae/config.json"


def broken_config(root: Path) -> str:
    (root / "vae/config.json").write_text("[")
    return "vae/config.json"


def impossible_config(root: Path) -> str:
    config(root / "unet/config.json", down_block_types=["NoSuchBlock"])
    return "unet"


def no_tokenizer(root: Path) -> str:
    shutil.rmtree(root / "tokenizer")
    return "tokenizer"


def no_scheduler(root: Path) -> str:
    (root / "scheduler/scheduler_config.json").unlink()
    return "scheduler_config.json"


FAULTS = [
    drop_tensor, wrong_shape, wrong_type, truncated, garbage, no_weights, only_pickle, no_config, broken_config,
    impossible_config, no_tokenizer, no_scheduler,
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_what_is_wrong_with_a_model_is_said_with_its_file(folder: Path, fault: Callable[[Path], str]) -> None:
    named = fault(folder)
    desk = Desk()
    answer = desk.load(folder_spec("broken", folder))
    assert isinstance(answer, up.LoadFailed)
    assert answer.failure.outcome == "model_load"
    assert named in (answer.failure.detail or ""), answer.failure
    assert not desk.loop.models


def test_a_class_that_is_not_known_is_not_supported(folder: Path) -> None:
    config(folder / "unet/config.json", _class_name="OtherModel")
    answer = Desk().load(folder_spec("other", folder))
    assert isinstance(answer, up.LoadFailed)
    assert answer.failure.outcome == "not_supported"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (folder_spec("x", TINY, family="other"), "other"),
        (down.ModelSpec(id="x", family="sd", format="onnx", components={"root": str(TINY)}), "onnx"),
    ],
)
def test_families_and_formats_that_are_not_served_say_so(spec: down.ModelSpec, words: str) -> None:
    answer = Desk().load(spec)
    assert isinstance(answer, up.LoadFailed)
    assert (answer.failure.outcome, words in answer.failure.message) == ("not_supported", True)


def test_a_budget_that_is_too_small_is_out_of_memory_with_numbers() -> None:
    answer = Desk().load(folder_spec("tiny", TINY), budget=1000)
    assert isinstance(answer, up.LoadFailed)
    assert answer.failure.outcome == "out_of_memory"
    assert "1000 are granted" in (answer.failure.detail or "")


def test_progress_reaches_the_bytes_that_are_resident() -> None:
    desk = Desk()
    loaded = desk.load(folder_spec("tiny", TINY))
    assert isinstance(loaded, up.Loaded)
    told = desk.all(up.LoadProgress)
    assert told[-1].done_bytes == told[-1].total_bytes == loaded.resident_bytes > 50 << 20
    assert set(loaded.phases_ms) == {"read", "convert"}


def test_a_swapped_component_is_used(folder: Path) -> None:
    rewrite(
        folder / "vae/diffusion_pytorch_model.safetensors",
        lambda t: t.update({"decoder.conv_out.bias": t["decoder.conv_out.bias"] + 9}),
    )
    desk = Desk()
    assert isinstance(desk.load(folder_spec("calotype-tiny", TINY, vae=folder / "vae")), up.Loaded)
    work, blobs = generate(steps=1)
    job = desk.run(work, *blobs)
    desk.finish()
    assert (desk.picture(job) == 255).all()


def test_half_precision_follows_full_precision() -> None:
    desk = Desk().tiny()
    work, blobs = generate(steps=2)
    full = desk.run(work, *blobs)
    desk.finish()
    assert isinstance(desk.load(folder_spec("calotype-tiny", TINY), dtype="bf16"), up.Loaded)
    half = desk.run(work, *blobs)
    desk.finish()
    difference = desk.picture(full).astype(int) - desk.picture(half).astype(int)
    assert np.abs(difference).mean() < 12
