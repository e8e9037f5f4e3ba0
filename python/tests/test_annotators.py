"""The networks that make pictures for ControlNets, on small random weights, against the libraries' own modules."""

import json
import math
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from calotype_worker.pipelines.annotators import depth, pose, skeleton
from calotype_worker.pipelines.annotators.preprocessor import Preprocessor
from calotype_worker.pipelines.annotators.seeing import HALVES, Seeing
from calotype_worker.wire import down, up

from . import tiny_annotators as tiny
from .desk import Desk, folder_spec

EDGE = 48
"""Of the job; networks see 32."""
IMAGE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
SEES = {"size": {"height": 32, "width": 32}, "image_mean": HALVES, "image_std": HALVES, "do_pad": False, "resample": 3}


def resident(desk: Desk, place: Path, **changes: Any) -> Preprocessor:
    role = "root" if place.is_dir() else "preprocessor"
    spec = down.ModelSpec(id="net", family="preprocessor", format="diffusers", components={role: str(place)})
    loaded = desk.load(spec, **changes)
    assert isinstance(loaded, up.Loaded), loaded
    return desk.loop.preprocessor("net")


def sees(folder: Path, **changes: Any) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(SEES | changes))


@torch.no_grad()
def made(preprocessor: Preprocessor, into: str, image: torch.Tensor = IMAGE) -> torch.Tensor:
    picture = preprocessor.picture(image, into, EDGE, EDGE)
    assert (picture.shape, picture.dtype) == ((EDGE, EDGE, 3), torch.uint8)
    return picture


DEPTHS = [
    (tiny.dpt, 1),
    (tiny.dpt_hybrid, 1),
    (tiny.depth_anything, 1),
    (lambda: tiny.depth_anything("metric"), -1),
    (tiny.zoedepth, -1),
]


