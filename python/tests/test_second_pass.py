"""The second pass is what one would do by hand: enlarge, and sample again from there."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from calotype_worker import noise
from calotype_worker.second_pass import INITIAL_NOISE
from calotype_worker.wire import down, up
from calotype_worker.wire.words import BlobRef
from calotype_worker.wire.work import Decode, Hires

from .desk import Desk, generate, psnr

EDGE, LARGER = 64, 96
PLAIN: dict[str, Any] = {"sampler": "euler", "steps": 3, "edge": EDGE}


@pytest.fixture(scope="module")
def desk() -> Desk:
    return Desk().tiny()


def hires(**changes: Any) -> Hires:
    fields: dict[str, Any] = {"width": LARGER, "height": LARGER, "steps": 4, "strength": 0.5, "upscaler": "lanczos"}
    return Hires(**(fields | changes))


def run(desk: Desk, seeds: list[int], **changes: Any) -> str:
    work, blobs = generate(seeds, **(PLAIN | changes))
    return desk.run(work, *blobs)


def done(desk: Desk, seeds: list[int], **changes: Any) -> list[np.ndarray[Any, Any]]:
    job = run(desk, seeds, **changes)
    desk.finish()
    return desk.result(job)[1]


def by_hand(desk: Desk, seed: int) -> np.ndarray[Any, Any]:
    base = done(desk, [seed])[0]
    image = np.array(Image.fromarray(base).resize((LARGER, LARGER), Image.Resampling.LANCZOS))
    again = {"edge": LARGER, "steps": 4, "mode": "image_to_image", "init_image": image, "strength": 0.5}
    work, blobs = generate([seed], **(PLAIN | again))
    blobs[0] = noise.normal(seed, INITIAL_NOISE, (4, LARGER // 8, LARGER // 8)).tobytes()
    job = desk.run(work, *blobs)
    desk.finish()
    return desk.picture(job)


def test_lanczos_equals_image_to_image_of_the_enlarged_picture(desk: Desk) -> None:
    pictures = done(desk, [1, 2], hires=hires())
    assert all(psnr(ours, by_hand(desk, seed)) >= 45 for seed, ours in zip((1, 2), pictures))


def test_latents_are_enlarged_bilinearly(desk: Desk) -> None:
    job = run(desk, [1])
    desk.until(lambda: getattr(desk.loop.jobs[0].stage, "is_done", False))
    latents: torch.Tensor = desk.loop.jobs[0].stage.latents  # type: ignore[union-attr]
    desk.finish()
    assert desk.picture(job).shape == (EDGE, EDGE, 3)
    larger = functional.interpolate(latents, scale_factor=LARGER / EDGE, mode="bilinear")
    ref = BlobRef(blob=0, dtype="f32", shape=list(larger.shape))
    job = desk.run(Decode(model="calotype-tiny", latents=ref), larger.numpy().tobytes())
    desk.finish()
    ours = done(desk, [1], hires=hires(upscaler="latent", strength=0.0))[0]
    assert psnr(ours, desk.picture(job)) >= 60


def test_progress_counts_both_passes_and_jobs_beside_it_do_not_change(desk: Desk) -> None:
    expected = done(desk, [5], sampler="euler_ancestral", hires=hires(upscaler="latent"))[0]
    desk.said.clear()
    first = run(desk, [4], sampler="euler_ancestral")
    second = run(desk, [5], sampler="euler_ancestral", hires=hires(upscaler="latent"))
    desk.until(lambda: desk.loop.jobs[-1].steps_done == 4)
    desk.tell(down.Pause(job=second, attempt=1))
    desk.tell(down.Resume(job=second, attempt=1))
    desk.finish()
    assert desk.picture(first).shape == (EDGE, EDGE, 3)
    assert psnr(desk.picture(second), expected) >= 60
    told = [(m.done, m.total) for m in desk.all(up.Progress, second) if m.phase == "denoise"]
    assert told == [(number, 5) for number in range(1, 6)]
    assert [m.at_step for m in desk.all(up.Paused, second)] == [4]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 90}, "width 90"),
        ({"steps": 0}, "0 steps"),
        ({"strength": 1.5}, "strength 1.5"),
    ],
)
def test_a_second_pass_that_cannot_be_is_refused(desk: Desk, changes: dict[str, Any], words: str) -> None:
    job = run(desk, [1], hires=hires(**changes))
    desk.finish()
    failure = desk.failure(job)
    assert (failure.outcome, words in failure.message) == ("invalid_input", True), failure


def test_a_second_pass_does_not_go_with_inpainting(desk: Desk) -> None:
    image, mask = np.zeros((EDGE, EDGE, 3), np.uint8), np.zeros((EDGE, EDGE), np.uint8)
    job = run(desk, [1], mode="inpaint", init_image=image, mask=mask, hires=hires())
    desk.finish()
    assert desk.failure(job).outcome == "invalid_input"
