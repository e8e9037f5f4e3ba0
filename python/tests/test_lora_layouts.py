"""LoRAs of the transformer families in the names of kohya, XLabs and the models' authors, against diffusers' names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders import lora_conversion_utils
from safetensors.torch import save_file

from calotype_worker import mmdit
from calotype_worker.lora import Change, Changes
from calotype_worker.mmdit import Stored
from calotype_worker.pipelines.flux import Flux
from calotype_worker.pipelines.transformer import TransformerFamily
from calotype_worker.wire import up
from calotype_worker.wire.work import Adapter

from . import tiny
from .desk import Desk, folder_spec, generate

Tensors = dict[str, torch.Tensor]
RANK = 4
ALPHA = 2.0


def adapter(tensors: Tensors, path: Path) -> Adapter:
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return Adapter(id=path.stem, path=str(path), weight=0.75)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape) * 0.3


def ours(module: Any) -> dict[str, torch.Size]:
    """The layers of a transformer and the shapes of their weights."""
    weights = {name.removesuffix(".weight"): one.shape for name, one in module.named_parameters() if one.ndim == 2}
    return {name: shape for name, shape in weights.items() if "norm_" not in name or "norm_out" in name}


class Both:
    """The same LoRA by diffusers' layers and by the layers that the original has."""

    def __init__(self, module: Any, stored_of: Callable[[str], Stored]) -> None:
        torch.manual_seed(8)
        self.diffusers: Tensors = {}
        self.original: Tensors = {}
        shares: dict[str, dict[int, torch.Tensor]] = {}
        for layer, (outputs, inputs) in ours(module).items():
            stored = stored_of(layer)
            # What is stored as one layer has one first matrix.
            down = self.original.setdefault(f"{stored.name}.lora_down.weight", random(RANK, inputs))
            rows = random(outputs, RANK)
            self.diffusers[f"{layer}.lora_A.weight"], self.diffusers[f"{layer}.lora_B.weight"] = down, rows
            self.original[f"{stored.name}.alpha"] = self.diffusers[f"{layer}.alpha"] = torch.tensor(ALPHA)
            shares.setdefault(stored.name, {})[stored.share[0] if stored.share else 0] = (
                torch.cat(rows.chunk(2)[::-1]) if stored.swapped else rows
            )
        for name, parts in shares.items():
            self.original[f"{name}.lora_up.weight"] = torch.cat([parts[at] for at in sorted(parts)])

    def by_kohya(self) -> Tensors:
        split = (name.rsplit(".", 1 if name.endswith(".alpha") else 2) for name in self.original)
        flat = [".".join(["lora_unet_" + layer.replace(".", "_"), *rest]) for layer, *rest in split]
        return dict(zip(flat, self.original.values(), strict=True))

    def prefixed(self, prefix: str) -> Tensors:
        return {prefix + name: tensor for name, tensor in self.original.items()}


