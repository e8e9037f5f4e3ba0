"""Assemble the Stable Diffusion folder from the trained parts: fp16 safetensors, standard key names.

python assemble.py WEIGHTS VAE DATA OUT
WEIGHTS holds unet/ and text/ as train.py leaves them in WORK/out/weights, VAE is the folder train_vae.py made,
DATA holds tokenizer/.
"""

import json
import os
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file

from models import SCHEDULE


def put(src, dst, name, rename=lambda k: k, config=None):
    """Copy one part as float16 and return its number of parameters."""
    os.makedirs(dst, exist_ok=True)
    f = next(x for x in os.listdir(src) if x.endswith(".safetensors"))
    sd = {
        rename(k): (v.half() if v.is_floating_point() else v).contiguous() for k, v in load_file(f"{src}/{f}").items()
    }
    assert all(torch.isfinite(v).all() for v in sd.values())
    save_file(sd, f"{dst}/{name}", metadata={"format": "pt"})
    c = json.load(open(f"{src}/config.json"))
    c.pop("_name_or_path", None)
    c.update(config or {})
    json.dump(c, open(f"{dst}/config.json", "w"), indent=2)
    return sum(v.numel() for v in sd.values())


def main(weights, vae, data, out):
    """Write the folder."""
    n = {}
    n["unet"] = put(f"{weights}/unet", f"{out}/unet", "diffusion_pytorch_model.safetensors")
    n["vae"] = put(vae, f"{out}/vae", "diffusion_pytorch_model.safetensors")

    def pre(k):
        return k if k.startswith("text_model.") else "text_model." + k

    n["text_encoder"] = put(
        f"{weights}/text",
        f"{out}/text_encoder",
        "model.safetensors",
        pre,
        {"architectures": ["CLIPTextModel"], "dtype": "float32"},
    )
    os.makedirs(f"{out}/tokenizer", exist_ok=True)
    for f in os.listdir(f"{data}/tokenizer"):
        shutil.copy(f"{data}/tokenizer/{f}", f"{out}/tokenizer/{f}")
    os.makedirs(f"{out}/scheduler", exist_ok=True)
    json.dump(
        {
            "_class_name": "DPMSolverMultistepScheduler",
            "_diffusers_version": "0.42.1",
            **SCHEDULE,
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
            "solver_type": "midpoint",
            "lower_order_final": True,
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
            "trained_betas": None,
            "thresholding": False,
            "use_karras_sigmas": False,
        },
        open(f"{out}/scheduler/scheduler_config.json", "w"),
        indent=2,
    )
    json.dump(
        {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.42.1",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        open(f"{out}/model_index.json", "w"),
        indent=2,
    )
    print({k: f"{v / 1e6:.2f} M" for k, v in n.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
