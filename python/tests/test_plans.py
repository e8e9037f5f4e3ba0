"""A load's plan is followed, changes no picture, and results tell what was done."""

from typing import Any

import numpy as np
import pytest

from calotype_worker.wire import down
from calotype_worker.wire.work import Adapter

from .conftest import FIXTURES
from .desk import TINY, Desk, folder_spec, generate, psnr

LORA = Adapter(id="tiny", path=str(FIXTURES / "lora_tiny_peft.safetensors"), weight=1.0)


def pictures(desk: Desk) -> tuple[list[np.ndarray[Any, Any]], list[str] | None]:
    jobs = []
    for changes in ({}, {"adapters": [LORA]}, {"preview_every": 1}):
        work, blobs = generate([1], steps=2, edge=32, **changes)
        jobs.append(desk.run(work, *blobs))
        desk.finish()
    return [picture for job in jobs for picture in desk.result(job)[1]], desk.result(jobs[0])[0].plan


def desk_of(plan: down.LoadPlan | None) -> Desk:
    desk = Desk()
    spec = folder_spec("calotype-tiny", TINY)
    desk.tell(down.Load(load="l", model=spec, dtype="f32", budget_bytes=0, plan=plan))
    assert desk.loop.models, desk.said[-1]
    return desk


@pytest.fixture(scope="module")
def expected() -> list[np.ndarray[Any, Any]]:
    found, plan = pictures(desk_of(None))
    assert plan is None
    return found


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (down.LoadPlan(), None),
        (down.LoadPlan(offload="model"), ["offload_model"]),
        (down.LoadPlan(offload="sequential", vae_tiling=True), ["offload_sequential", "vae_tiling"]),
        (down.LoadPlan(attention_slicing=True), ["attention_slicing"]),
    ],
)
def test_a_plan_gives_the_same_pictures_and_is_told(
    plan: down.LoadPlan,
    words: list[str] | None,
    expected: list[np.ndarray[Any, Any]],
    memory_apart: None,
) -> None:
    desk = desk_of(plan)
    model = desk.loop.family("calotype-tiny")
    before = {name: value.data_ptr() for name, value in model.denoiser.named_parameters()}
    found, told = pictures(desk)
    assert told == words
    assert all(psnr(ours, theirs) >= 50 for ours, theirs in zip(found, expected))
    model.whereabouts.bring()
    assert {name: value.data_ptr() for name, value in model.denoiser.named_parameters()} == before


def test_where_host_and_device_are_one_nothing_is_offloaded() -> None:
    assert pictures(desk_of(down.LoadPlan(offload="model")))[1] is None
