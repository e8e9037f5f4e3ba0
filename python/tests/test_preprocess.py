"""Control units whose pictures a network makes: what a job does with them, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from calotype_worker.wire import down, up
from calotype_worker.wire.words import BlobRef
from calotype_worker.wire.work import ControlUnit, Generate, Preprocess

from . import tiny, tiny_annotators
from .desk import Desk, folder_spec, generate

EDGE = 32
PHOTO = np.random.default_rng(1).integers(0, 256, (20, 27, 3), dtype=np.uint8)
NETWORKS: dict[str, Any] = {"depths": tiny_annotators.depth_anything, "poses": tiny_annotators.vitpose}
KINDS = [("depths", "depth"), ("depths", "normal"), ("edges", "softedge"), ("poses", "pose")]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("preprocess")
    tiny.saved(tiny.sd(), root / "sd")
    tiny.controlnet(tiny.TEXT, None, 5, zero=False).save_pretrained(root / "net")
    for id, build in NETWORKS.items():
        tiny_annotators.saved(build, root / id)
    (root / "edges").mkdir()
    tiny_annotators.saved_hed(root / "edges" / "ControlNetHED.safetensors")
    return {id: root / id for id in ("sd", "net", "edges", *NETWORKS)}


@pytest.fixture(scope="module")
def desk(places: dict[str, Path]) -> Desk:
    return desk_of(places)


def desk_of(places: dict[str, Path], plan: down.LoadPlan | None = None) -> Desk:
    desk = Desk()
    for id, place in places.items():
        family = {"sd": "sd", "net": "controlnet"}.get(id, "preprocessor")
        spec = folder_spec(id, place, family=family)
        of_load = plan if family == "preprocessor" else None
        desk.tell(down.Load(load=id, model=spec, dtype="f32", budget_bytes=0, plan=of_load))
        assert isinstance(desk.said[-1].message, up.Loaded), desk.said[-1]
    return desk


def request(image: np.ndarray[Any, Any], preprocess: Preprocess | None, **changes: Any) -> tuple[Generate, list[bytes]]:
    ref = BlobRef(blob=1, dtype="u8", shape=list(image.shape))
    unit = ControlUnit(model="net", image=ref, weight=1.0, start=0.0, end=1.0, preprocess=preprocess)
    work, blobs = generate([5], edge=EDGE, scale=2, model="sd", steps=2, control=[unit], **changes)
    return work, [*blobs, image.tobytes()]


def picture(desk: Desk, image: np.ndarray[Any, Any], preprocess: Preprocess | None) -> np.ndarray[Any, Any]:
    work, blobs = request(image, preprocess)
    job = desk.run(work, *blobs)
    desk.finish()
    return desk.picture(job)


def outside(desk: Desk, model: str, into: str) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        made = desk.loop.preprocessor(model).picture(torch.from_numpy(PHOTO), into, EDGE, EDGE)
    found: np.ndarray[Any, Any] = made.numpy()
    return found


@pytest.mark.parametrize(("model", "into"), KINDS)
def test_a_job_is_bit_for_bit_that_of_a_picture_preprocessed_outside(desk: Desk, model: str, into: Any) -> None:
    expected = outside(desk, model, into)
    assert len(np.unique(expected)) > 2
    ours = picture(desk, PHOTO, Preprocess(model=model, into=into))
    assert (ours == picture(desk, expected, None)).all()
    assert (ours != picture(desk, np.zeros((EDGE, EDGE, 3), np.uint8), None)).any()


def test_without_preprocess_an_image_must_have_the_jobs_size(desk: Desk) -> None:
    work, blobs = request(PHOTO, None)
    job = desk.run(work, *blobs)
    desk.finish()
    assert desk.failure(job).outcome == "invalid_input"
    assert "27x20" in desk.failure(job).message


@pytest.mark.parametrize(
    ("model", "into", "outcome", "words"),
    [
        (
            "depths",
            "pose",
            "not_supported",
            "`depths` (DepthAnythingForDepthEstimation) makes depth and normal, not pose",
        ),
        ("edges", "depth", "not_supported", "`edges` (HED) makes softedge, not depth"),
        ("poses", "softedge", "not_supported", "`poses`"),
        ("net", "depth", "invalid_input", "`net` is a ControlNet, not a preprocessor"),
        ("sd", "depth", "invalid_input", "`sd` is a model, not a preprocessor"),
        ("absent", "depth", "failed", "not resident"),
    ],
)
def test_a_network_that_does_not_make_it_is_named(desk: Desk, model: str, into: Any, outcome: str, words: str) -> None:
    work, blobs = request(PHOTO, Preprocess(model=model, into=into))
    job = desk.run(work, *blobs)
    desk.finish()
    assert desk.failure(job).outcome == outcome
    assert words in desk.failure(job).message


def test_a_preprocessor_is_no_model_and_no_controlnet(desk: Desk) -> None:
    unit = ControlUnit(
        model="edges", image=BlobRef(blob=1, dtype="u8", shape=[1, 1, 3]), weight=1.0, start=0.0, end=1.0
    )
    cases: list[tuple[dict[str, Any], str]] = [
        ({"model": "edges"}, "not a model"),
        ({"model": "sd", "control": [unit]}, "not a ControlNet"),
    ]
    for changes, words in cases:
        work, blobs = generate([5], edge=EDGE, scale=2, **changes)
        job = desk.run(work, *blobs)
        desk.finish()
        assert f"`edges` is a preprocessor, {words}" in desk.failure(job).message


@pytest.mark.parametrize("gone", ["depths", "net"])
def test_a_waiting_job_ends_with_the_network_that_it_needs(places: dict[str, Path], gone: str) -> None:
    desk = desk_of({id: places[id] for id in ("sd", "net", "depths")})
    work, blobs = request(PHOTO, Preprocess(model="depths", into="depth"))
    job = desk.run(work, *blobs)
    desk.tell(down.Unload(unload="u", model=gone))
    assert "unloaded" in desk.failure(job).message
    assert gone not in desk.loop.models


def test_a_job_whose_picture_is_made_outlives_the_network(places: dict[str, Path]) -> None:
    desk = desk_of({id: places[id] for id in ("sd", "net", "depths")})
    preprocess = Preprocess(model="depths", into="depth")
    expected = picture(desk, PHOTO, preprocess)
    work, blobs = request(PHOTO, preprocess)
    job = desk.run(work, *blobs)
    desk.loop.tick()
    desk.tell(down.Unload(unload="u", model="depths"))
    desk.finish()
    assert (desk.picture(job) == expected).all()


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_a_network_that_waits_on_the_host_makes_the_same_and_goes_back(
    places: dict[str, Path], desk: Desk, offload: Any, memory_apart: None
) -> None:
    networks = {name: place for name, place in places.items() if name not in ("sd", "net")}
    offloaded = desk_of(networks, down.LoadPlan(offload=offload))
    for model, into in KINDS:
        modules = offloaded.loop.preprocessor(model).annotator.modules()
        host = {id(one): one.data_ptr() for module in modules for one in module.parameters()}
        seen, hooks = watched(modules)
        ours = outside(offloaded, model, into)
        for hook in hooks:
            hook.remove()
        assert (ours == outside(desk, model, into)).all()
        assert {id(one): one.data_ptr() for module in modules for one in module.parameters()} == host
        if offload == "model":
            # What computed were copies.
            assert seen
            assert not seen & set(host.values())


def watched(modules: list[torch.nn.Module]) -> tuple[set[int], list[Any]]:
    """Where the weights lie that compute, once they did; and the hooks that see to it."""
    seen: set[int] = set()

    def look(part: torch.nn.Module, *_: Any) -> None:
        seen.update(one.data_ptr() for one in part.parameters(recurse=False))

    return seen, [part.register_forward_hook(look) for module in modules for part in module.modules()]


def missing_norm(folder: Path) -> str:
    return edit(folder / "edges.safetensors", lambda tensors: tensors.pop("norm"), "`norm`")


def wrong_shape(folder: Path) -> str:
    wrong = {"block2.convs.0.weight": torch.zeros(4, 4, 3, 3)}
    return edit(folder / "edges.safetensors", lambda tensors: tensors.update(wrong), "block2.convs.0.weight")


def truncated(folder: Path) -> str:
    (folder / "edges.safetensors").write_bytes(b"\xff" * 64)
    return "edges.safetensors"


def pickled(folder: Path) -> str:
    (folder / "ControlNetHED.pth").write_bytes(b"\x80")
    return "ControlNetHED.pth"


def missing_depth(folder: Path) -> str:
    tiny_annotators.saved(tiny_annotators.dpt, folder)
    return edit(folder / "model.safetensors", lambda tensors: tensors.pop("head.head.0.weight"), "head.head.0.weight")


def missing_statistics(folder: Path) -> str:
    tiny_annotators.saved(lambda: tiny_annotators.vitpose(simple=False), folder)
    name = "head.batchnorm1.running_var"
    return edit(folder / "model.safetensors", lambda tensors: tensors.pop(name), name)


def unreadable_sight(folder: Path) -> str:
    tiny_annotators.saved(tiny_annotators.dpt, folder)
    (folder / "preprocessor_config.json").write_text('{"size": {"longest": 3}}')
    return "preprocessor_config.json"


def one_edge(folder: Path) -> str:
    config = tiny_annotators.vitpose().config
    config.backbone_config.image_size = 32
    tiny_annotators.saved(lambda: transformers.VitPoseForPoseEstimation(config), folder)
    return "`image_size` is 32"


def edit(file: Path, change: Callable[[dict[str, torch.Tensor]], Any], named: str) -> str:
    if not file.exists():
        tiny_annotators.saved_hed(file)
    tensors = dict(load_file(file))
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return named


FAULTS = [missing_norm, wrong_shape, truncated, pickled, missing_depth, missing_statistics, unreadable_sight, one_edge]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_what_is_wrong_with_a_network_is_said_with_file_and_tensor(
    tmp_path: Path, fault: Callable[[Path], str]
) -> None:
    named = fault(tmp_path)
    answer = Desk().load(folder_spec("broken", tmp_path, family="preprocessor"))
    assert isinstance(answer, up.LoadFailed)
    assert answer.failure.outcome == "model_load"
    assert named in (answer.failure.detail or "")
    assert str(tmp_path) in (answer.failure.detail or "")


@pytest.mark.parametrize("kind", ["class", "unnamed", "keypoints", "detector", "person"])
def test_a_network_of_another_kind_is_not_supported(tmp_path: Path, kind: str) -> None:
    tiny_annotators.saved(lambda: tiny_annotators.vitpose(keypoints=16 if kind == "keypoints" else 17), tmp_path)
    if kind in ("detector", "person"):
        tiny_annotators.saved(lambda: tiny_annotators.rt_detr("cat"), tmp_path / "detector")
    named = {
        "class": (tmp_path, ["OtherModel"]),
        "unnamed": (tmp_path, 7),
        "detector": (tmp_path / "detector", ["OtherModel"]),
    }
    if kind in named:
        folder, classes = named[kind]
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"architectures": classes}))
    answer = Desk().load(folder_spec("other", tmp_path, family="preprocessor"))
    assert isinstance(answer, up.LoadFailed)
    assert answer.failure.outcome == "not_supported"
    words = {
        "class": "OtherModel",
        "unnamed": "without `architectures`",
        "keypoints": "16 keypoints",
        "detector": "OtherModel",
        "person": "`person`",
    }
    assert words[kind] in answer.failure.message
