"""Weights that wait on the host: only what computes is on the device, and the pictures are the same."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from calotype_worker.wire import down, up
from calotype_worker.wire.words import BlobRef
from calotype_worker.wire.work import Adapter, ControlUnit, Preprocess

from . import tiny, tiny_annotators
from .conftest import FIXTURES
from .desk import TINY, Desk, folder_spec, generate

EDGE = 32
FAMILIES = {"sd": "sd", "net": "controlnet", "other": "controlnet", "edges": "preprocessor"}
IMAGE = np.random.default_rng(3).integers(0, 256, (EDGE, EDGE, 3), dtype=np.uint8)
LORA = Adapter(id="tiny", path=str(FIXTURES / "lora_tiny_peft.safetensors"), weight=1.0)

Offloads = dict[str, Any]
"""The offload of each model that has one."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("offloaded")
    tiny.saved(tiny.sd(), root / "sd")
    for id, seed in (("net", 5), ("other", 6)):
        tiny.controlnet(tiny.TEXT, None, seed, zero=False).save_pretrained(root / id)
    (root / "edges").mkdir()
    tiny_annotators.saved_hed(root / "edges" / "ControlNetHED.safetensors")
    return {id: root / id for id in FAMILIES}


def load(desk: Desk, place: Path, id: str, offload: Any, family: str | None = None) -> up.Loaded:
    spec = folder_spec(id, place, family=family or FAMILIES.get(id, "sd"))
    plan = down.LoadPlan(offload=offload)
    desk.tell(down.Load(load=id, model=spec, dtype="f32", budget_bytes=0, plan=plan))
    answer = desk.said[-1].message
    assert isinstance(answer, up.Loaded), answer
    return answer


def desk_of(places: dict[str, Path], offloads: Offloads) -> Desk:
    desk = Desk()
    for id, place in places.items():
        load(desk, place, id, offloads.get(id, "none"))
    return desk


def run(desk: Desk, seed: int = 5, steps: int = 2, end: float = 1.0, **changes: Any) -> str:
    """A job that sees a picture and is led by two ControlNets, one by way of a preprocessor."""
    ref = BlobRef(blob=2, dtype="u8", shape=list(IMAGE.shape))
    units = [
        ControlUnit(model="net", image=ref, weight=1.0, start=0.0, end=1.0),
        ControlUnit(
            model="other",
            image=ref,
            weight=0.5,
            start=0.0,
            end=end,
            preprocess=Preprocess(model="edges", into="softedge"),
        ),
    ]
    fields: Any = {"model": "sd", "edge": EDGE, "scale": 2, "steps": steps, "control": units}
    work, blobs = generate([seed], mode="image_to_image", init_image=IMAGE, **fields, **changes)
    return desk.run(work, *blobs, IMAGE.tobytes())


def finished(desk: Desk, job: str) -> np.ndarray[Any, Any]:
    desk.finish()
    return desk.picture(job)


class Homes:
    """Where weights were on the host, and which modules are elsewhere now."""

    def __init__(self, modules: dict[str, Any]) -> None:
        self._modules = modules
        self._homes = {name: self._places(module) for name, module in modules.items()}

    def _places(self, module: nn.Module) -> list[int]:
        return [parameter.data_ptr() for parameter in module.parameters()]

    def away(self) -> set[str]:
        return {name for name, module in self._modules.items() if self._places(module) != self._homes[name]}

    def watch(self, parts: dict[str, Any]) -> dict[str, list[set[str]]]:
        """What is away whenever one of these parts computes."""
        seen: dict[str, list[set[str]]] = {name: [] for name in parts}

        def look(name: str) -> Callable[..., None]:
            return lambda *_: seen[name].append(self.away())

        for name, part in parts.items():
            part.register_forward_pre_hook(look(name))
        return seen


def homes_of(desk: Desk) -> tuple[Homes, dict[str, Any]]:
    """The homes of all modules, and for each a part that computes when it does."""
    model = desk.loop.family("sd")
    text = model.encoder_modules()[0]
    nets = {id: desk.loop.control_net(id).module for id in ("net", "other")}
    edges = desk.loop.preprocessor("edges").annotator.modules()[0]
    modules = {"text": text, "unet": model.denoiser, "vae": model.vae, **nets, "edges": edges}
    words = next(part for part in text.modules() if isinstance(part, nn.Embedding))
    vae = {"vae encodes": model.vae.encoder, "vae decodes": model.vae.decoder}
    return Homes(modules), {"text": words, "unet": model.denoiser, **nets, "edges": edges, **vae}


