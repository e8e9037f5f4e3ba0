"""VAEs, text encoders and ControlNets in files of their own give what their folders give, bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from diffusers.loaders import single_file_utils

from calotype_worker import ldm
from calotype_worker.pipelines import control_file
from calotype_worker.pipelines.checkpoint import configs_of
from calotype_worker.weights import WeightFile, without_weights
from calotype_worker.wire import down, up
from calotype_worker.wire.words import BlobRef
from calotype_worker.wire.work import ControlUnit

from . import single, tiny
from .desk import TINY, Desk, folder_spec, generate

MAKERS: dict[str, Callable[[], Any]] = {"sd": tiny.sd, "sdxl": tiny.sdxl}


def other(role: str) -> Any:
    """A part that differs from the one that a small model has."""
    torch.manual_seed(11)
    if role == "vae":
        return tiny.vae().half()
    return tiny.text_encoder(role == "text_encoder_2").half()


def same(desk: Desk, *specs: down.ModelSpec) -> None:
    """Both load and give the same picture, which the model's own part does not give."""
    pictures = []
    for spec in specs:
        loaded = desk.load(spec)
        assert isinstance(loaded, up.Loaded), loaded
        pictures.append(single.picture(desk, spec.id))
    assert (pictures[0] != pictures[1]).any()
    for picture in pictures[2:]:
        assert (picture == pictures[1]).all()


@pytest.mark.parametrize("family", MAKERS)
def test_a_vae_file_gives_the_picture_of_its_folder(family: str, tmp_path: Path) -> None:
    root = tiny.saved(single.halved(MAKERS[family]()), tmp_path / "model")
    vae = other("vae")
    vae.save_pretrained(tmp_path / "vae")
    names = single.vae(vae)
    files = [
        single.written(names, tmp_path / "bare.safetensors"),
        single.written(single.prefixed("first_stage_model.", names), tmp_path / "prefixed.safetensors"),
        single.written(dict(vae.named_parameters()), tmp_path / "ours.safetensors"),
        # A file in a folder of diffusers is taken with the config beside it.
        tmp_path / "vae" / "diffusion_pytorch_model.safetensors",
    ]
    specs = [folder_spec(f"from_{at}", root, family=family, vae=file) for at, file in enumerate(files)]
    given = folder_spec("given", root, family=family, vae=tmp_path / "vae")
    same(Desk(), folder_spec("plain", root, family=family), given, *specs)


def test_a_vae_file_serves_a_model_without_a_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = single.halved(tiny.sd())
    single.know(pipeline, "sd15", tmp_path / "configs", monkeypatch)
    root = tiny.saved(pipeline, tmp_path / "model")
    loose = {
        "vae": single.written(single.vae(pipeline.vae), tmp_path / "vae.safetensors"),
        "text_encoder": single.written(single.clip(pipeline.text_encoder), tmp_path / "clip.safetensors"),
    }
    parts = {role: root / role for role in ("unet", "scheduler", "tokenizer")} | loose
    spec = down.ModelSpec(
        id="parts", family="sd", format="diffusers", components={role: str(place) for role, place in parts.items()}
    )
    desk = Desk()
    assert isinstance(desk.load(folder_spec("folder", root)), up.Loaded)
    assert isinstance(desk.load(spec), up.Loaded), desk.said[-1]
    assert (single.picture(desk, "folder") == single.picture(desk, "parts")).all()


def checkpoint_of(pipeline: Any, path: Path) -> Path:
    tensors = single.prefixed(single.DENOISER, single.unet(pipeline.unet))
    tensors |= single.prefixed("conditioner.embedders.0.transformer.", single.clip(pipeline.text_encoder))
    tensors |= single.prefixed("conditioner.embedders.1.model.", single.open_clip(pipeline.text_encoder_2))
    return single.written(tensors, path)