FAMILIES: dict[str, tuple[Callable[[], Any], Callable[[Any], Callable[[str], Stored]]]] = {
    "flux": (lambda: tiny.flux(True, layers=2), lambda _: mmdit.flux),
    "sd3": (
        lambda: tiny.sd3(False, dual_attention_layers=(0,)),
        lambda module: lambda layer: mmdit.sd3(layer, module.config.num_layers),
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Desk, Both]:
    build, stored_of = FAMILIES[request.param]
    pipeline = build()
    root = tiny.saved(pipeline, tmp_path_factory.mktemp(request.param) / "model")
    desk = Desk()
    assert isinstance(desk.load(folder_spec("model", root, family=request.param)), up.Loaded), desk.said[-1]
    return desk, Both(pipeline.transformer, stored_of(pipeline.transformer))


def picture(desk: Desk, *adapters: Adapter) -> np.ndarray[Any, Any]:
    work, blobs = generate(
        [5], edge=32, scale=2, steps=2, model="model", prompt="a red cat", sampler="euler", adapters=list(adapters)
    )
    job = desk.run(work, *blobs)
    desk.finish()
    return desk.picture(job)


def test_a_lora_of_the_originals_layers_gives_the_picture_of_one_of_diffusers_layers(
    family: tuple[Desk, Both], tmp_path: Path
) -> None:
    desk, both = family
    prefixed = {f"transformer.{name}": tensor for name, tensor in both.diffusers.items()}
    expected = picture(desk, adapter(prefixed, tmp_path / "diffusers.safetensors"))
    spellings = {
        "kohya": both.by_kohya(),
        "authors": both.prefixed(""),
        "comfy": both.prefixed("diffusion_model."),
        "bare": both.diffusers,
        "peft": {f"base_model.model.{name}": tensor for name, tensor in both.diffusers.items()},
    }
    for name, tensors in spellings.items():
        assert (picture(desk, adapter(tensors, tmp_path / f"{name}.safetensors")) == expected).all(), name
    plain = picture(desk)
    assert (plain != expected).any()
    # Every layer was changed.
    model = desk.loop.family("model")
    merged = model.bind([adapter(both.by_kohya(), tmp_path / "all.safetensors")]).merged
    assert {name for _, name in merged} == {f"{layer}.weight" for layer in ours(model.denoiser)}


def test_a_fused_layer_of_which_each_part_has_a_rank_of_its_own_is_the_sum_of_them(
    family: tuple[Desk, Both], tmp_path: Path
) -> None:
    """Kohya writes networks that were trained on split layers so: the second matrix is block-diagonal."""
    desk, both = family
    model = desk.loop.family("model")
    fused = next(name for name in both.original if "qkv.lora_up" in name).removesuffix(".lora_up.weight")
    assert isinstance(model, TransformerFamily)
    layers = {
        stored.share[0]: layer
        for layer in ours(model.denoiser)
        for stored in model.stored(layer)
        if stored.name == fused and stored.share is not None
    }
    downs = [both.diffusers[f"{layers[at]}.lora_A.weight"] + at for at in range(3)]
    ups = [both.diffusers[f"{layers[at]}.lora_B.weight"] for at in range(3)]
    whole = {
        f"{fused}.lora_down.weight": torch.cat(downs),
        f"{fused}.lora_up.weight": torch.block_diag(*ups),  # type: ignore[no-untyped-call]
        f"{fused}.alpha": torch.tensor(3 * ALPHA),
    }
    split: Tensors = {}
    for at, layer in layers.items():
        split[f"transformer.{layer}.lora_A.weight"], split[f"transformer.{layer}.lora_B.weight"] = downs[at], ups[at]
        split[f"transformer.{layer}.alpha"] = torch.tensor(ALPHA)
    sets = [
        model.bind([adapter(tensors, tmp_path / f"{name}.safetensors")]).merged
        for name, tensors in (("whole", whole), ("split", split))
    ]
    assert sets[0].keys() == sets[1].keys() == {("unet", f"{layer}.weight") for layer in layers.values()}
    for key, tensor in sets[0].items():
        # 12 products, 8 of them 0, against 4: the sums may be rounded in another order, a few times in 24 bits.
        assert torch.allclose(tensor, sets[1][key], rtol=0, atol=float(tensor.abs().max()) * 8 * 2**-24)


def test_rows_that_are_not_equal_parts_are_refused(family: tuple[Desk, Both], tmp_path: Path) -> None:
    desk, both = family
    fused = next(name for name in both.original if "qkv.lora_up" in name)
    tensors = {
        name: one for name, one in both.original.items() if name.startswith(fused.removesuffix("lora_up.weight"))
    }
    for rows, words in ((tensors[fused][:-1], "equal parts"), (tensors[fused][:-3], "has shapes")):
        lora = adapter(tensors | {fused: rows}, tmp_path / "wrong.safetensors")
        work, blobs = generate([5], edge=32, scale=2, model="model", adapters=[lora])
        job = desk.run(work, *blobs)
        desk.finish()
        assert desk.failure(job).outcome == "invalid_input"
        assert words in desk.failure(job).message


@pytest.fixture(scope="module")
def large() -> Any:
    """A FLUX of the real width, which diffusers' conversions expect, without memory."""
    with torch.device("meta"):
        return FluxTransformer2DModel(
            in_channels=64, num_layers=1, num_single_layers=1, guidance_embeds=True, joint_attention_dim=4096
        )


def changes_of(tensors: Tensors, module: Any, path: Path) -> dict[str, Change]:
    flux: Any = Flux.__new__(Flux)
    found = Changes.read([adapter(tensors, path)], {"unet": module}, flux._spellings).by_tensor
    assert all(len(changes) == 1 for changes in found.values())
    return {name: changes[0] for (_, name), changes in found.items()}


def same(one: Change, other: Change) -> bool:
    some = slice(0, 16)
    ours, theirs = ((change.up @ change.down[:, some]) * change.scale for change in (one, other))
    return torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def kohyas(large: Any) -> Tensors:
    return {
        name: tensor
        for name, tensor in Both(large, mmdit.flux).by_kohya().items()
        # diffusers takes their alphas for 1.
        if "final_layer" not in name or not name.endswith(".alpha")
    }


def xlabs(large: Any) -> Tensors:
    shapes = ours(large)
    found: Tensors = {}
    for block, names in (
        ("double", ("qkv_lora1", "qkv_lora2", "proj_lora1", "proj_lora2")),
        ("single", ("qkv_lora", "proj_lora")),
    ):
        for name in names:
            width = shapes["transformer_blocks.0.attn.to_q"][0]
            outputs = 3 * width if "qkv" in name else width
            inputs = shapes["single_transformer_blocks.0.proj_out"][1] if name == "proj_lora" else width
            key = f"{block}_blocks.0.processor.{name}"
            found[f"{key}.down.weight"], found[f"{key}.up.weight"] = random(RANK, inputs), random(outputs, RANK)
    return found


@pytest.mark.parametrize(
    ("written", "convert", "count"),
    [
        (kohyas, lora_conversion_utils._convert_kohya_flux_lora_to_diffusers, 30),
        (xlabs, lora_conversion_utils._convert_xlabs_flux_lora_to_diffusers, 12),
    ],
)
def test_the_layers_of_kohyas_and_xlabs_names_are_those_that_diffusers_finds(
    large: Any, written: Callable[[Any], Tensors], convert: Callable[[Tensors], Tensors], count: int, tmp_path: Path
) -> None:
    tensors = written(large)
    found = changes_of(tensors, large, tmp_path / "ours.safetensors")
    theirs = changes_of(convert(dict(tensors)), large, tmp_path / "theirs.safetensors")
    assert len(found) == count
    assert found.keys() == theirs.keys()
    for name, change in found.items():
        assert same(change, theirs[name]), name