def copied(desk: Desk, id: str = "sd", nets: tuple[str, ...] = ("net", "other")) -> Desk:
    """The weights in memory of their own, as on a device apart.

    In the mapped file they are aligned as the file has them, and the CPU's kernels round otherwise there.
    """
    model = desk.loop.family(id)
    controls = [desk.loop.control_net(net).module for net in nets]
    modules = [model.denoiser, model.vae, *model.encoder_modules(), *controls]
    for module in modules:
        for weight in (*module.parameters(), *module.buffers()):
            weight.data = weight.data.clone()
    return desk


ALL: Offloads = dict.fromkeys(FAMILIES, "model")


def test_a_controlnet_waits_on_the_host_between_its_uses(places: dict[str, Path], memory_apart: None) -> None:
    desk = desk_of(places, ALL)
    homes, parts = homes_of(desk)
    assert homes.away() == set()
    seen = homes.watch(parts)
    finished(desk, run(desk, steps=4, end=0.5))
    both, one = {"unet", "net", "other"}, {"unet", "net"}
    assert seen == {
        "text": [{"text"}] * len(seen["text"]),
        "edges": [{"edges"}],
        "vae encodes": [{"vae"}],
        "net": [both, both, one, one],
        "other": [both, both],
        "unet": [both, both, one, one],
        "vae decodes": [{"vae"}],
    }
    assert seen["text"]


@pytest.mark.parametrize("kind", ["model", "sequential"])
@pytest.mark.parametrize("which", [["sd", "net", "other", "edges"], ["net", "other"], ["sd", "other"]])
def test_what_waits_on_the_host_changes_no_bit_of_a_picture(
    places: dict[str, Path], which: list[str], kind: Any, memory_apart: None
) -> None:
    expected = finished(whole := copied(desk_of(places, {})), run(whole))
    desk = desk_of(places, dict.fromkeys(which, kind))
    homes, _ = homes_of(desk)
    for _ in range(2):
        job = run(desk)
        assert (finished(desk, job) == expected).all()
        assert desk.result(job)[0].plan == [f"offload_{kind}"]
    desk.loop.make_room()
    assert homes.away() == set()
    assert whole.result("job_1")[0].plan is None


@pytest.mark.parametrize("kind", ["model", "sequential"])
def test_what_waits_on_the_host_changes_no_bit_of_a_picture_of_sdxl(
    tmp_path: Path, kind: Any, memory_apart: None
) -> None:
    tiny.saved(tiny.sdxl(), tmp_path / "xl")
    tiny.controlnet(2 * tiny.TEXT, 6, 8, zero=False).save_pretrained(tmp_path / "net")
    ref = BlobRef(blob=1, dtype="u8", shape=list(IMAGE.shape))
    unit = ControlUnit(model="net", image=ref, weight=1.0, start=0.0, end=1.0)
    found = []
    for offload in ("none", kind):
        desk = Desk()
        for id, family in (("xl", "sdxl"), ("net", "controlnet")):
            load(desk, tmp_path / id, id, offload, family)
        if offload == "none":
            copied(desk, "xl", ("net",))
        work, blobs = generate([2], edge=EDGE, scale=2, model="xl", steps=2, control=[unit])
        found.append(finished(desk, desk.run(work, *blobs, IMAGE.tobytes())))
    assert (found[0] == found[1]).all()


def test_layer_by_layer_nothing_of_a_controlnet_stays_after_a_step(places: dict[str, Path], memory_apart: None) -> None:
    desk = desk_of(places, dict.fromkeys(FAMILIES, "sequential"))
    homes, parts = homes_of(desk)
    net = desk.loop.control_net("net").module
    seen = homes.watch({"layer": net.conv_in, "vae": parts["vae decodes"]})
    run(desk, steps=3)
    desk.until(lambda: desk.loop.jobs[0].steps_done == 1)
    assert homes.away() == set()
    desk.finish()
    # Where a layer is about to compute its own weights are there, and those of no other module.
    assert seen == {"layer": [{"net"}] * 3, "vae": [set()]}


def test_where_a_model_stays_its_controlnets_leave_when_its_vae_computes(
    places: dict[str, Path], memory_apart: None
) -> None:
    desk = desk_of(places, {"net": "model", "other": "model"})
    homes, parts = homes_of(desk)
    seen = homes.watch({"unet": parts["unet"], "vae": parts["vae decodes"]})
    finished(desk, run(desk))
    assert seen == {"unet": [{"net", "other"}] * 2, "vae": [set()]}


