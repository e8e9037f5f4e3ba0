"""Whole pictures of the embedded model against the native worker's reference values."""

import json
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from calotype_worker.wire.work import Adapter

from .conftest import FIXTURES, MODELS
from .desk import Desk, generate, psnr, spans

REQUESTS = {request["name"]: request for request in json.loads((FIXTURES / "pictures.json").read_text())["requests"]}
ARRAYS = load_file(FIXTURES / "pictures.safetensors")


@pytest.fixture(scope="module")
def desk() -> Desk:
    return Desk().tiny()


def png(name: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(FIXTURES / f"{name}.png").convert("RGB"))


@lru_cache
def middle() -> np.ndarray[Any, Any]:
    """The mask of the latents as one of pixels."""
    return np.ascontiguousarray(np.kron(ARRAYS["mask/middle"][0, 0], np.ones((8, 8))) * 255).astype(np.uint8)


def final_latents(desk: Desk, name: str) -> np.ndarray[Any, Any]:
    request = REQUESTS[name]
    loras = [
        Adapter(id=lora, path=str(MODELS / "loras" / f"calotype-tiny-{lora}.safetensors"), weight=weight)
        for lora, weight in request["loras"]
    ]
    mode = "inpaint" if request["mask"] else "image_to_image" if request["init"] else "text_to_image"
    work, blobs = generate(
        [request["seed"]],
        edge=256,
        mode=mode,
        prompt=request["prompt"],
        negative_prompt=spans(request["negative_prompt"]),
        sampler=request["sampler"],
        schedule=request["schedule"],
        steps=request["steps"],
        guidance=request["guidance"],
        strength=request["strength"] if request["strength"] is not None else 1.0,
        adapters=loras,
        init_image=png(request["init"]) if request["init"] else None,
        mask=middle() if request["mask"] else None,
    )
    job = desk.run(work, *blobs)
    held = desk.loop.jobs[-1]
    desk.until(lambda: getattr(held.stage, "is_done", False))
    latents: np.ndarray[Any, Any] = held.stage.latents.numpy()  # type: ignore[union-attr]
    desk.finish()
    assert desk.result(job)
    return latents


# The whole of a 20-step run in 256² takes too long for every change; `quality` covers it once.
@pytest.mark.parametrize(
    "name", ["fast", "quality", "ancestral", "pixel_fast", "negative", "image", "inpaint", "inpaint_all"]
)
def test_final_latents_are_the_reference_values(desk: Desk, name: str) -> None:
    ours, theirs = final_latents(desk, name), ARRAYS[f"{name}/latents"]
    assert np.abs(ours - theirs).max() <= 2e-3 * np.abs(theirs).max()


@pytest.mark.parametrize("name", ["fast", "quality"])
def test_pictures_are_the_reference_pictures(desk: Desk, name: str) -> None:
    picture = desk.picture(desk.all_jobs()[list(REQUESTS).index(name)])
    assert psnr(picture, png(name)) >= 60
