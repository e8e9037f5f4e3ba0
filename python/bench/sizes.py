"""Models of the real sizes with random weights: what is measured needs no download."""

import json
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from calotype_worker.pipelines.checkpoint import CONFIGS
from calotype_worker.pipelines.family import Family
from calotype_worker.pipelines.quick import quicken
from calotype_worker.pipelines.sd import StableDiffusion, spellings_of
from calotype_worker.pipelines.sdxl import StableDiffusionXL
from calotype_worker.prompt import TextEncoder, Tokenizer
from calotype_worker.samplers.schedule import NoiseSchedule

DEVICE = "cuda"
DTYPE = torch.float16


def configs(name: str) -> dict[str, Any]:
    """The configs of an architecture, `sd15` or `sdxl`."""
    found: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return found


def plain_pipeline(name: str) -> Any:
    """Diffusers' own pipeline, as `from_pretrained` would give it."""
    torch.manual_seed(0)
    config = configs(name)
    with torch.device(DEVICE):
        unet = UNet2DConditionModel.from_config(config["unet"]).to(DTYPE).eval()
        # In f16 for both sides, whatever the architecture says: random weights do not overflow.
        vae = AutoencoderKL.from_config(config["vae"] | {"force_upcast": False}).to(DTYPE).eval()
        encoders = {role: _encoder(config[role]) for role in ("text_encoder", "text_encoder_2") if role in config}
    tokenizer = CLIPTokenizer.from_pretrained(CONFIGS / "clip_tokenizer", local_files_only=True, model_max_length=77)
    parts: dict[str, Any] = {
        "unet": unet,
        "vae": vae,
        "scheduler": EulerDiscreteScheduler.from_config(config["scheduler"]),
    }
    if name == "sdxl":
        pipeline = StableDiffusionXLPipeline(
            **parts, **encoders, tokenizer=tokenizer, tokenizer_2=tokenizer, add_watermarker=False
        )
    else:
        pipeline = StableDiffusionPipeline(
            **parts,
            **encoders,
            tokenizer=tokenizer,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _encoder(config: dict[str, Any]) -> Any:
    kind = CLIPTextModelWithProjection if config["architectures"] == ["CLIPTextModelWithProjection"] else CLIPTextModel
    fields = {key: value for key, value in config.items() if key != "architectures"}
    return kind(CLIPTextConfig(**fields)).to(DTYPE).eval()


def family(name: str) -> Family:
    """The same model, with weights of its own, as the worker holds it."""
    pipeline = plain_pipeline(name)
    for module in (pipeline.unet, pipeline.vae):
        quicken(module)
        module.to(memory_format=torch.channels_last)
    config = configs(name)
    schedule, spellings = NoiseSchedule.of_config(config["scheduler"]), spellings_of(config["unet"])
    tokenizer = Tokenizer(CONFIGS / "clip_tokenizer")
    encoder = TextEncoder(pipeline.text_encoder, tokenizer, 77, normalises_skipped=name != "sdxl")
    if name != "sdxl":
        return StableDiffusion(name, pipeline.unet, pipeline.vae, encoder, schedule, DTYPE, spellings)
    second = TextEncoder(pipeline.text_encoder_2, tokenizer, 77, normalises_skipped=False)
    encoders = {"text_encoder": encoder, "text_encoder_2": second}
    return StableDiffusionXL(name, pipeline.unet, pipeline.vae, encoders, schedule, DTYPE, spellings)