@torch.no_grad()
@pytest.mark.parametrize(("build", "sign"), DEPTHS)
def test_the_depth_picture_is_the_networks_own_output_with_near_in_white(tmp_path: Path, build: Any, sign: int) -> None:
    theirs = tiny.saved(build, tmp_path)
    sees(tmp_path)
    desk = Desk()
    picture = made(resident(desk, tmp_path), "depth")
    pixels = (IMAGE.permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
    found = functional.interpolate(theirs(pixel_values=pixels).predicted_depth[None], (EDGE, EDGE), mode="bicubic")
    near = found[0, 0] * sign
    expected = (near - near.min()) / (near.max() - near.min()) * 255
    assert float(expected.std()) > 10
    assert float((picture.float() - expected[..., None]).abs().max()) < 0.6
    assert picture.min() == 0
    assert picture.max() == 255


def test_a_picture_of_any_size_is_seen_as_the_config_says(tmp_path: Path) -> None:
    sees(tmp_path, size={"height": 64, "width": 64}, keep_aspect_ratio=True, ensure_multiple_of=14)
    seeing = Seeing.of(tmp_path, {})
    processing = pytest.importorskip("transformers.models.dpt.image_processing_pil_dpt")
    theirs = processing.DPTImageProcessorPil.from_pretrained(tmp_path)
    for height, width in [(40, 90), (90, 40), (64, 64), (200, 31), (5, 7)]:
        smooth = torch.linspace(0, 255, height * width * 3).reshape(height, width, 3).to(torch.uint8)
        ours = seeing.view(smooth)
        expected = theirs(smooth.numpy(), return_tensors="pt")["pixel_values"]
        assert ours.shape == expected.shape
        # PIL rounds to bytes after each of two passes.
        assert float((ours - expected).abs().max()) < 1.5 / 127.5


@torch.no_grad()
def test_zoedepths_margin_is_added_and_taken_off(tmp_path: Path) -> None:
    theirs = tiny.saved(tiny.zoedepth, tmp_path)
    sees(tmp_path, do_pad=True)
    network: Any = resident(Desk(), tmp_path).annotator
    near = network.near(IMAGE, 32, 32)
    margin = int(math.sqrt(16) * 3)
    whole = functional.pad(IMAGE.permute(2, 0, 1)[None] / 255, (margin,) * 4, mode="reflect")
    pixels = functional.interpolate(whole, (32, 32), mode="bicubic", antialias=True).clamp(0, 1) * 2 - 1
    found = functional.interpolate(
        theirs(pixel_values=pixels).predicted_depth[None], (32 + 2 * margin,) * 2, mode="bicubic"
    )
    expected = -found[0, 0, margin:-margin, margin:-margin]
    assert torch.allclose(near, expected, atol=1e-4 * float(expected.abs().max()))


def test_normals_of_a_tilted_plane_are_constant_and_unit() -> None:
    across = torch.linspace(0.2, 1.0, 33).expand(20, -1)
    found = depth.normals(across, relief=32.0)
    assert torch.allclose(found.norm(dim=-1), torch.ones(20, 33))
    inner = found[1:-1, 1:-1]
    assert torch.allclose(inner, inner[0, 0].expand_as(inner), atol=1e-5)
    # 0.8 of 32 over 32 pixels, by Sobel's sum of 8.
    expected = torch.tensor([6.4, 0.0, 2 * math.pi])
    assert torch.allclose(inner[0, 0], expected / expected.norm(), atol=1e-5)
    assert torch.allclose(depth.normals(across.T, 32.0)[1:-1, 1:-1, 1], inner[..., 0].T, atol=1e-5)


def test_the_background_and_a_flat_depth_face_the_viewer() -> None:
    forward = torch.tensor([128, 128, 255], dtype=torch.uint8)
    flat = depth.coloured(depth.normals(depth.relative(torch.full((9, 9), 3.0)), 9.0))
    assert (flat == forward).all()
    ramp = depth.coloured(depth.normals(torch.linspace(0.0, 1.0, 101).expand(9, -1), 100.0))
    assert (ramp[:, :10] == forward).all()
    assert (ramp[1:-1, 11:100, 0] > 200).all()


@torch.no_grad()
@pytest.mark.parametrize("build", [tiny.dpt, tiny.dpt_hybrid])
def test_normals_are_made_by_the_depth_network(tmp_path: Path, build: Any) -> None:
    tiny.saved(build, tmp_path)
    sees(tmp_path)
    net = resident(Desk(), tmp_path)
    network: Any = net.annotator
    near = network.near(IMAGE, EDGE, EDGE)
    # The annotator's own network counts by itself; what others count in says nothing.
    relief = float(near.max() - near.min()) * EDGE / 384 if build is tiny.dpt_hybrid else EDGE
    expected = depth.normals(depth.relative(near), relief) * 127.5 + 127.5
    picture = made(net, "normal")
    assert float((picture - expected).abs().max()) <= 0.51
    assert len(np.unique(picture.reshape(-1, 3).numpy(), axis=0)) > 20


@torch.no_grad()
@pytest.mark.parametrize("in_folder", [True, False])
def test_soft_edges_are_the_mean_of_the_five_side_outputs(tmp_path: Path, in_folder: bool) -> None:
    hed = tiny.saved_hed(tmp_path / "ControlNetHED.safetensors")
    weights = hed.state_dict()
    assert {"norm", "block1.convs.0.weight", "block3.convs.2.bias", "block5.projection.weight"} <= weights.keys()
    net = resident(Desk(), tmp_path if in_folder else tmp_path / "ControlNetHED.safetensors")
    hidden = IMAGE.permute(2, 0, 1)[None].float() - weights["norm"]
    maps = []
    for block, convs in enumerate((2, 2, 3, 3, 3), 1):
        hidden = hidden if block == 1 else functional.max_pool2d(hidden, 2, 2)
        for conv in range(convs):
            weight, bias = (weights[f"block{block}.convs.{conv}.{part}"] for part in ("weight", "bias"))
            hidden = functional.relu(functional.conv2d(hidden, weight, bias, padding=1))
        weight, bias = (weights[f"block{block}.projection.{part}"] for part in ("weight", "bias"))
        edge = functional.conv2d(hidden, weight, bias)
        maps.append(functional.interpolate(edge, size=(32, 32), mode="bilinear"))
    expected = torch.sigmoid(torch.stack(maps).mean(dim=0))[0, 0] * 255
    picture = net.picture(IMAGE, "softedge", 32, 32)
    assert float(expected.std()) > 1
    assert float((picture.float() - expected[..., None]).abs().max()) < 0.6
    assert made(net, "softedge", IMAGE[:20, :27]).shape == (EDGE, EDGE, 3)
    assert net.picture(IMAGE, "softedge", 8, 16).shape == (8, 16, 3)


PERSON = [  # COCO's keypoints: x, y.
    *((200, 60), (210, 50), (190, 50), (225, 55), (175, 55), (250, 120), (150, 120), (280, 200), (120, 200)),
    *((300, 280), (100, 280), (235, 290), (165, 290), (240, 390), (160, 390), (245, 480), (155, 480)),
]


def person(*hidden: int) -> torch.Tensor:
    return torch.tensor([[x, y, 0.2 if index in hidden else 0.9] for index, (x, y) in enumerate(PERSON)])


def test_a_pose_has_openposes_colours_at_its_keypoints_and_limbs() -> None:
    picture = skeleton.drawn([person()], 512, 400)
    assert picture.shape == (512, 400, 3)

    def at(x: float, y: float) -> list[int]:
        return picture[round(y), round(x)].tolist()

    keypoints = {0: [255, 0, 0], 6: [255, 170, 0], 8: [255, 255, 0], 5: [85, 255, 0], 9: [0, 255, 85]}
    keypoints |= {16: [0, 170, 255], 15: [85, 0, 255], 2: [170, 0, 255], 3: [255, 0, 85]}
    for index, colour in keypoints.items():
        assert at(*PERSON[index]) == colour
    # The neck, which COCO has not; the upper right arm, the left shin, and from the neck to the nose.
    assert at(200, 120) == [255, 85, 0]
    assert at(135, 160) == [153, 102, 0]
    assert at(242.5, 435) == [0, 51, 153]
    assert at(200, 90) == [0, 0, 153]
    assert at(20, 20) == [0, 0, 0]


def test_what_the_network_is_not_sure_of_is_not_drawn() -> None:
    # Without one shoulder there is no neck, and no limb from either.
    picture = skeleton.drawn([person(6)], 512, 400)
    assert picture[120, 150].sum() == 0
    assert picture[120, 200].sum() == 0
    assert picture[160, 265].sum() > 0
    assert skeleton.drawn([], 512, 400).sum() == 0
    assert skeleton.drawn([person(*range(17))], 512, 400).sum() == 0


def test_limbs_are_as_wide_as_the_picture_is_large() -> None:
    widths = []
    for scale in (1, 2):
        picture = skeleton.drawn([person() * torch.tensor([scale, scale, 1.0])], 512 * scale, 512 * scale)
        widths.append(int((picture[90 * scale].sum(dim=-1) > 0).sum()))
    assert widths[0] in (7, 8, 9)
    assert widths[1] in (15, 16, 17)


def test_the_refined_peaks_are_those_of_transformers() -> None:
    scipy = pytest.importorskip("transformers.models.vitpose.image_processing_pil_vitpose")
    x, y = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="xy")
    centers = torch.tensor([[[20.3, 30.7], [11.0, 40.0], [33.49, 8.2]], [[9.9, 9.1], [25.5, 25.4], [30.2, 50.8]]])
    maps = torch.exp(-((x - centers[..., 0, None, None]) ** 2 + (y - centers[..., 1, None, None]) ** 2) / 8)
    coords, scores = scipy.get_keypoint_predictions(maps.numpy())
    expected = scipy.post_dark_unbiased_data_processing(coords, maps.numpy(), kernel=11)
    ours = pose.peaks_of(maps)
    assert np.allclose(ours[..., :2], expected, atol=1e-3)
    assert np.allclose(ours[..., 2:], scores)
    assert torch.allclose(ours[..., :2], centers, atol=0.1)
    assert torch.isfinite(pose.peaks_of(torch.zeros(1, 2, 4, 3))).all()


