"""Models of one architecture are copies of one blank, and share nothing that can be changed."""

import gc
from collections.abc import Iterator
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from calotype_worker import blanks
from calotype_worker.pipelines.checkpoint import configs_of
from calotype_worker.pipelines.parts import diffusers_module, transformers_module
from calotype_worker.wire import down, up

from . import tiny
from .desk import TINY, Desk, folder_spec, generate

CONSTANT = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device, torch.Size, nn.Parameter)


@pytest.fixture(autouse=True)
def none_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blanks, "_kept", type(blanks._kept)())


def reached(root: Any) -> dict[int, Any]:
    """All objects that an object leads to, without what classes and files of code have."""
    found: dict[int, Any] = {}
    waiting = [root]
    while waiting:
        one = waiting.pop()
        plain = isinstance(one, FunctionType) and not one.__closure__
        if id(one) in found or plain or isinstance(one, (type, ModuleType, BuiltinFunctionType)):
            continue
        found[id(one)] = one
        waiting += gc.get_referents(one)
    return found


def changeable(shared: list[Any]) -> Iterator[str]:
    for one in shared:
        if not isinstance(one, CONSTANT) and not (isinstance(one, tuple) and not list(changeable(list(one)))):
            yield f"{type(one).__name__} {one!r:.80}"


def loaded(desk: Desk, id: str, root: Path = TINY, family: str = "sd", **fields: Any) -> Any:
    desk.tell(down.Load(load="l", model=folder_spec(id, root, family), dtype="f32", budget_bytes=0, **fields))
    assert isinstance(desk.said[-1].message, up.Loaded), desk.said[-1]
    return desk.loop.family(id)


def picture(desk: Desk, id: str) -> Any:
    work, blobs = generate([1], steps=2, edge=32, model=id)
    job = desk.run(work, *blobs)
    desk.finish()
    return desk.picture(job)


def test_copies_share_nothing_that_can_be_changed(tmp_path: Path) -> None:
    desk = Desk()
    for name, pipeline in {
        "sd": tiny.sd(),
        "sdxl": tiny.sdxl(),
        "sd3": tiny.sd3(with_t5=True),
        "flux": tiny.flux(guided=True),
    }.items():
        loaded(desk, name, tiny.saved(pipeline, tmp_path / name), name)
    kinds = {kind.__name__ for kind, _ in blanks._kept}
    assert {"UNet2DConditionModel", "SD3Transformer2DModel", "FluxTransformer2DModel", "T5EncoderModel"} <= kinds
    for one in blanks._kept.values():
        copies = [reached(module) for module in (one._module, one.copied(), one.copied())]
        for mine, others in ((copies[1], copies[0]), (copies[1], copies[2])):
            assert list(changeable([mine[key] for key in mine.keys() & others.keys()])) == []


def test_a_copy_is_what_the_library_builds() -> None:
    for role, make in (("text_encoder_2", transformers_module), ("unet", diffusers_module), ("vae", diffusers_module)):
        config = configs_of("sdxl")[role]
        allowed = tuple(config.get("architectures") or [config["_class_name"]])
        first, second = make(config, allowed, role), make(config, allowed, role)
        (one,) = [one for (kind, _), one in blanks._kept.items() if kind.__name__ in allowed]
        for module in (first, second):
            assert repr(module) == repr(one._module)
            assert not any(part.training for part in module.modules())
            assert [*module.state_dict()] == [*one._module.state_dict()]
            assert all(parameter.is_meta for parameter in module.parameters())
            buffers = dict(one._module.named_buffers())
            assert all(torch.equal(value, buffers.pop(name)) for name, value in module.named_buffers())
            assert not buffers


def test_what_is_done_to_a_model_is_not_done_to_the_others() -> None:
    desk = Desk()
    plain = loaded(desk, "plain")
    expected = picture(desk, "plain")
    other = loaded(desk, "other", plan=down.LoadPlan(attention_slicing=True))
    other.keep_to_tiles()
    seen: list[nn.Module] = []
    hook = other.denoiser.mid_block.register_forward_hook(lambda module, inputs, output: seen.append(module))
    other.denoiser.conv_in.weight.data.zero_()
    other.vae.config.scaling_factor_of_mine = 7.0
    assert (picture(desk, "other") != expected).any()
    assert set(map(id, seen)) == {id(other.denoiser.mid_block)}
    for model in (plain, loaded(desk, "third")):
        seen.clear()
        assert (picture(desk, model.id) == expected).all()
        assert not seen
        assert not model.vae_is_tiled
        assert not hasattr(model.vae.config, "scaling_factor_of_mine")
    hook.remove()


def test_few_are_kept_the_last_used_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blanks, "MOST_KEPT", 2)
    built: list[str] = []

    def layer(name: str) -> nn.Module:
        def build() -> nn.Module:
            built.append(name)
            return nn.Linear(2, 2)

        return blanks.blank(nn.Linear, name, build)

    for name in ("a", "b", "a", "c", "a", "b"):
        assert type(layer(name)) is nn.Linear
    assert built == ["a", "b", "c", "b"]


def test_what_cannot_be_built_is_not_kept() -> None:
    def build() -> nn.Module:
        raise ValueError("no such layer")

    with pytest.raises(ValueError):
        blanks.blank(nn.Linear, "wrong", build)
    assert not blanks._kept


def test_parts_that_a_module_has_twice_are_one_in_its_copy() -> None:
    module: Any = nn.Module()
    module.first = module.second = nn.Linear(2, 2)
    module.third = nn.Linear(2, 2)
    module.third.weight = module.first.weight
    module.also = [module.third]
    one = blanks.Blank(module)
    for _ in range(2):
        copy: Any = one.copied()
        assert copy.first is copy.second is not module.first
        assert copy.first.weight is copy.third.weight
        assert copy.also == [copy.third]
