"""Writes a folder of small models for the whole program: every family, ControlNets, and parts to swap.

    python -m tests.folders DIR

A latent is 8x8 pixels, as the engine takes all models to have it, and SDXL's texts are as wide as real ones, by which
the engine tells families apart. Random weights.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler
from transformers.utils import logging

from . import tiny, tiny_annotators

CLIP_L, CLIP_G = 768, 1280
"""Widths of SDXL's two text encoders."""
PICTURE = (4, 8, 8, 8)
EDGE = 64


def sd() -> Any:
    pipeline = tiny.sd()
    torch.manual_seed(10)
    pipeline.vae, pipeline.unet = tiny.vae(4), tiny.unet(tiny.TEXT, None, sample_size=EDGE // 8)
    return pipeline


def sdxl() -> Any:
    pipeline = tiny.sdxl()
    torch.manual_seed(11)
    pipeline.vae = tiny.vae(4, scaling_factor=0.13025)
    pipeline.text_encoder = tiny.text_encoder(False, width=CLIP_L)
    pipeline.text_encoder_2 = tiny.text_encoder(True, width=CLIP_G)
    pipeline.unet = tiny.unet(CLIP_L + CLIP_G, 6, CLIP_G, sample_size=EDGE // 8)
    return pipeline


def refiner(base: Any) -> Any:
    pipeline = tiny.refiner(base)
    torch.manual_seed(12)
    pipeline.unet = tiny.unet(CLIP_G, 5, CLIP_G, sample_size=EDGE // 8)
    pipeline.scheduler = EulerDiscreteScheduler(**tiny.SCHEDULER)
    return pipeline


def flowing(pipeline: Any) -> Any:
    """SD3 or FLUX with a VAE for latents of 8x8 pixels."""
    torch.manual_seed(13)
    known = dict(pipeline.vae.config)
    kept = ("use_quant_conv", "use_post_quant_conv", "shift_factor", "scaling_factor")
    pipeline.vae = tiny.vae(4, **{name: known[name] for name in kept})
    return pipeline


def write(root: Path) -> None:
    """All of them, in the places where the catalogue looks."""
    large = sdxl()
    pipelines = {
        "sd": sd(),
        "sdxl": large,
        "sdxl-refiner": refiner(large),
        "sd3": flowing(tiny.sd3(with_t5=True)),
        "flux": flowing(tiny.flux(guided=True)),
    }
    for name, pipeline in pipelines.items():
        tiny.saved(pipeline, root / name)
    nets = {
        "sd-lines": tiny.controlnet(tiny.TEXT, None, 5, False, picture=PICTURE),
        "sdxl-lines": tiny.controlnet(CLIP_L + CLIP_G, 6, 6, False, CLIP_G, PICTURE),
    }
    for name, net in nets.items():
        net.save_pretrained(root / "controlnets" / name)
    torch.manual_seed(14)
    tiny.vae(4).save_pretrained(root / "vaes" / "other-vae")
    tiny.text_encoder(False).save_pretrained(root / "text_encoders" / "other-clip")
    tiny_annotators.saved(tiny_annotators.depth_anything, root / "preprocessors" / "depth")
    tiny_annotators.saved(tiny_annotators.vitpose, root / "preprocessors" / "pose")
    soft = root / "preprocessors" / "softedge"
    soft.mkdir()
    tiny_annotators.saved_hed(soft / "hed.safetensors")


if __name__ == "__main__":
    logging.disable_progress_bar()
    write(Path(sys.argv[1]))
