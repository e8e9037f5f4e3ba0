"""Single files of SD3 and FLUX: the names against diffusers' own conversion, and whole loads against their folders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from diffusers.loaders import single_file_utils

from calotype_worker import mmdit
from calotype_worker.pipelines import checkpoint, layouts
from calotype_worker.pipelines.checkpoint import TRANSFORMERS, configs_of
from calotype_worker.pipelines.parts import transformers_module
from calotype_worker.pipelines.sd import CLIPS
from calotype_worker.pipelines.transformer import T5S
from calotype_worker.weights import WeightFile, without_weights
from calotype_worker.wire import up

from . import single, tiny
from .desk import Desk, folder_spec

# SD3 has no norms of queries and keys, whose heads are 64 wide; 3.5 has norms, and in its medium size dual attention.
SD3: dict[str, dict[str, Any]] = {
    "sd3": {"heads": 1, "head": 64},
    "sd3.5": {"qk_norm": "rms_norm", "dual_attention_layers": (0,)},
}
AXES = (16, 56, 56)


def sd3(variant: str, with_t5: bool = True) -> Any:
    pipeline = tiny.sd3(with_t5, **SD3[variant])
    with torch.no_grad():
        # The reference does not project what comes from the first encoder: its folder has the identity.
        pipeline.text_encoder.text_projection.weight.copy_(torch.eye(tiny.TEXT))
        # Not what the module would compute by itself.
        pipeline.transformer.pos_embed.pos_embed.mul_(1.5)
    return pipeline


def both(
    pipeline: Any, family: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Desk, Path, dict[str, Path]]:
    """A desk with the folder loaded, the single file, and what the file cannot have: T5's tokenizer."""
    single.halved(pipeline)
    single.know(pipeline, family, folder / "configs", monkeypatch)
    root = tiny.saved(pipeline, folder / "folder")
    desk = Desk()
    assert isinstance(desk.load(folder_spec("folder", root, family=family)), up.Loaded), desk.said[-1]
    path = single.written(single.whole(pipeline, family), folder / f"{family}.safetensors")
    key = "tokenizer_3" if family == "sd3" else "tokenizer_2"
    return desk, path, {key: root / key} if (root / key).is_dir() else {}


@pytest.mark.parametrize("variant", SD3)
def test_the_names_and_config_of_sd3_are_those_that_diffusers_reads(variant: str, tmp_path: Path) -> None:
    module = sd3(variant).transformer
    stored = single.transformer(module, "sd3")
    read = single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(dict(stored))
    for name, tensor in single.parameters(module).items():
        assert torch.equal(read[name], tensor), name
    config = mmdit.sd3_config({name: list(tensor.shape) for name, tensor in stored.items()})
    original = dict(module.config)
    assert config.pop("sample_size") == 128
    assert {key: original[key] for key in config if key not in ("_class_name", "dual_attention_layers")} == {
        key: value for key, value in config.items() if key not in ("_class_name", "dual_attention_layers")
    }
    assert list(original["dual_attention_layers"]) == config["dual_attention_layers"]
    path = single.written(stored, tmp_path / "bare.safetensors")
    layout = layouts.transformer(WeightFile(path), "sd3", config)
    for name, tensor in single.parameters(module).items():
        assert torch.equal(layout.find(name).read(), tensor), name


@pytest.mark.parametrize("guided", [False, True])
def test_the_names_of_flux_are_those_that_diffusers_reads(guided: bool) -> None:
    with without_weights():
        module = FluxTransformer2DModel(num_layers=2, num_single_layers=2, guidance_embeds=guided)
    width = 24 * 128
    rows: dict[str, int] = {}
    for name, parameter in module.named_parameters():
        stored = mmdit.flux(name)
        whole = parameter.shape[0] if stored.share is None else stored.share[2] * width
        assert rows.setdefault(stored.name, whole) == whole
    # diffusers looks at rows alone, so that one number for each of them stands for a matrix.
    tensors = {name: torch.arange(count) + 100_000.0 * at for at, (name, count) in enumerate(rows.items())}
    read = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers(dict(tensors))
    assert read.keys() == dict(module.named_parameters()).keys()
    for name, found in read.items():
        stored = mmdit.flux(name)
        expected = tensors[stored.name]
        if stored.share is not None:
            expected = expected[stored.share[0] * width : stored.share[1] * width]
        if stored.swapped:
            expected = torch.cat(expected.chunk(2)[::-1])
        assert torch.equal(found, expected), name