@torch.no_grad()
@pytest.mark.parametrize(("experts", "simple"), [(1, True), (2, True), (1, False)])
def test_keypoints_are_those_of_transformers_processor(tmp_path: Path, experts: int, simple: bool) -> None:
    processing = pytest.importorskip("transformers.models.vitpose.image_processing_pil_vitpose")
    theirs = tiny.saved(lambda: tiny.vitpose(experts=experts, simple=simple), tmp_path)
    network: Any = resident(Desk(), tmp_path).annotator
    processor = processing.VitPoseImageProcessorPil(size={"height": 32, "width": 24})
    boxes = [(4.0, 2.0, 12.0, 25.0), (0.0, 0.0, 32.0, 32.0), (-3.0, 10.0, 20.0, 9.0)]
    image = torch.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).to(torch.uint8)
    inputs = processor(image.numpy(), boxes=[[*boxes]], return_tensors="pt")
    areas = torch.stack([network._area(box) for box in boxes])
    pixels = image.permute(2, 0, 1)[None] / 255
    ours = network.seeing.normalised(pose.cut_out(pixels, areas, 32, 24))
    # Within a pixel of the border they blend with black or not.
    is_inside = pose.cut_out(torch.ones_like(pixels), areas, 32, 24) == 1
    assert is_inside.sum() > 1000
    assert float((ours - inputs["pixel_values"])[is_inside].abs().max()) < 0.03
    which = {"dataset_index": torch.zeros(3, dtype=torch.long)} if experts > 1 else {}
    heatmaps = theirs(pixel_values=ours, **which).heatmaps
    for person, area, maps in zip(network.keypoints(image, boxes), areas, heatmaps):
        index = maps.flatten(1).argmax(dim=1)
        coarse = torch.stack([index % maps.shape[2], index // maps.shape[2]], dim=1)
        size = torch.tensor([maps.shape[2] - 1.0, maps.shape[1] - 1.0])
        assert float(((person[:, :2] - area[:2]) / area[2:] * size - coarse).abs().max()) < 1.1
        assert torch.allclose(person[:, 2], maps.flatten(1).amax(dim=1), atol=1e-4)


@torch.no_grad()
def test_a_detector_finds_the_people_that_are_posed(tmp_path: Path) -> None:
    tiny.saved(tiny.vitpose, tmp_path)
    theirs = tiny.saved(lambda: tiny.rt_detr("cat", "person"), tmp_path / "detector")
    sees(tmp_path / "detector", size={"height": 64, "width": 64}, do_normalize=False)
    net = resident(Desk(), tmp_path)
    network: Any = net.annotator
    pixels = functional.interpolate(IMAGE.permute(2, 0, 1)[None] / 255, (64, 64), mode="bicubic", antialias=True)
    pixels = pixels.clamp(0, 1)
    output = theirs(pixel_values=pixels)
    scores = output.logits[0, :, 1].sigmoid()
    # Random weights are never sure: the threshold of this test lies between them.
    threshold = float(scores.sort().values[2:4].mean())
    expected = [
        ((x - w / 2) * 32, (y - h / 2) * 32, w * 32, h * 32)
        for score, (x, y, w, h) in zip(scores.tolist(), output.pred_boxes[0].tolist())
        if score >= threshold and min(w, h) * 32 >= 1
    ]
    assert expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pose, "LEAST_SCORE", threshold)
        found = network.detector.people(IMAGE)
        made(net, "pose")
    assert np.allclose(found, expected, atol=1e-2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pose, "LEAST_SCORE", 1.1)
        assert made(net, "pose").sum() == 0


@torch.no_grad()
def test_without_a_detector_the_whole_picture_is_one_person(tmp_path: Path) -> None:
    tiny.saved(tiny.vitpose, tmp_path)
    net = resident(Desk(), tmp_path)
    network: Any = net.annotator
    (person,) = network.keypoints(IMAGE, [(0.0, 0.0, 32.0, 32.0)])
    expected = skeleton.drawn([person * torch.tensor([EDGE / 32, EDGE / 32, 1.0])], EDGE, EDGE)
    assert expected.sum() > 0
    assert torch.equal(made(net, "pose"), expected)


@torch.no_grad()
def test_a_box_that_is_no_numbers_is_no_person() -> None:
    nan = float("nan")
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [nan, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, nan], [0.5, 0.5, 0.5, 0.01]])
    logits = torch.full((1, 4, 1), 9.0)

    class Network:
        config = SimpleNamespace(id2label={0: "person"})

        def __call__(self, pixel_values: torch.Tensor) -> Any:
            return SimpleNamespace(logits=logits, pred_boxes=boxes[None])

    network: Any = Network()
    assert pose.Detector(network, Seeing(8, 8)).people(IMAGE) == [(8.0, 8.0, 16.0, 16.0)]


