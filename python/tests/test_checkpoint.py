"""Single-file checkpoints: the names against diffusers' own conversion, and a load from end to end."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from calotype_worker import ldm
from calotype_worker.pipelines import checkpoint
from calotype_worker.pipelines.checkpoint import CONFIGS
from calotype_worker.prompt import Tokenizer
from calotype_worker.weights import without_weights
from calotype_worker.wire import down, up
from calotype_worker.wire.work import Adapter

from . import tiny
from .desk import TINY, Desk, folder_spec, generate, psnr, spans

ARCHITECTURES = ("sd15", "sd21", "sdxl", "sdxl_refiner")


def configs(architecture: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CONFIGS / f"{architecture}.json").read_text())
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_names_of_the_unet_are_those_that_diffusers_reads(architecture: str) -> None:
    config = configs(architecture)["unet"]
    with without_weights():
        unet = UNet2DConditionModel.from_config(config)
    stored = {f"model.diffusion_model.{ldm.unet(n, config)}": p for n, p in unet.named_parameters()}
    read = single_file_utils.convert_ldm_unet_checkpoint(dict(stored), dict(unet.config))
    assert len(stored) == len(dict(unet.named_parameters()))
    for name, parameter in unet.named_parameters():
        assert read[name] is parameter, name


def test_the_names_of_the_vae_are_those_that_diffusers_reads() -> None:
    config = configs("sd15")["vae"]
    with without_weights():
        vae = AutoencoderKL.from_config(config)
    stored = {f"first_stage_model.{ldm.vae(n, config)}": p for n, p in vae.named_parameters()}
    read = single_file_utils.convert_ldm_vae_checkpoint(dict(stored), config)
    for name, parameter in vae.named_parameters():
        assert read[name].shape == parameter.shape, name
        assert read[name].data_ptr() == parameter.data_ptr()


def open_clip_checkpoint(module: Any, prefix: str) -> dict[str, torch.Tensor]:
    """The parameters of a text encoder as OpenCLIP stores them."""
    stored: dict[str, Any] = {}
    thirds: dict[str, dict[int, torch.Tensor]] = {}
    for name, parameter in module.named_parameters():
        key, third = ldm.open_clip(name)
        if third is None:
            stored[prefix + key] = parameter.T.contiguous() if key == "text_projection" else parameter
        else:
            thirds.setdefault(key, {})[third] = parameter
    return stored | {prefix + key: torch.cat([parts[i] for i in range(3)]) for key, parts in thirds.items()}


def test_the_names_of_openclip_are_those_that_diffusers_reads() -> None:
    encoder = tiny.text_encoder(True)
    stored = open_clip_checkpoint(encoder, "conditioner.embedders.1.model.")
    read = single_file_utils.convert_open_clip_checkpoint(encoder, dict(stored), "conditioner.embedders.1.model.")
    for name, parameter in encoder.named_parameters():
        assert torch.equal(read[name], parameter), name


def test_clips_own_tokenizer_is_in_the_package() -> None:
    tokenizer = Tokenizer(CONFIGS / "clip_tokenizer")
    assert (tokenizer.begin, tokenizer.end, tokenizer.pad) == (49406, 49407, 49407)
    assert tokenizer.ids("a photo of a cat") == [320, 1125, 539, 320, 2368]
    assert Tokenizer(CONFIGS / "clip_tokenizer", pad=0).pad == 0


def single_file(pipeline: Any, path: Path) -> Path:
    """A checkpoint of a small SDXL in the original layout."""
    tensors = {
        **{
            f"model.diffusion_model.{ldm.unet(n, dict(pipeline.unet.config))}": p
            for n, p in pipeline.unet.named_parameters()
        },
        **{f"first_stage_model.{ldm.vae(n, dict(pipeline.vae.config))}": p for n, p in pipeline.vae.named_parameters()},
        **{
            f"conditioner.embedders.0.transformer.text_model.{n.removeprefix('text_model.')}": p
            for n, p in pipeline.text_encoder.named_parameters()
        },
        **open_clip_checkpoint(pipeline.text_encoder_2, "conditioner.embedders.1.model."),
    }
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path)
    return path


def known_xl(place: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A small SDXL; the package knows its architecture."""
    pipeline = tiny.sdxl()
    small = {role: dict(getattr(pipeline, role).config) for role in ("unet", "vae")}
    for role in ("text_encoder", "text_encoder_2"):
        encoder = getattr(pipeline, role)
        small[role] = encoder.config.to_dict() | {"architectures": [type(encoder).__name__]}
    config = {"family": "sdxl", **small, "scheduler": tiny.SCHEDULER}
    (place / "sdxl.json").write_text(json.dumps(config, default=list))
    monkeypatch.setattr(checkpoint, "CONFIGS", place)
    monkeypatch.setattr(checkpoint, "BY_CONTEXT", {2 * tiny.TEXT: "sdxl"})
    return pipeline


@pytest.fixture
def xl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Path]:
    """A small SDXL as a pipeline and as a file."""
    pipeline = known_xl(tmp_path, monkeypatch)
    return pipeline, single_file(pipeline, tmp_path / "model.safetensors")


def spec(path: Path, family: str = "sdxl", **components: Path) -> down.ModelSpec:
    own = {"tokenizer": TINY / "tokenizer", "tokenizer_2": TINY / "tokenizer", **components}
    parts = {"root": str(path)} | {role: str(place) for role, place in own.items()}
    return down.ModelSpec(id="single", family=family, format="checkpoint", components=parts)


