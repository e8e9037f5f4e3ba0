"""UNets with nine channels, made for inpainting, against diffusers' own pipeline on small random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, UNet2DConditionModel
from PIL import Image

from calotype_worker import noise
from calotype_worker.job import Sampling
from calotype_worker.wire import down, up

from . import tiny
from .desk import Desk, folder_spec, generate, spans

EDGE, SCALE, STEPS = 32, 2, 6
PROMPT, NEGATIVE = "a red apple", "blurry"


def inpainting() -> Any:
    plain = tiny.sd()
    torch.manual_seed(9)
    config = tiny.unet_config(tiny.TEXT, None) | {"in_channels": 9, "sample_size": 64}
    ups = ["CrossAttnUpBlock2D", "UpBlock2D"]
    unet = UNet2DConditionModel(out_channels=4, up_block_types=ups, **config).eval()
    # Diffusers draws from the VAE's distribution; where it is narrow, that is its mean.
    quantise = plain.vae.quant_conv
    quantise.weight.data[4:] = 0.0
    quantise.bias.data[4:] = -30.0
    pipeline = StableDiffusionInpaintPipeline(
        **{**plain.components, "unet": unet, "image_encoder": None}, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> tuple[Desk, Any]:
    folder: Path = tmp_path_factory.mktemp("inpainting")
    pipeline, desk = inpainting(), Desk()
    pipeline.save_pretrained(folder)
    assert isinstance(desk.load(folder_spec("inpainting", folder)), up.Loaded), desk.said[-1]
    return desk, pipeline


def latents(desk: Desk, **changes: Any) -> torch.Tensor:
    fields = {"model": "inpainting", "steps": STEPS, "sampler": "euler", "guidance": 3.0, **changes}
    work, blobs = generate([5], edge=EDGE, scale=SCALE, prompt=PROMPT, negative_prompt=spans(NEGATIVE), **fields)
    desk.run(work, *blobs)
    held = desk.loop.jobs[-1]
    desk.until(lambda: not desk.loop.jobs or getattr(held.stage, "is_done", False))
    assert isinstance(held.stage, Sampling), desk.said[-1].message
    found = held.stage.latents
    desk.finish()
    return found


IMAGE = np.random.default_rng(1).integers(0, 256, (EDGE, EDGE, 3), dtype=np.uint8)
MASK = np.zeros((EDGE, EDGE), np.uint8)
MASK[8:24, 4:20] = 255


@torch.no_grad()
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_inpainting_gives_the_latents_of_diffusers_pipeline(stage: tuple[Desk, Any], strength: float) -> None:
    desk, pipeline = stage
    drawn = torch.from_numpy(noise.normal(5, 0, (1, 4, EDGE // SCALE, EDGE // SCALE)))
    expected = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        image=Image.fromarray(IMAGE),
        mask_image=Image.fromarray(MASK),
        height=EDGE,
        width=EDGE,
        strength=strength,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        latents=drawn if strength == 1.0 else _noised(pipeline, drawn, strength),
        output_type="latent",
    ).images
    ours = latents(desk, mode="inpaint", init_image=IMAGE, mask=MASK, strength=strength)
    assert float((ours - expected).abs().max()) <= 1e-3 * float(expected.abs().max())


def _noised(pipeline: Any, drawn: torch.Tensor, strength: float) -> torch.Tensor:
    """The noised picture as the pipeline would make it; given latents it only multiplies by the first sigma."""
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(STEPS)
    pixels = torch.from_numpy(IMAGE).permute(2, 0, 1)[None].float() / 127.5 - 1.0
    encoded = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
    first = scheduler.timesteps[STEPS - int(STEPS * strength)][None]
    noised = scheduler.add_noise(encoded, drawn, first) / scheduler.init_noise_sigma
    assert isinstance(noised, torch.Tensor)
    return noised


def test_without_a_picture_all_is_hidden(stage: tuple[Desk, Any]) -> None:
    desk, _ = stage
    grey, everywhere = np.full((EDGE, EDGE, 3), 9, np.uint8), np.full((EDGE, EDGE), 255, np.uint8)
    ours = latents(desk)
    assert torch.allclose(ours, latents(desk, mode="inpaint", init_image=grey, mask=everywhere), atol=1e-4)


def test_jobs_with_pictures_of_their_own_share_a_run_and_what_is_kept_stays(stage: tuple[Desk, Any]) -> None:
    desk, _ = stage
    desk.said.clear()
    jobs = []
    for image in (IMAGE, IMAGE[::-1].copy()):
        work, blobs = generate(
            [5], edge=EDGE, scale=SCALE, model="inpainting", mode="inpaint", init_image=image, mask=MASK, steps=2
        )
        jobs.append(desk.run(work, *blobs))
    desk.finish()
    assert desk.result(jobs[0])[0].batch_sizes == [4, 4]
    assert (desk.picture(jobs[0])[MASK == 0] == IMAGE[MASK == 0]).all()
    desk.tell(down.Probe(seq=1, op="benchmark"))
    assert desk.all(up.Probed)[-1].figures["step_256_ms.inpainting"] > 0