@pytest.mark.parametrize("guided", [False, True])
def test_the_config_of_flux_comes_from_the_shapes(guided: bool) -> None:
    module = tiny.flux(guided, heads=1, axes=AXES).transformer
    shapes = {name: list(tensor.shape) for name, tensor in single.transformer(module, "flux").items()}
    config = mmdit.flux_config(shapes)
    original = dict(module.config) | {"out_channels": module.config.in_channels, "_class_name": type(module).__name__}
    assert {key: original[key] for key in config} == config


@pytest.mark.parametrize(("variant", "with_t5"), [("sd3", True), ("sd3.5", True), ("sd3.5", False)])
def test_a_file_of_sd3_gives_the_picture_of_its_folder_bit_for_bit(
    variant: str, with_t5: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, path, others = both(sd3(variant, with_t5), "sd3", tmp_path, monkeypatch)
    assert isinstance(desk.load(single.spec(path, "sd3", **others)), up.Loaded), desk.said[-1]
    assert (single.picture(desk, "folder") == single.picture(desk, "single")).all()
    # A file may have OpenCLIP's own names, and the encoders may lie beside it.
    pipeline = single.halved(sd3(variant, with_t5))
    single.rewritten(path, lambda tensors: [tensors.pop(name) for name in list(tensors) if "clip_g" in name])
    loose = single.written(single.open_clip(pipeline.text_encoder_2), tmp_path / "clip_g.safetensors")
    assert isinstance(desk.load(single.spec(path, "sd3", text_encoder_2=loose, **others)), up.Loaded), desk.said[-1]
    assert (single.picture(desk, "folder") == single.picture(desk, "single")).all()


@pytest.mark.parametrize("guided", [False, True])
def test_a_file_of_flux_gives_the_picture_of_its_folder_bit_for_bit(
    guided: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = tiny.flux(guided, heads=2, axes=AXES, layers=2)
    desk, path, others = both(pipeline, "flux", tmp_path, monkeypatch)
    assert isinstance(desk.load(single.spec(path, "flux", **others)), up.Loaded), desk.said[-1]
    assert (single.picture(desk, "folder") == single.picture(desk, "single")).all()
    # The transformer alone, without prefix, as its authors publish it.
    bare = single.written(single.transformer(pipeline.transformer, "flux"), tmp_path / "bare.safetensors")
    root = tmp_path / "folder"
    parts = {role: root / role for role in ("vae", "text_encoder", "text_encoder_2")}
    # The tokenizer lies beside the folder of T5.
    assert isinstance(desk.load(single.spec(bare, "flux", **parts)), up.Loaded), desk.said[-1]
    assert (single.picture(desk, "folder") == single.picture(desk, "single")).all()


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("scale", [None, "scale_weight", "weight_scale"])
def test_weights_of_f8_are_read_with_their_scale(
    kind: torch.dtype, scale: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = tiny.flux(True, heads=1, axes=AXES)
    factor = 1.0 if scale is None else 0.375
    with torch.no_grad():
        for name, parameter in pipeline.transformer.named_parameters():
            if name.endswith(".weight"):
                parameter.copy_(parameter.to(kind).float() * factor)
    desk, path, others = both(pipeline, "flux", tmp_path, monkeypatch)

    def smaller(tensors: single.Tensors) -> None:
        for name in [name for name in tensors if name.startswith(single.DENOISER) and name.endswith(".weight")]:
            tensors[name] = (tensors[name].float() / factor).to(kind)
            if scale is not None:
                tensors[f"{name.removesuffix('weight')}{scale}"] = torch.tensor([factor])

    single.rewritten(path, smaller)
    loaded = desk.load(single.spec(path, "flux", **others))
    assert isinstance(loaded, up.Loaded), loaded
    folder, own = (desk.loop.family(id).denoiser.state_dict() for id in ("folder", "single"))
    for name, tensor in folder.items():
        assert torch.equal(tensor, own[name]), name


MISSING = [
    ("sd3", ("first_stage_model.",), "vae"),
    ("sd3", ("text_encoders.clip_l.",), "text_encoder"),
    ("sd3", ("text_encoders.clip_g.",), "text_encoder_2"),
    ("flux", ("vae.",), "vae"),
    ("flux", ("text_encoders.clip_l.",), "text_encoder"),
    ("flux", ("text_encoders.t5xxl.",), "text_encoder_2"),
]


@pytest.mark.parametrize(("family", "prefix", "role"), MISSING)
def test_a_part_that_the_file_lacks_is_asked_for_and_taken_as_a_component(
    family: str, prefix: tuple[str, ...], role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = sd3("sd3.5") if family == "sd3" else tiny.flux(True, heads=1, axes=AXES)
    desk, path, others = both(pipeline, family, tmp_path, monkeypatch)
    single.rewritten(path, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(prefix)])
    answer = desk.load(single.spec(path, family, **others))
    assert isinstance(answer, up.LoadFailed)
    assert answer.failure.outcome == "model_load"
    assert f"component `{role}`" in (answer.failure.detail or "")
    assert str(path) in (answer.failure.detail or "")
    given = {role: tmp_path / "folder" / role}
    assert isinstance(desk.load(single.spec(path, family, **others, **given)), up.Loaded), desk.said[-1]
    assert (single.picture(desk, "folder") == single.picture(desk, "single")).all()


def test_sd3_does_without_t5_as_its_pipeline_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, path, _ = both(sd3("sd3.5", with_t5=False), "sd3", tmp_path, monkeypatch)
    full = sd3("sd3.5")
    single.written(single.whole(full, "sd3"), path)
    single.rewritten(path, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".t5xxl." in name])
    assert isinstance(desk.load(single.spec(path, "sd3")), up.Loaded), desk.said[-1]
    assert desk.loop.family("single").t5 is None  # type: ignore[attr-defined]
    assert single.picture(desk, "single").shape == (32, 32, 3)


def test_t5s_tokenizer_is_found_beside_the_encoder_or_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = tiny.flux(True, heads=1, axes=AXES)
    desk, path, _ = both(pipeline, "flux", tmp_path, monkeypatch)
    answer = desk.load(single.spec(path, "flux"))
    assert isinstance(answer, up.LoadFailed)
    assert answer.failure.outcome == "model_load"
    assert "component `tokenizer_2`" in (answer.failure.detail or "")
    own = (tmp_path / "folder" / "tokenizer_2" / "tokenizer.json").read_text()
    loose = single.written(dict(pipeline.text_encoder_2.named_parameters()), tmp_path / "t5xxl_fp16.safetensors")
    expected = single.picture(desk, "folder")
    for name in ("t5xxl_fp16.tokenizer.json", "tokenizer.json"):
        (tmp_path / name).write_text(own)
        assert isinstance(desk.load(single.spec(path, "flux", text_encoder_2=loose)), up.Loaded), desk.said[-1]
        assert (single.picture(desk, "single") == expected).all()
        (tmp_path / name).unlink()
    elsewhere = tmp_path / "any.json"
    elsewhere.write_text(own)
    assert isinstance(desk.load(single.spec(path, "flux", tokenizer_2=elsewhere)), up.Loaded), desk.said[-1]
    assert (single.picture(desk, "single") == expected).all()
    for wrong in ("{", '{"version": "1.0"}'):
        elsewhere.write_text(wrong)
        answer = desk.load(single.spec(path, "flux", tokenizer_2=elsewhere))
        assert isinstance(answer, up.LoadFailed)
        assert answer.failure.outcome == "model_load"
        assert str(elsewhere) in (answer.failure.detail or "")


QKV = f"{single.DENOISER}double_blocks.0.img_attn.qkv.weight"
FAULTS: dict[str, tuple[Any, str]] = {
    "missing_block": (lambda t: t.pop(f"{single.DENOISER}double_blocks.0.img_mlp.0.weight"), "img_mlp.0.weight"),
    "missing_shape": (lambda t: t.pop(f"{single.DENOISER}vector_in.in_layer.weight"), "vector_in.in_layer.weight"),
    "rows": (lambda t: t.update({QKV: torch.zeros(130, 128)}), QKV),
    "columns": (lambda t: t.update({QKV: torch.zeros(384, 5)}), QKV),
    "type": (lambda t: t.update({QKV: torch.zeros(384, 128, dtype=torch.int32)}), QKV),
    "extents": (lambda t: t.update({f"{single.DENOISER}img_in.weight": torch.zeros(5)}), "shapes are not those"),
    "heads": (
        lambda t: t.update(
            {f"{single.DENOISER}double_blocks.0.img_attn.norm.query_norm.scale": torch.zeros(64)}
        ),
        "heads of 64",
    ),
    "vae": (lambda t: t.pop("vae.decoder.conv_in.weight"), "vae.decoder.conv_in.weight"),
    "t5": (
        lambda t: t.pop("text_encoders.t5xxl.transformer.encoder.final_layer_norm.weight"),
        "text_encoders.t5xxl.transformer.encoder.final_layer_norm.weight",
    ),
    "scale": (
        lambda t: t.update({QKV: t[QKV].to(torch.float8_e4m3fn), QKV + "_scale": torch.ones(384)}),
        QKV + "_scale",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_file_is_said_with_its_tensor_and_the_worker_goes_on(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, path, others = both(tiny.flux(True, heads=1, axes=AXES), "flux", tmp_path, monkeypatch)
    change, words = FAULTS[fault]
    single.rewritten(path, change)
    answer = desk.load(single.spec(path, "flux", **others))
    assert isinstance(answer, up.LoadFailed)
    assert answer.failure.outcome == "model_load", answer.failure
    assert words in (answer.failure.detail or ""), answer.failure
    assert str(path) in (answer.failure.detail or "")
    assert "single" not in desk.loop.models
    assert single.picture(desk, "folder").shape == (32, 32, 3)


def test_a_file_that_is_cut_off_and_one_of_another_family_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, path, others = both(tiny.flux(True, heads=1, axes=AXES), "flux", tmp_path, monkeypatch)
    answer = desk.load(single.spec(path, "sd3", **others))
    assert isinstance(answer, up.LoadFailed)
    assert answer.failure.outcome == "not_supported"
    # FLUX's editing variants see more than they give.
    wide = single.rewritten(path, lambda t: t.update({f"{single.DENOISER}img_in.weight": torch.zeros(128, 32)}))
    answer = desk.load(single.spec(wide, "flux", **others))
    assert isinstance(answer, up.LoadFailed)
    assert answer.failure.outcome == "not_supported"
    path.write_bytes(path.read_bytes()[:-1000])
    answer = desk.load(single.spec(path, "flux", **others))
    assert isinstance(answer, up.LoadFailed)
    assert answer.failure.outcome == "model_load"
    assert str(path) in (answer.failure.detail or "")
    assert single.picture(desk, "folder").shape == (32, 32, 3)


@pytest.mark.parametrize("architecture", TRANSFORMERS)
def test_the_packages_configs_build_what_they_describe(architecture: str) -> None:
    configs = configs_of(architecture)
    with without_weights():
        vae: Any = AutoencoderKL.from_config(configs["vae"])
    assert vae.config.latent_channels == 16
    assert vae.quant_conv is None
    assert vae.post_quant_conv is None
    for role, config in configs.items():
        if role.startswith("text_encoder"):
            module: Any = transformers_module(config, (*CLIPS, *T5S), role)
            expected = {"text_encoder": 768, "text_encoder_2": 1280}.get(role, 4096)
            if not layouts.is_t5(config):
                assert module.config.hidden_size == expected
            else:
                assert module.config.d_model == 4096
                assert any("wi_1" in name for name, _ in module.named_parameters())


def test_schnell_has_its_own_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for guided, dynamic in ((True, True), (False, False)):
        folder = tmp_path / str(guided)
        folder.mkdir()
        _, path, others = both(tiny.flux(guided, heads=1, axes=AXES), "flux", folder, monkeypatch)
        config = checkpoint.Checkpoint(single.spec(path, "flux", **others)).scheduler()
        assert config.get("use_dynamic_shifting", False) == dynamic