def picture(desk: Desk, model: str, **changes: Any) -> Any:
    work, blobs = generate([5], edge=32, scale=2, model=model, prompt="a cat", negative_prompt=spans("bad"), **changes)
    job = desk.run(work, *blobs)
    desk.finish()
    return desk.picture(job)


def test_a_single_file_gives_the_picture_of_its_folder(xl: tuple[Any, Path], tmp_path: Path) -> None:
    pipeline, path = xl
    desk = Desk()
    folder = tiny.saved(pipeline, tmp_path / "folder")
    assert isinstance(desk.load(folder_spec("folder", folder, family="sdxl")), up.Loaded)
    assert isinstance(desk.load(spec(path)), up.Loaded), desk.said[-1]
    assert psnr(picture(desk, "folder"), picture(desk, "single")) >= 60
    # A component in its place, and the rest from the file.
    assert isinstance(desk.load(spec(path, vae=folder / "vae")), up.Loaded), desk.said[-1]
    assert psnr(picture(desk, "folder"), picture(desk, "single")) >= 60


def test_a_lora_in_the_checkpoints_names_changes_the_same_layers(xl: tuple[Any, Path], tmp_path: Path) -> None:
    _, path = xl
    desk = Desk()
    assert isinstance(desk.load(spec(path)), up.Loaded)
    model = desk.loop.family("single")
    torch.manual_seed(3)
    config = dict(model.denoiser.config)
    tensors: dict[str, dict[str, torch.Tensor]] = {"diffusers": {}, "original": {}}
    for layer in (
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "up_blocks.0.resnets.1.conv1",
        "mid_block.attentions.0.proj_in",
    ):
        shape = model.denoiser.get_parameter(f"{layer}.weight").shape
        pair = {"lora_down": torch.randn(2, *shape[1:]), "lora_up": torch.randn(shape[0], 2, *[1] * (len(shape) - 2))}
        for naming, name in (("diffusers", layer), ("original", ldm.unet(layer, config))):
            for piece, tensor in pair.items():
                tensors[naming][f"lora_unet_{name.replace('.', '_')}.{piece}.weight"] = tensor
    sets = []
    for naming, content in tensors.items():
        save_file(content, tmp_path / f"{naming}.safetensors")
        lora = Adapter(id=naming, path=str(tmp_path / f"{naming}.safetensors"), weight=0.5)
        sets.append(model.bind([lora]).merged)
    assert tensors["diffusers"].keys() != tensors["original"].keys()
    assert len(sets[0]) == 3
    assert sets[0].keys() == sets[1].keys()
    assert all(torch.equal(tensor, sets[1][key]) for key, tensor in sets[0].items())


def test_a_file_that_is_no_known_checkpoint_says_so(xl: tuple[Any, Path], tmp_path: Path) -> None:
    _, path = xl
    desk = Desk()
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, other)
    flat = tmp_path / "flat.safetensors"
    save_file({"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(9)}, flat)
    pickle = tmp_path / "model.ckpt"
    pickle.write_bytes(b"\x80\x04.")
    for wrong, family, outcome in (
        (other, "sdxl", "not_supported"),
        (flat, "sdxl", "not_supported"),
        (path, "sd", "not_supported"),
        (pickle, "sdxl", "model_load"),
        (tmp_path / "absent.safetensors", "sdxl", "model_load"),
    ):
        answer = desk.load(spec(wrong, family=family))
        assert isinstance(answer, up.LoadFailed)
        assert answer.failure.outcome == outcome, answer


def test_v_prediction_is_read_from_the_metadata(xl: tuple[Any, Path], tmp_path: Path) -> None:
    _, path = xl
    assert "prediction_type" not in checkpoint.Checkpoint(spec(path)).scheduler()
    from safetensors.torch import load_file

    said = tmp_path / "v.safetensors"
    save_file(load_file(path), said, metadata={"modelspec.prediction_key": "v"})
    assert checkpoint.Checkpoint(spec(said)).scheduler()["prediction_type"] == "v_prediction"


def test_every_architecture_builds_from_its_config() -> None:
    for architecture in ARCHITECTURES:
        config = configs(architecture)
        with without_weights():
            AutoencoderKL.from_config(config["vae"])
            encoder = config.get("text_encoder_2")
            if encoder is not None:
                CLIPTextModelWithProjection(
                    CLIPTextConfig(**{k: v for k, v in encoder.items() if k != "architectures"})
                )


def test_an_inpainting_variant_is_told_by_its_first_layer(xl: tuple[Any, Path], tmp_path: Path) -> None:
    _, plain = xl
    tensors = load_file(plain)
    name = "model.diffusion_model.input_blocks.0.0.weight"
    first = tensors[name]
    # A layer that makes nothing of what it sees beside the latents.
    tensors[name] = torch.cat([first, torch.zeros(first.shape[0], 5, *first.shape[2:])], dim=1)
    save_file(tensors, tmp_path / "inpainting.safetensors")
    desk = Desk()
    pictures = []
    for path in (plain, tmp_path / "inpainting.safetensors"):
        assert isinstance(desk.load(spec(path)), up.Loaded), desk.said[-1]
        pictures.append(picture(desk, "single"))
    assert desk.loop.family("single").extra_channels == 5
    assert psnr(*pictures) >= 60
