"""A load's plan is followed, changes no picture, and results tell what was done."""

from typing import Any

import numpy as np
import pytest
import torch

from calotype_worker.pipelines.family import Family
from calotype_worker.wire import down, up
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
        (down.LoadPlan(offload="sequential"), ["offload_sequential"]),
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


def test_a_vae_plan_holds_for_its_job_alone_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = desk_of(None)
    model = desk.loop.family("calotype-tiny")
    model.vae.tile_sample_min_size, model.vae.tile_latent_min_size = 256, 32
    calls = list[tuple[int, int]]()
    forward = model.vae.decoder.forward

    def seen(latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.append((len(latents), max(latents.shape[-2:])))
        decoded: torch.Tensor = forward(latents, *rest)
        return decoded

    monkeypatch.setattr(model.vae.decoder, "forward", seen)
    # Two would be decoded at once.
    monkeypatch.setattr(desk.loop.device, "pictures_at_once", lambda pixels: 2)
    work, blobs = generate([1, 2], steps=2, edge=320)
    plans: tuple[down.VaePlan, ...] = ("tiling", "slicing", "whole")
    jobs = [desk.run(work, *blobs, vae=plan) for plan in plans]
    desk.finish()
    words = [desk.result(job)[0].plan for job in jobs]
    assert words == [["vae_tiling"], ["vae_slicing"], None]
    # None of the three goes together with another.
    assert all(call <= (1, 32) for call in calls[:-3]) and len(calls) > 3
    assert calls[-3:] == [(1, 40), (1, 40), (2, 40)]
    tiled, sliced, whole = (desk.result(job)[1] for job in jobs)
    assert all(psnr(ours, theirs) >= 60 for ours, theirs in zip(sliced, whole))
    assert all(psnr(ours, theirs) >= 30 for ours, theirs in zip(tiled, whole))


def test_a_last_step_is_told_of_before_pictures_are_decoded_in_a_new_way(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = desk_of(None)
    # As where steps land while the next is launched.
    monkeypatch.setattr(desk.loop.device, "run_ahead", 1)
    model = desk.loop.family("calotype-tiny")
    decode, told = model.decode, list[int]()

    def seen(latents: torch.Tensor) -> torch.Tensor:
        told.append(max(message.done for message in desk.all(up.Progress) if message.job == job))
        return decode(latents)

    monkeypatch.setattr(model, "decode", seen)
    plans: tuple[down.VaePlan, ...] = ("whole", "whole", "tiling")
    for plan in plans:
        work, blobs = generate([1], steps=3, edge=64)
        job = desk.run(work, *blobs, vae=plan)
        desk.finish()
    assert told == [3, 2, 3]


@pytest.mark.parametrize("own_edge", [32, 1024])
def test_a_vae_has_tiles_of_the_size_that_is_counted_with_whatever_its_config_says(own_edge: int) -> None:
    model = desk_of(None).loop.family("calotype-tiny")
    model.vae.tile_sample_min_size, model.vae.tile_latent_min_size = own_edge, own_edge // 8
    again = type(model).__new__(type(model))
    Family.__init__(again, "again", model.denoiser, model.vae, model.adapted, model.dtype)
    assert (again.vae.tile_sample_min_size, again.vae.tile_latent_min_size) == (512, 64)
