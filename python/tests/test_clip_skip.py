"""Layers left out of a CLIP: as many as in diffusers' pipelines, from none to all that a request can name.

`clip_skip` counts as diffusers does: 1 leaves out one layer more than usual. Other tools call that 2, and usual 1.
diffusers leaves the negative prompt as it is; here both are encoded alike.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from calotype_worker.errors import InvalidInput
from calotype_worker.pipelines.adapted import PLAIN
from calotype_worker.wire import up

from . import test_families, tiny
from .desk import Desk, folder_spec, spans

PROMPT, NEGATIVE = "a red apple on the beach", "blurry"
LAYERS = 12


def deep(family: str) -> Any:
    """A small pipeline whose encoders have as many layers as the real ones of SD 1."""
    pipeline: Any = {"sd": tiny.sd, "sdxl": tiny.sdxl}[family]()
    torch.manual_seed(21)
    pipeline.register_modules(text_encoder=tiny.text_encoder(False, LAYERS).eval())
    if family == "sdxl":
        pipeline.register_modules(text_encoder_2=tiny.text_encoder(True, LAYERS).eval())
    return pipeline


def told(pipeline: Any, family: str, clip_skip: int) -> torch.Tensor:
    """The states that diffusers' pipeline makes of the prompt."""
    if family == "sd" and not hasattr(pipeline.text_encoder, "text_model"):
        # The pipeline asks for a layer of modules that newer releases of transformers have taken out.
        object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    states: torch.Tensor = pipeline.encode_prompt(
        PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False, clip_skip=clip_skip or None
    )[0][0]
    return states


@torch.no_grad()
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_every_clip_skip_gives_the_states_of_diffusers(family: str, tmp_path: Path) -> None:
    pipeline = deep(family)
    desk = Desk()
    root = tiny.saved(pipeline, tmp_path / family)
    assert isinstance(desk.load(folder_spec(family, root, family=family)), up.Loaded), desk.said[-1]
    model = desk.loop.family(family)
    seen: list[torch.Tensor] = []
    for clip_skip in range(LAYERS):
        ours = model.encode(PLAIN, spans(PROMPT), spans(NEGATIVE), 3.0, clip_skip)
        expected = told(pipeline, family, clip_skip)
        assert torch.allclose(ours.cond.states, expected, atol=1e-5), clip_skip
        # Each is another one.
        assert not any(torch.allclose(expected, earlier, atol=1e-5) for earlier in seen), clip_skip
        seen.append(expected)
        # The negative prompt is encoded alike.
        alone = model.encode(PLAIN, spans(NEGATIVE), [], 1.0, clip_skip)
        assert ours.uncond is not None
        assert torch.allclose(ours.uncond.states, alone.cond.states, atol=1e-5)


def test_more_layers_than_there_are_cannot_be_left_out() -> None:
    model = Desk().tiny().loop.family("calotype-tiny")
    layers = model.encoder.layers  # type: ignore[attr-defined]
    model.encode(PLAIN, spans(PROMPT), [], 1.0, layers)
    with pytest.raises(InvalidInput, match="clip skip"):
        model.encode(PLAIN, spans(PROMPT), [], 1.0, layers + 1)


@torch.no_grad()
@pytest.mark.parametrize("clip_skip", [1, 2])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_clip_skip_gives_the_picture_of_diffusers(family: str, clip_skip: int, tmp_path: Path) -> None:
    pipeline: Any = {"sd": tiny.sd, "sdxl": tiny.sdxl}[family]()
    pipeline.set_progress_bar_config(disable=True)
    desk = Desk()
    assert isinstance(desk.load(folder_spec(family, tiny.saved(pipeline, tmp_path / family), family=family)), up.Loaded)
    told(pipeline, family, clip_skip)
    expected = pipeline(
        test_families.PROMPT,
        latents=test_families.noise_of(5),
        height=test_families.EDGE,
        width=test_families.EDGE,
        num_inference_steps=6,
        guidance_scale=1.0,
        clip_skip=clip_skip,
        output_type="latent",
    ).images
    stage = test_families.Stage(desk, {family: pipeline}, {})
    ours = test_families.latents(stage, family, guidance=1.0, clip_skip=clip_skip)
    assert test_families.close(ours, expected)
    assert not test_families.close(ours, test_families.latents(stage, family, guidance=1.0))