def test_a_checkpoint_takes_the_parts_that_it_lacks_as_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = single.halved(tiny.sdxl())
    single.know(pipeline, "sdxl", tmp_path / "configs", monkeypatch)
    root = tiny.saved(pipeline, tmp_path / "model")
    desk = Desk()
    assert isinstance(desk.load(folder_spec("folder", root, family="sdxl")), up.Loaded)
    path = checkpoint_of(pipeline, tmp_path / "without_vae.safetensors")
    answer = desk.load(single.spec(path, "sdxl"))
    assert isinstance(answer, up.LoadFailed)
    assert answer.failure.outcome == "model_load"
    assert "component `vae`" in (answer.failure.detail or "")
    vae = single.written(single.vae(pipeline.vae), tmp_path / "vae.safetensors")
    assert isinstance(desk.load(single.spec(path, "sdxl", vae=vae)), up.Loaded), desk.said[-1]
    assert (single.picture(desk, "folder") == single.picture(desk, "single")).all()


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize("role", ["text_encoder", "text_encoder_2"])
def test_a_text_encoder_file_gives_the_picture_of_its_folder(family: str, role: str, tmp_path: Path) -> None:
    if family == "sd" and role == "text_encoder_2":
        pytest.skip("SD has one text encoder")
    root = tiny.saved(single.halved(MAKERS[family]()), tmp_path / "model")
    encoder = other(role)
    encoder.save_pretrained(tmp_path / "encoder")
    names = single.clip(encoder)
    files = [
        single.written(names, tmp_path / "clip.safetensors"),
        single.written(single.open_clip(encoder), tmp_path / "open_clip.safetensors"),
        single.written(
            {name.removeprefix("text_model."): tensor for name, tensor in names.items()}, tmp_path / "bare.safetensors"
        ),
    ]
    specs = [folder_spec(f"from_{at}", root, family=family, **{role: file}) for at, file in enumerate(files)]
    given = folder_spec("given", root, family=family, **{role: tmp_path / "encoder"})
    same(Desk(), folder_spec("plain", root, family=family), given, *specs)


def test_a_t5_file_takes_the_tokenizer_that_the_model_has(tmp_path: Path) -> None:
    pipeline = single.halved(tiny.flux(True))
    root = tiny.saved(pipeline, tmp_path / "model")
    torch.manual_seed(12)
    t5 = tiny.t5().half()
    t5.save_pretrained(tmp_path / "t5")
    file = single.written(dict(t5.named_parameters()), tmp_path / "t5xxl.safetensors")
    same(
        Desk(),
        folder_spec("plain", root, family="flux"),
        folder_spec("given", root, family="flux", text_encoder_2=tmp_path / "t5"),
        folder_spec("file", root, family="flux", text_encoder_2=file),
    )


@pytest.mark.parametrize("beside", ["another part's", "its own"])
def test_a_config_beside_a_unet_file_is_believed_where_it_is_a_denoisers(beside: str, tmp_path: Path) -> None:
    pipeline = single.halved(tiny.sd())
    root = tiny.saved(pipeline, tmp_path / "model")
    torch.manual_seed(13)
    pipeline.unet = tiny.unet(tiny.TEXT, None).half()
    pipeline.unet.save_pretrained(tmp_path / "unet")
    alone = tmp_path / "alone"
    alone.mkdir()
    file = single.written(dict(pipeline.unet.named_parameters()), alone / "unet.safetensors")
    source = root / "vae" if beside == "another part's" else tmp_path / "unet"
    (alone / "config.json").write_text((source / "config.json").read_text())
    same(
        Desk(),
        folder_spec("plain", root),
        folder_spec("given", root, unet=tmp_path / "unet"),
        folder_spec("file", root, unet=file),
    )


