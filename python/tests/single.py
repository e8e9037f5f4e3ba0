"""Small models written in the layouts of single files, and the configs that the package would have for them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from calotype_worker import ldm, mmdit
from calotype_worker.pipelines import checkpoint
from calotype_worker.wire import down

from . import tiny
from .desk import TINY, Desk, generate, spans

Tensors = dict[str, torch.Tensor]
DENOISER = "model.diffusion_model."
FAMILY_OF = {"sd15": "sd", "sdxl": "sdxl", "sd3": "sd3", "flux": "flux"}


def parameters(module: Any) -> Tensors:
    """Parameters and tables, each under one name."""
    return dict(module.named_parameters()) | {
        name: tensor for name, tensor in module.named_buffers() if name == "pos_embed.pos_embed"
    }


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def transformer(module: Any, family: str) -> Tensors:
    """A transformer of SD3 or FLUX as its authors store it."""
    whole: Tensors = {}
    pieces: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in parameters(module).items():
        stored = mmdit.sd3(name, module.config.num_layers) if family == "sd3" else mmdit.flux(name)
        if stored.share is not None:
            pieces.setdefault(stored.name, {})[stored.share[0]] = tensor
        else:
            whole[stored.name] = torch.cat(tensor.chunk(2)[::-1]) if stored.swapped else tensor
    return whole | {name: torch.cat([parts[at] for at in sorted(parts)]) for name, parts in pieces.items()}


def vae(module: Any) -> Tensors:
    return {ldm.vae(name, dict(module.config)): tensor for name, tensor in module.named_parameters()}


def clip(module: Any) -> Tensors:
    """A CLIP in transformers' names, as files have them."""
    named = dict(module.named_parameters())
    return {name if "text_" in name else f"text_model.{name}": tensor for name, tensor in named.items()}


def open_clip(module: Any) -> Tensors:
    """A CLIP as OpenCLIP stores it."""
    stored: Tensors = {}
    thirds: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in module.named_parameters():
        key, third = ldm.open_clip(name)
        if third is None:
            stored[key] = tensor.T if key == "text_projection" else tensor
        else:
            thirds.setdefault(key, {})[third] = tensor
    return stored | {key: torch.cat([parts[at] for at in range(3)]) for key, parts in thirds.items()}


def unet(module: Any) -> Tensors:
    return {ldm.unet(name, dict(module.config)): tensor for name, tensor in module.named_parameters()}


def controlnet(module: Any) -> Tensors:
    return {ldm.controlnet(name, dict(module.config)): tensor for name, tensor in module.named_parameters()}


def whole(pipeline: Any, family: str) -> Tensors:
    """A checkpoint of SD3 or FLUX with all that its pipeline has."""
    tensors = prefixed(DENOISER, transformer(pipeline.transformer, family))
    tensors |= prefixed("first_stage_model." if family == "sd3" else "vae.", vae(pipeline.vae))
    tensors |= prefixed("text_encoders.clip_l.transformer.", clip(pipeline.text_encoder))
    t5 = pipeline.text_encoder_3 if family == "sd3" else pipeline.text_encoder_2
    if family == "sd3":
        tensors |= prefixed("text_encoders.clip_g.transformer.", clip(pipeline.text_encoder_2))
    if t5 is not None:
        tensors |= prefixed("text_encoders.t5xxl.transformer.", dict(t5.named_parameters()))
    return tensors


def written(tensors: Tensors, path: Path) -> Path:
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path)
    return path


def rewritten(path: Path, change: Callable[[Tensors], Any]) -> Path:
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path)
    return path


def halved(pipeline: Any) -> Any:
    """In f16, as files mostly are.

    What is converted lies in memory of its own, where products on the CPU have the same last bits; what is used where
    the file is mapped lies at another place in every file.
    """
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.half()
    return pipeline


def know(pipeline: Any, architecture: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the package know a small architecture in the place of a real one."""
    configs: dict[str, Any] = {"family": FAMILY_OF[architecture]}
    for role, part in pipeline.components.items():
        if role in ("unet", "vae"):
            configs[role] = dict(part.config)
        if role.startswith("text_encoder") and part is not None:
            configs[role] = part.config.to_dict() | {"architectures": [type(part).__name__]}
    if architecture == "sd3":
        configs["text_encoder"]["architectures"] = ["CLIPTextModel"]
        wide = tiny.sd3(True).text_encoder_3.config.to_dict()
        configs["text_encoder_3"] = wide | {"architectures": ["T5EncoderModel"]}
    flow = {"sd3": tiny.FLOW, "flux": tiny.DYNAMIC_FLOW}
    configs["scheduler"] = flow.get(architecture, tiny.SCHEDULER)
    configs["scheduler_without_guidance"] = {"shift": 1.0}
    folder.mkdir(exist_ok=True)
    (folder / f"{architecture}.json").write_text(json.dumps(configs, default=list))
    monkeypatch.setattr(checkpoint, "CONFIGS", folder)
    monkeypatch.setattr(checkpoint, "BY_CONTEXT", {tiny.TEXT: "sd15", 2 * tiny.TEXT: "sdxl"})


def spec(path: Path, family: str, **components: Path) -> down.ModelSpec:
    tokenizers = {"tokenizer": TINY / "tokenizer", "tokenizer_2": TINY / "tokenizer"}
    if family == "flux":
        del tokenizers["tokenizer_2"]
    parts = {"checkpoint": path, **tokenizers, **components}
    return down.ModelSpec(
        id="single", family=family, format="checkpoint", components={role: str(place) for role, place in parts.items()}
    )


def picture(desk: Desk, model: str, **changes: Any) -> Any:
    fields = {"sampler": "euler", "guidance": 3.0, **changes}
    work, blobs = generate(
        [5], edge=32, scale=2, model=model, prompt="a red cat", negative_prompt=spans("blurry"), **fields
    )
    job = desk.run(work, *blobs)
    desk.finish()
    return desk.picture(job)
