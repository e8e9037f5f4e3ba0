"""Models of the real sizes with random weights for the measured server, and requests that draw with them."""

from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from safetensors.torch import save_file

from bench.sizes import DTYPE, plain_pipeline

LORA_RANK = 16
SD = {"model": "sd15", "width": 512, "height": 512, "steps": 30}
XL = {"width": 1024, "height": 1024, "steps": 20}


def write_models(folder: Path) -> None:
    """SD 1.5 with a ControlNet, SDXL twice, as two models that take each other's place, and a LoRA for each."""
    if folder.exists():
        return
    for name, targets in (("sd15", ["sd15"]), ("sdxl", ["sdxl-a", "sdxl-b"])):
        pipeline = plain_pipeline(name)
        for target in targets:
            pipeline.save_pretrained(folder / target)
        _write_lora(pipeline.unet, folder / "loras" / f"{name}-style.safetensors")
        if name == "sd15":
            net = ControlNetModel.from_unet(pipeline.unet).to(DTYPE)
            net.save_pretrained(folder / "controlnets" / "lines")
            del net
        del pipeline
        torch.cuda.empty_cache()


def _write_lora(unet: Any, path: Path) -> None:
    """Of all attention, under PEFT's names; small numbers, as a trained one has."""
    tensors = {}
    for name, module in unet.named_modules():
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            for leaf, shape in (
                ("lora_A", (LORA_RANK, module.in_features)),
                ("lora_B", (module.out_features, LORA_RANK)),
            ):
                tensors[f"unet.{name}.{leaf}.weight"] = (torch.randn(shape) * 0.02).to(DTYPE)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
