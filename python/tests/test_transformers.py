"""SD3 and FLUX against diffusers' own pipelines, on small random weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from calotype_worker import noise
from calotype_worker.errors import NotSupported
from calotype_worker.job import Sampling
from calotype_worker.samplers.flow import FlowSchedule
from calotype_worker.wire import up

from . import tiny
from .desk import Desk, folder_spec, generate, spans

EDGE, SCALE, STEPS = 32, 2, 5
PROMPT, NEGATIVE = "a red apple", "blurry"


def noise_of(seed: int) -> torch.Tensor:
    return torch.from_numpy(noise.normal(seed, 0, (1, 4, EDGE // SCALE, EDGE // SCALE)))


def loaded(pipeline: Any, family: str, folder: Path) -> Desk:
    pipeline.set_progress_bar_config(disable=True)
    desk = Desk()
    assert isinstance(desk.load(folder_spec(family, tiny.saved(pipeline, folder), family=family)), up.Loaded), (
        desk.said[-1]
    )
    return desk


def sampled(desk: Desk, family: str, **changes: Any) -> torch.Tensor:
    work_changes = {"model": family, "steps": STEPS, "sampler": "euler", "guidance": 4.0, **changes}
    work, blobs = generate([5], edge=EDGE, scale=SCALE, prompt=PROMPT, negative_prompt=spans(NEGATIVE), **work_changes)
    desk.run(work, *blobs)
    held = desk.loop.jobs[-1]
    desk.until(lambda: not desk.loop.jobs or getattr(held.stage, "is_done", False))
    assert isinstance(held.stage, Sampling), desk.said[-1].message
    found = held.stage.latents
    desk.finish()
    assert desk.result(held.job)[1][0].shape == (EDGE, EDGE, 3)
    return found


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return float((ours - theirs).abs().max()) <= 1e-3 * float(theirs.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("with_t5", [False, True])
def test_sd3_gives_the_latents_of_diffusers_pipeline(with_t5: bool, tmp_path: Path) -> None:
    pipeline = tiny.sd3(with_t5)
    desk = loaded(pipeline, "sd3", tmp_path / "sd3")
    for guidance in (1.0, 4.0):
        expected = pipeline(
            PROMPT,
            negative_prompt=NEGATIVE,
            latents=noise_of(5),
            height=EDGE,
            width=EDGE,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            output_type="latent",
        ).images
        assert close(sampled(desk, "sd3", guidance=guidance), expected)


@torch.no_grad()
@pytest.mark.parametrize("guided", [False, True])
def test_flux_gives_the_latents_of_diffusers_pipeline(guided: bool, tmp_path: Path) -> None:
    pipeline = tiny.flux(guided)
    desk = loaded(pipeline, "flux", tmp_path / "flux")
    packed = pipeline._pack_latents(noise_of(5), 1, 4, EDGE // SCALE, EDGE // SCALE)
    for guidance in (1.0, 4.0):
        expected = pipeline(
            PROMPT,
            latents=packed,
            height=EDGE,
            width=EDGE,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            output_type="latent",
        ).images
        ours = sampled(desk, "flux", guidance=guidance)
        assert close(pipeline._pack_latents(ours, 1, 4, EDGE // SCALE, EDGE // SCALE), expected)


def test_a_flow_goes_on_from_an_image_and_joins_batches(tmp_path: Path) -> None:
    desk = loaded(tiny.flux(True), "flux", tmp_path / "flux")
    work, blobs = generate([1], edge=EDGE, scale=SCALE, model="flux", sampler="dpmpp_2m", steps=4, guidance=2.0)
    other, other_blobs = generate([2], edge=EDGE, scale=SCALE, model="flux", sampler="euler", steps=4, guidance=5.0)
    jobs = [desk.run(work, *blobs), desk.run(other, *other_blobs)]
    desk.finish()
    assert [desk.result(job)[0].batch_sizes for job in jobs] == [[2] * 4] * 2
    picture = desk.picture(jobs[0])
    image, image_blobs = generate(
        [3], edge=EDGE, scale=SCALE, model="flux", mode="image_to_image", init_image=picture, strength=0.5, steps=4,
        sampler="euler",
    )  # fmt: skip
    job = desk.run(image, *image_blobs)
    desk.finish()
    assert desk.result(job)[0].batch_sizes == [1, 1]


def test_what_a_flow_has_not_is_said() -> None:
    schedule = FlowSchedule.of_config(tiny.FLOW)
    for sampler, kind, steps in (("ddim", "default", 4), ("euler", "karras", 4), ("euler", "default", 0)):
        with pytest.raises(NotSupported):
            schedule.planned(sampler, kind, steps, 64, False)  # type: ignore[arg-type]
    with pytest.raises(NotSupported, match="use_karras_sigmas"):
        FlowSchedule.of_config({"use_karras_sigmas": True})


def test_an_edge_that_gives_no_whole_patches_is_refused(tmp_path: Path) -> None:
    desk = loaded(tiny.sd3(False), "sd3", tmp_path / "sd3")
    work, blobs = generate([1], edge=34, scale=SCALE, model="sd3", sampler="euler")
    job = desk.run(work, *blobs)
    desk.finish()
    assert "multiple of 4" in desk.failure(job).message