def test_the_denoisers_of_two_models_are_not_on_the_device_together(
    places: dict[str, Path], memory_apart: None
) -> None:
    desk = desk_of(places, ALL)
    load(desk, places["sd"], "second", "model")
    models = {id: desk.loop.family(id).denoiser for id in ("sd", "second")}
    seen = Homes(models).watch(models)
    for id in ("sd", "second", "sd"):
        work, blobs = generate([1], edge=EDGE, scale=2, model=id, steps=1)
        finished(desk, desk.run(work, *blobs))
    assert seen == {"sd": [{"sd"}] * 2, "second": [{"second"}]}


def test_a_load_tells_of_the_same_bytes_wherever_they_wait(places: dict[str, Path], memory_apart: None) -> None:
    desk = Desk()
    bytes = [load(desk, places["net"], "net", offload).resident_bytes for offload in ("none", "model", "sequential")]
    assert bytes == [bytes[0]] * 3
    assert bytes[0] == sum(parameter.nbytes for parameter in desk.loop.control_net("net").module.parameters())


@pytest.mark.parametrize("kind", ["model", "sequential"])
def test_a_lora_that_comes_while_the_denoiser_computes_leaves_no_weights_on_the_device(
    kind: Any, memory_apart: None
) -> None:
    def pictures(offload: Any) -> tuple[list[np.ndarray[Any, Any]], set[str]]:
        desk = Desk()
        load(desk, TINY, "calotype-tiny", offload)
        model = desk.loop.family("calotype-tiny")
        homes = Homes({str(number): module for number, module in enumerate(model.modules())})
        found = []
        for seed in (1, 2):
            work, blobs = generate([seed], steps=3, edge=32)
            first = desk.run(work, *blobs)
            desk.until(lambda: desk.loop.jobs[0].steps_done == 1)
            work, blobs = generate([seed], steps=3, edge=32, adapters=[LORA], prompt="a green apple")
            second = desk.run(work, *blobs)
            desk.finish()
            found += [desk.picture(first), desk.picture(second)]
        # The plain weights are back with this one.
        work, blobs = generate([3], steps=1, edge=32)
        found.append(finished(desk, desk.run(work, *blobs)))
        desk.loop.make_room()
        return found, homes.away()

    ours, away = pictures(kind)
    theirs, _ = pictures("none")
    assert all((one == other).all() for one, other in zip(ours, theirs, strict=True))
    assert away == set()


def test_what_was_copied_until_memory_ran_out_goes_home(
    places: dict[str, Path], memory_apart: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = desk_of(places, ALL)
    homes, _ = homes_of(desk)
    expected = finished(desk, run(desk))
    real, copies = torch.Tensor.to, [0]

    def short(tensor: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        copies[0] += bool(named.get("copy"))
        if copies[0] > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return real(tensor, *arguments, **named)

    loop = desk.loop
    sizes = [len(list(module.parameters())) for module in (loop.family("sd").denoiser, loop.control_net("net").module)]
    job = run(desk)
    desk.until(lambda: bool(desk.all(up.Progress, job)))
    # The denoiser is there, and half of the first ControlNet.
    most = sizes[0] + sizes[1] // 2
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to", short)
        desk.finish()
    assert desk.failure(job).outcome == "out_of_memory"
    assert copies[0] > sizes[0]
    assert homes.away() == set()
    assert (finished(desk, run(desk)) == expected).all()


def test_a_layer_that_fails_does_not_stay(places: dict[str, Path], memory_apart: None) -> None:
    desk = desk_of(places, dict.fromkeys(FAMILIES, "sequential"))
    homes, _ = homes_of(desk)
    net = desk.loop.control_net("net").module

    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    hook = net.conv_in.register_forward_pre_hook(fails)
    job = run(desk)
    desk.finish()
    assert desk.failure(job).outcome == "out_of_memory"
    assert homes.away() == set()
    hook.remove()
    finished(desk, run(desk))


def test_an_unload_forgets_a_controlnet_that_is_on_the_device(places: dict[str, Path], memory_apart: None) -> None:
    desk = desk_of(places, ALL)
    job = run(desk, steps=4)
    desk.until(lambda: desk.loop.jobs[0].steps_done == 1)
    weights = [weakref.ref(parameter) for parameter in desk.loop.control_net("net").module.parameters()]
    desk.tell(down.Unload(unload="u", model="net"))
    assert "unloaded" in desk.failure(job).message
    assert weights
    assert not [one for one in weights if one() is not None]
    load(desk, places["net"], "net", "model")
    finished(desk, run(desk))
