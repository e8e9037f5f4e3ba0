"""Whole pictures: the final latents of a few requests, as diffusers' modules make them from our noise."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.numpy import save_file

from fixture_model import load_pipeline, merge_exactly, token_ids
from fixture_samplers import make_scheduler, steps_draw
from noise import gaussian

SHAPE = (1, 4, 32, 32)
LORAS = {"lcm": "calotype-tiny-lcm.safetensors", "pixel": "calotype-tiny-pixel.safetensors"}


@dataclass(frozen=True)
class Request:
    """A picture to make."""

    name: str
    prompt: str
    sampler: str
    steps: int
    guidance: float
    seed: int
    loras: tuple[tuple[str, float], ...] = ()
    negative_prompt: str = ""
    schedule: str = "default"
    strength: float | None = None
    init: str | None = None
    mask: str | None = None


REQUESTS = [
    Request("fast", "a red apple on the beach, 3d", "lcm", 4, 1.0, 1, (("lcm", 1.0),)),
    Request("quality", "a red apple on the beach, 3d", "dpmpp_2m", 20, 3.0, 1),
    Request("ancestral", "a lemon on the table", "euler_ancestral", 10, 3.0, 7),
    Request("pixel_fast", "a cat on grass, pixel art", "lcm", 4, 1.0, 2**32 + 5, (("lcm", 1.0), ("pixel", 1.0))),
    Request("negative", "a flower", "dpmpp_2m", 10, 3.0, 3, negative_prompt="flat", schedule="karras"),
    Request("image", "a lemon on the beach, 3d", "dpmpp_2m", 10, 3.0, 11, strength=0.6, init="quality"),
    Request(
        "inpaint", "a lemon on the beach, 3d", "dpmpp_2m", 10, 3.0, 12, strength=0.6, init="quality", mask="middle"
    ),
    Request(
        "inpaint_all", "a lemon on the beach, 3d", "euler", 10, 3.0, 13, strength=1.0, init="quality", mask="middle"
    ),
]
PNG_REQUESTS = ("fast", "quality")


def middle_mask() -> torch.Tensor:
    """One where a new picture is wanted: rows 8..24 and columns 6..26 of the latent."""
    mask = torch.zeros(1, 1, *SHAPE[2:])
    mask[:, :, 8:24, 6:26] = 1
    return mask


def text_states(pipeline: StableDiffusionPipeline, request: Request) -> torch.Tensor:
    """The states of the negative prompt and the prompt, or of the prompt alone when there is no guidance."""
    prompts = [request.prompt] if request.guidance <= 1 else [request.negative_prompt, request.prompt]
    return torch.cat([pipeline.text_encoder(input_ids=token_ids(pipeline, p)).last_hidden_state for p in prompts])


def predict(pipeline, request: Request, model_input: torch.Tensor, timestep, states: torch.Tensor) -> torch.Tensor:
    """The model's answer, guided when asked for."""
    output = pipeline.unet(model_input.repeat(len(states), 1, 1, 1), timestep, states, return_dict=False)[0]
    if request.guidance <= 1:
        return output
    without, with_prompt = output.chunk(2)
    return without + request.guidance * (with_prompt - without)


def start_latents(scheduler, request: Request, init: torch.Tensor | None, noise: torch.Tensor):
    """The latents before the first step, and the timesteps that follow."""
    scheduler.set_timesteps(request.steps)
    if init is None:
        return noise * scheduler.init_noise_sigma, scheduler.timesteps
    kept = min(int(request.steps * request.strength), request.steps)
    first = (request.steps - kept) * scheduler.order
    timesteps = scheduler.timesteps[first:]
    scheduler.set_begin_index(first)
    if request.mask and request.strength == 1.0:
        return noise * scheduler.init_noise_sigma, timesteps
    return scheduler.add_noise(init, noise, timesteps[:1]), timesteps


def keep_outside(scheduler, mask, latents, init, noise, following) -> torch.Tensor:
    """Put the original back outside the mask, noised for the following timestep."""
    original = init if following is None else scheduler.add_noise(init, noise, following[None])
    return mask * latents + (1 - mask) * original


def denoise(pipeline: StableDiffusionPipeline, config: dict, request: Request, init: torch.Tensor | None):
    """Run the request and return the final latents."""
    scheduler = make_scheduler(config, request.sampler, request.schedule, config["prediction_type"])
    noise = torch.from_numpy(gaussian(request.seed, 0, SHAPE))
    latents, timesteps = start_latents(scheduler, request, init, noise)
    states = text_states(pipeline, request)
    mask = middle_mask() if request.mask else None
    with steps_draw(scheduler, request.seed) as set_step:
        for index, timestep in enumerate(timesteps):
            set_step(index)
            model_input = scheduler.scale_model_input(latents, timestep)
            output = predict(pipeline, request, model_input, timestep, states)
            latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
            if mask is not None:
                following = timesteps[index + 1] if index + 1 < len(timesteps) else None
                latents = keep_outside(scheduler, mask, latents, init, noise, following)
    return latents


def decode(pipeline: StableDiffusionPipeline, latents: torch.Tensor) -> np.ndarray:
    """The picture as 8-bit RGB."""
    picture = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0][0]
    return ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def encode(pipeline: StableDiffusionPipeline, picture: np.ndarray) -> torch.Tensor:
    """The scaled mean of a picture's latents."""
    pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    return pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor


def make_picture_fixtures(models: Path, out: Path) -> None:
    """Write pictures.json, pictures.safetensors and two pictures."""
    config = json.loads((models / "calotype-tiny" / "scheduler" / "scheduler_config.json").read_text())
    arrays, index, pictures = {}, [], {}
    for request in REQUESTS:
        pipeline = load_pipeline(models)
        init = encode(pipeline, pictures[request.init]) if request.init else None
        for name, weight in request.loras:
            merge_exactly(pipeline, models / "loras" / LORAS[name], weight)
        latents = denoise(pipeline, config, request, init)
        arrays[f"{request.name}/latents"] = latents.numpy()
        if init is not None:
            arrays[f"{request.init}/encoded"] = init.numpy()
        pictures[request.name] = decode(pipeline, latents)
        index.append(asdict(request))
        if request.name in PNG_REQUESTS:
            Image.fromarray(pictures[request.name]).save(out / f"{request.name}.png", optimize=True)
        print(f"picture {request.name}: latents {float(latents.mean()):.4f} +- {float(latents.std()):.4f}", flush=True)
    arrays["mask/middle"] = middle_mask().numpy()
    lines = ",\n".join(json.dumps(request) for request in index)
    (out / "pictures.json").write_text(f'{{"format": 1,\n"requests": [\n{lines}\n]}}\n')
    save_file({k: np.ascontiguousarray(v, dtype=np.float32) for k, v in arrays.items()}, out / "pictures.safetensors")