def wide_encoder(folder: Path) -> Path:
    """A text encoder that is whole, and too wide."""
    encoder = tiny.text_encoder(True)
    config = type(encoder.config)(**encoder.config.to_dict() | {"hidden_size": 48, "projection_dim": 48})
    type(encoder)(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("as_file", [False, True])
def test_an_encoder_that_does_not_fit_is_named(family: str, as_file: bool, tmp_path: Path) -> None:
    make: dict[str, Callable[[], Any]] = {"sd3": lambda: tiny.sd3(False), "flux": lambda: tiny.flux(True), **MAKERS}
    root = tiny.saved(make[family](), tmp_path / "model")
    place = wide_encoder(tmp_path / "wide")
    if as_file:
        # Out of its folder: there is no config beside it.
        place = (place / "model.safetensors").rename(tmp_path / "wide.safetensors")
    desk = Desk()
    role = "text_encoder_2" if family == "sdxl" else "text_encoder"
    answer = desk.load(folder_spec("wide", root, family=family, **{role: place}))
    assert isinstance(answer, up.LoadFailed)
    assert answer.failure.outcome == "model_load", answer.failure
    assert str(place) in (answer.failure.detail or "")
    assert isinstance(desk.load(folder_spec("plain", root, family=family)), up.Loaded), desk.said[-1]


def missing(path: Path) -> None:
    single.rewritten(path, lambda tensors: tensors.pop("decoder.mid.attn_1.q.weight"))


def misshapen(path: Path) -> None:
    single.rewritten(path, lambda tensors: tensors.update({"decoder.mid.attn_1.q.weight": torch.zeros(3, 3)}))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def absent(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("fault", [missing, misshapen, truncated, absent])
def test_what_is_wrong_with_a_vae_file_is_said(fault: Callable[[Path], None], tmp_path: Path) -> None:
    vae = tiny.vae()
    root = tiny.saved(tiny.sd(), tmp_path / "model")
    path = single.written(single.vae(vae), tmp_path / "vae.safetensors")
    fault(path)
    desk = Desk()
    answer = desk.load(folder_spec("wrong", root, vae=path))
    assert isinstance(answer, up.LoadFailed)
    assert answer.failure.outcome == "model_load"
    assert str(path) in (answer.failure.detail or "")
    if fault in (missing, misshapen):
        assert "`decoder.mid.attn_1.q.weight`" in (answer.failure.detail or "")
    assert isinstance(desk.load(folder_spec("plain", root)), up.Loaded), desk.said[-1]


def test_a_vae_of_another_width_does_not_fit_a_transformer(tmp_path: Path) -> None:
    root = tiny.saved(tiny.flux(True), tmp_path / "model")
    vae = tiny.flow_vae()
    wide = type(vae).from_config(dict(vae.config) | {"latent_channels": 8})
    wide.save_pretrained(tmp_path / "vae")
    answer = Desk().load(folder_spec("wrong", root, family="flux", vae=tmp_path / "vae"))
    assert isinstance(answer, up.LoadFailed)
    assert answer.failure.outcome == "model_load"
    assert "8 latent channels, not 4" in (answer.failure.detail or "")


def control_spec(id: str, path: Path) -> down.ModelSpec:
    return down.ModelSpec(id=id, family="controlnet", format="checkpoint", components={"controlnet": str(path)})


NETS = {"sd": ("sd15", tiny.TEXT, None), "sdxl": ("sdxl", 2 * tiny.TEXT, 6)}


@pytest.mark.parametrize("family", NETS)
def test_a_controlnet_file_gives_the_picture_of_its_folder(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture, cross, times = NETS[family]
    pipeline = MAKERS[family]()
    single.know(pipeline, architecture, tmp_path / "configs", monkeypatch)
    net = tiny.controlnet(cross, times, 5, zero=False).half()
    net.save_pretrained(tmp_path / "net")
    names = single.controlnet(net)
    files = {
        "bare": single.written(names, tmp_path / "bare.safetensors"),
        "prefixed": single.written(single.prefixed("control_model.", names), tmp_path / "prefixed.safetensors"),
        "ours": single.written(dict(net.named_parameters()), tmp_path / "ours.safetensors"),
    }
    desk = Desk()
    root = tiny.saved(pipeline, tmp_path / "model")
    assert isinstance(desk.load(folder_spec("model", root, family=family)), up.Loaded)
    assert isinstance(desk.load(folder_spec("net", tmp_path / "net", family="controlnet")), up.Loaded)
    for id, path in files.items():
        assert isinstance(desk.load(control_spec(id, path)), up.Loaded), desk.said[-1]

    def controlled(*nets: str) -> Any:
        seen = torch.arange(32 * 32 * 3, dtype=torch.int64).remainder(251).to(torch.uint8).numpy().tobytes()
        ref = BlobRef(blob=1, dtype="u8", shape=[32, 32, 3])
        units = [ControlUnit(model=net, image=ref, weight=1.0, start=0.0, end=1.0) for net in nets]
        work, blobs = generate([5], edge=32, scale=2, model="model", prompt="a cat", sampler="euler", control=units)
        job = desk.run(work, *blobs, seen)
        desk.finish()
        return desk.picture(job)

    expected = controlled("net")
    assert (expected != controlled()).any()
    for id in files:
        assert (controlled(id) == expected).all()


@pytest.mark.parametrize("architecture", ["sd15", "sd21", "sdxl"])
def test_the_names_of_a_controlnet_are_those_that_diffusers_reads(architecture: str) -> None:
    config = {field: value for field, value in configs_of(architecture)["unet"].items() if field in control_file.SHARED}
    with without_weights():
        net = ControlNetModel.from_config(config)
    stored = {f"control_model.{ldm.controlnet(n, dict(net.config))}": p for n, p in net.named_parameters()}
    assert len(stored) == len(dict(net.named_parameters()))
    read = single_file_utils.convert_controlnet_checkpoint(dict(stored), dict(net.config))
    for name, parameter in net.named_parameters():
        # diffusers does not read what SDXL knows of sizes.
        assert read.get(name) is parameter or name.startswith("add_embedding."), name


def header_only(path: Path, shapes: dict[str, list[int]]) -> Path:
    """A safetensors file of f8 with nothing in it: the disk keeps no room for what was never written."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = torch.Size(shape).numel()
        header[name] = {"dtype": "F8_E4M3", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    words = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(words).to_bytes(8, "little") + words)
        file.truncate(8 + len(words) + at)
    return path


@pytest.mark.parametrize("architecture", ["sd15", "sd21", "sdxl"])
def test_the_config_of_a_controlnet_comes_from_its_header(architecture: str, tmp_path: Path) -> None:
    shared = {field: value for field, value in configs_of(architecture)["unet"].items() if field in control_file.SHARED}
    with without_weights():
        net = ControlNetModel.from_config(shared)
    original = {ldm.controlnet(n, dict(net.config)): list(p.shape) for n, p in net.named_parameters()}
    for name, shapes in (("original", original), ("ours", {n: list(p.shape) for n, p in net.named_parameters()})):
        found = control_file.config_of(WeightFile(header_only(tmp_path / f"{name}.safetensors", shapes)))
        assert found == shared | {
            "conditioning_embedding_out_channels": [16, 32, 96, 256],
            "conditioning_channels": 3,
            "in_channels": 4,
        }


def test_a_file_that_is_no_controlnet_or_lacks_a_tensor_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single.know(tiny.sd(), "sd15", tmp_path / "configs", monkeypatch)
    tensors = single.controlnet(tiny.controlnet(tiny.TEXT, None, 5, zero=False))
    desk = Desk()
    lacking = [name for name in tensors if name.startswith("input_blocks.3.1.proj_in") or "zero_convs.2." in name]
    hint = [name for name in tensors if "input_hint_block" in name]
    cases: list[tuple[str, single.Tensors, str, str]] = [
        ("other", {"x": torch.zeros(1)}, "not_supported", "other.safetensors"),
        ("union", tensors | {"task_embedding": torch.zeros(1)}, "not_supported", "union.safetensors"),
        ("hint", {k: v for k, v in tensors.items() if k not in hint}, "model_load", "input_hint_block"),
        ("shape", tensors | {"input_blocks.0.0.weight": torch.zeros(3)}, "model_load", "input_blocks.0.0.weight"),
        *((f"lacks_{at}", {k: v for k, v in tensors.items() if k != name}, "model_load", f"`{name}`")
          for at, name in enumerate(lacking)),
    ]  # fmt: skip
    assert len(cases) > 6
    for id, content, outcome, words in cases:
        answer = desk.load(control_spec(id, single.written(content, tmp_path / f"{id}.safetensors")))
        assert isinstance(answer, up.LoadFailed), id
        assert answer.failure.outcome == outcome, answer.failure
        assert words in (answer.failure.detail or ""), answer.failure
    assert isinstance(desk.load(folder_spec("model", TINY)), up.Loaded)