RUNNING = [tiny.dpt_hybrid, tiny.depth_anything, tiny.zoedepth, tiny.vitpose, None]


@pytest.mark.parametrize("build", RUNNING)
def test_nothing_of_a_network_lives_after_its_unload(tmp_path: Path, build: Any) -> None:
    """What it says to hold is what its weights take, which are never of half precision."""
    if build is None:
        tiny.saved_hed(tmp_path / "hed.safetensors")
    else:
        tiny.saved(build, tmp_path)
    if build is tiny.vitpose:
        tiny.saved(lambda: tiny.rt_detr("person"), tmp_path / "detector")
    desk = Desk()
    net = resident(desk, tmp_path, dtype="bf16")
    parameters = [parameter for module in net.annotator.modules() for parameter in module.parameters()]
    assert net.resident_bytes == sum(parameter.nbytes for parameter in parameters)
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    made(net, net.annotator.makes[-1])
    references = [weakref.ref(one) for one in (net, *net.annotator.modules(), *parameters)]
    del net, parameters
    desk.tell(down.Unload(unload="u", model="net"))
    assert [type(one()) for one in references if one() is not None] == []


def test_a_network_that_does_not_fit_its_budget_is_refused(tmp_path: Path) -> None:
    tiny.saved(tiny.dpt, tmp_path)
    answer = Desk().load(folder_spec("net", tmp_path, family="preprocessor"), budget=1000)
    assert isinstance(answer, up.LoadFailed)
    assert answer.failure.outcome == "out_of_memory"
