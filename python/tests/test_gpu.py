"""What only a CUDA device can show: captured graphs compute what eager runs compute, and memory comes back."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calotype_worker.device import Device
from calotype_worker.graphs import StepGraphs
from calotype_worker.kernels import geglu, serve
from calotype_worker.pipelines.annotators.preprocessor import Preprocessor
from calotype_worker.pulse import Pulse
from calotype_worker.tick import Loop
from calotype_worker.wire import down, up
from calotype_worker.wire.words import BlobRef
from calotype_worker.wire.work import Adapter, ControlUnit

from . import exact_kernels, tiny, tiny_annotators
from .conftest import MODELS
from .desk import TINY, Desk, folder_spec, generate, psnr
from .process import Start, faulty, workers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


class GpuDesk(Desk):
    def __post_init__(self) -> None:
        super().__post_init__()
        self.loop = Loop(Device("cuda", torch.device("cuda", 0)), Pulse(), self._hear)


def pictures(desk: Desk, seeds: list[int], **changes: Any) -> list[np.ndarray[Any, Any]]:
    jobs = []
    for seed in seeds:
        work, blobs = generate([seed], edge=256, **{"steps": 8, **changes})
        jobs.append(desk.run(work, *blobs))
    desk.finish()
    return [desk.picture(job) for job in jobs]


def desk_of(dtype: str = "f32") -> GpuDesk:
    desk = GpuDesk()
    desk.load(folder_spec("calotype-tiny", TINY), dtype=dtype)
    assert desk.loop.models, desk.said[-1]
    return desk


def test_graphs_give_the_pictures_of_the_cpu() -> None:
    expected = pictures(Desk().tiny(), [1, 2, 3])
    desk = desk_of()
    for _ in range(3):
        assert all(psnr(ours, theirs) >= 45 for ours, theirs in zip(pictures(desk, [1, 2, 3]), expected))
    assert desk.loop.stepper.graphs.problem is None
    assert desk.loop.stepper.graphs._graphs
    assert desk.loop.stepper.graphs.pool_bytes > 0


def test_a_padded_batch_and_a_lora_get_graphs_of_their_own() -> None:
    lora = Adapter(id="pixel", path=str(MODELS / "loras" / "calotype-tiny-pixel.safetensors"), weight=1.0)
    desk = desk_of()
    eager = desk_of()
    eager.loop.stepper.graphs = StepGraphs(Device("cpu", torch.device("cpu")))
    for changes in ({}, {"adapters": [lora]}, {"guidance": 1.0}, {}):
        for seeds in ([1], [1, 2, 3, 4, 5], [1]):
            ours, theirs = (pictures(one, seeds, **changes) for one in (desk, eager))
            assert all(psnr(a, b) >= 50 for a, b in zip(ours, theirs))


def test_memory_is_back_after_an_unload() -> None:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    desk = desk_of("f16")
    pictures(desk, [1, 2])
    pictures(desk, [1, 2])
    desk.tell(down.Unload(unload="u"))
    assert torch.cuda.memory_allocated() - before < 4 << 20


def test_offload_moves_the_state_to_the_host_and_back() -> None:
    desk = desk_of()
    expected = pictures(desk, [7])[0]
    work, blobs = generate([7], edge=256, steps=8)
    job = desk.run(work, *blobs)
    desk.until(lambda: desk.loop.jobs[0].steps_done == 3)
    desk.tell(down.Pause(job=job, attempt=1, offload=True))
    assert desk.loop.jobs[0].stage.latents.device.type == "cpu"  # type: ignore[union-attr]
    desk.tell(down.Resume(job=job, attempt=1))
    desk.finish()
    assert psnr(desk.picture(job), expected) >= 50


def with_segment(folder: Path) -> down.ModelSpec:
    """The embedded model, its UNet in shared memory."""
    source = TINY / "unet/diffusion_pytorch_model.safetensors"
    path = Path(shutil.copyfile(source, folder / "segment"))
    held = down.Segment(id="s", path=str(path), bytes=path.stat().st_size)
    plain = folder_spec("calotype-tiny", TINY)
    return down.ModelSpec(
        id=plain.id, family=plain.family, format=plain.format, components=plain.components, segments={"unet": held}
    )


def test_a_segment_is_page_locked_once_and_gives_the_picture_of_its_file(tmp_path: Path) -> None:
    spec = with_segment(tmp_path)
    expected = pictures(desk_of("f16"), [1])[0]
    desk = GpuDesk()
    for _ in range(2):
        loaded = desk.load(spec, dtype="f16")
        assert isinstance(loaded, up.Loaded), loaded
        assert {"map", "pin", "upload"} <= loaded.phases_ms.keys()
        assert psnr(pictures(desk, [1])[0], expected) >= 50
    # Either locked, or it was said why not; nothing of a refusal is left for the next launch.
    assert desk.loop.device.segments._mapped["s"].is_locked or any("cudaHost" in m.message for m in desk.all(up.Log))
    desk.tell(down.Release(segment="s"))
    assert desk.said[-1].message == up.Released(segment="s")
    assert psnr(pictures(desk, [1])[0], expected) >= 50


def test_weights_lie_as_they_would_by_themselves_and_all_go_with_their_model(tmp_path: Path) -> None:
    spec = with_segment(tmp_path)
    desk = GpuDesk()
    # What an unload gives back of earlier tests' work, such as the workspaces of products, would be missed afterwards.
    assert isinstance(desk.load(spec, dtype="f16"), up.Loaded)
    desk.tell(down.Unload(unload="u"))
    before = torch.cuda.memory_allocated()
    for dtype in ("f16", "f32"):
        loaded = desk.load(spec, dtype=dtype)
        assert isinstance(loaded, up.Loaded), loaded
        parameters = [p for module in desk.loop.family(spec.id).modules() for p in module.parameters()]
        for parameter in parameters:
            alone = parameter.clone(memory_format=torch.contiguous_format)
            alone = alone.to(memory_format=torch.channels_last) if alone.ndim == 4 else alone
            assert parameter.stride() == alone.stride()
            assert parameter.data_ptr() % 512 == 0
        rooms = {
            parameter.untyped_storage().data_ptr(): parameter.untyped_storage().nbytes() for parameter in parameters
        }
        assert len(rooms) < 10 < len(parameters)
        assert loaded.resident_bytes <= sum(rooms.values()) <= loaded.resident_bytes + 512 * len(parameters)
        del parameters, parameter, alone
        desk.tell(down.Unload(unload="u"))
        assert torch.cuda.memory_allocated() == before
    # Else the driver would go on to copy from these pages whatever is mapped to their addresses next.
    desk.tell(down.Release(segment="s"))
    assert desk.said[-1].message == up.Released(segment="s")


def test_groups_grow_as_memory_is_learned_and_peaks_tell_the_phases() -> None:
    desk = desk_of("f16")
    jobs = []
    for seed in range(8):
        work, blobs = generate([seed], edge=256, steps=12)
        jobs.append(desk.run(work, *blobs))
    desk.finish()
    sizes = desk.result(jobs[0])[0].batch_sizes
    assert sizes[:4] == [2, 4, 8, 16]
    assert all(known.bytes_a_sample > 0 for known in desk.loop.stepper.sizes._known.values())
    for job in jobs:
        result = desk.result(job)[0]
        assert result.phase_peaks_bytes is not None
        assert result.phase_peaks_bytes.keys() == {"encode", "denoise", "decode"}
        assert result.peak_bytes >= max(result.phase_peaks_bytes.values())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_each_kernel_agrees_with_exact_numbers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    exact_kernels.group_norms(dtype, "cuda", (13, 8, 256))
    exact_kernels.layer_norms(dtype, "cuda", 1024)
    exact_kernels.sums(dtype, "cuda", 1024)
    exact_kernels.gates(dtype, "cuda", 1024)
    if dtype != torch.float32 and torch.cuda.get_device_capability() >= geglu.TENSOR_MEMORY:
        exact_kernels.gated_products(dtype, "cuda", 1023)
    exact_kernels.totals(dtype, "cuda", 128)
    exact_kernels.remembered(dtype, "cuda", 128)
    exact_kernels.doublings(dtype, "cuda", 64)
    assert serve.problem() is None


@pytest.mark.parametrize("plan", ["none", "model", "sequential"])
def test_a_lora_is_off_again_bit_for_bit_and_no_plan_gives_up_the_kernels(plan: Any) -> None:
    lora = Adapter(id="pixel", path=str(MODELS / "loras" / "calotype-tiny-pixel.safetensors"), weight=1.0)
    desk = GpuDesk()
    spec = folder_spec("calotype-tiny", TINY)
    desk.tell(down.Load(load="l", model=spec, dtype="f16", budget_bytes=0, plan=down.LoadPlan(offload=plan)))
    expected = pictures(Desk().tiny(), [1])[0]
    # The third is a graph's, where there are graphs.
    before = [pictures(desk, [1])[0] for _ in range(3)]
    on = pictures(desk, [1], adapters=[lora])[0]
    after = pictures(desk, [1])[0]
    assert psnr(before[2], expected) >= 35
    assert psnr(on, before[2]) < 35
    assert (after == before[2]).all()
    assert serve.problem() is None


def test_a_merged_lora_that_is_forgotten_takes_its_graphs_and_its_memory_with_it() -> None:
    desk = GpuDesk().tiny()
    lora = Adapter(id="pixel", path=str(MODELS / "loras" / "calotype-tiny-pixel.safetensors"), weight=1.0)
    for _ in range(3):
        pictures(desk, [1])
    for _ in range(3):
        on = pictures(desk, [1], adapters=[lora])[0]
    model, graphs = desk.loop.family("calotype-tiny"), desk.loop.stepper.graphs
    merged = sum(made.merged_bytes for made in model.adapted._sets.values())
    assert any(captured.bound.key for captured in graphs._graphs.values())
    before = torch.cuda.memory_allocated()
    desk.loop.forget_idle_sets(0)
    assert graphs._graphs and not any(captured.bound.key for captured in graphs._graphs.values())
    assert before - torch.cuda.memory_allocated() >= merged > 0
    assert psnr(pictures(desk, [1], adapters=[lora])[0], on) >= 50


@torch.no_grad()
@pytest.mark.parametrize("offload", ["none", "model", "sequential"])
def test_a_preprocessor_makes_the_pictures_of_the_cpu(tmp_path: Path, offload: Any) -> None:
    tiny_annotators.saved(tiny_annotators.vitpose, tmp_path / "poses")
    tiny_annotators.saved(lambda: tiny_annotators.rt_detr("person"), tmp_path / "poses" / "detector")
    for id, build in (("hybrid", tiny_annotators.dpt_hybrid), ("metric", tiny_annotators.zoedepth)):
        tiny_annotators.saved(build, tmp_path / id)
    (tmp_path / "edges").mkdir()
    tiny_annotators.saved_hed(tmp_path / "edges" / "hed.safetensors")
    image = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (90, 70, 3), dtype=np.uint8))
    desks = [GpuDesk(), Desk()]
    for id, into in (("hybrid", "depth"), ("hybrid", "normal"), ("metric", "depth"), ("edges", "softedge")):
        ours, theirs = (made_by(desk, id, tmp_path / id, image, into, offload) for desk in desks)
        assert float((ours.float() - theirs.float()).abs().mean()) < 2, (id, into)
    # Peaks of random heatmaps may lie elsewhere by rounding: that it draws at all is what a device can break.
    assert made_by(desks[0], "poses", tmp_path / "poses", image, "pose", offload).shape == (64, 48, 3)
    for id, net in desks[0].loop.models.items():
        assert isinstance(net, Preprocessor)
        places = {parameter.device.type for module in net.annotator.modules() for parameter in module.parameters()}
        assert places == {"cuda" if offload == "none" else "cpu"}, id


def made_by(desk: Desk, id: str, place: Path, image: torch.Tensor, into: str, offload: Any) -> torch.Tensor:
    spec = folder_spec(id, place, family="preprocessor")
    desk.tell(down.Load(load=id, model=spec, dtype="f32", budget_bytes=0, plan=down.LoadPlan(offload=offload)))
    assert id in desk.loop.models, desk.said[-1]
    return desk.loop.preprocessor(id).picture(image, into, 64, 48)


@pytest.mark.parametrize("mode", ["balanced", "prompt", "control"])
def test_control_units_of_each_mode_compute_in_half_precision(tmp_path: Path, mode: Any) -> None:
    tiny.saved(tiny.sd(), tmp_path / "sd")
    tiny.controlnet(tiny.TEXT, None, 5, zero=False).save_pretrained(tmp_path / "net")
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    unit = ControlUnit(
        model="net", image=BlobRef(blob=1, dtype="u8", shape=[64, 64, 3]), weight=0.5, start=0.0, end=1.0, mode=mode
    )
    found = []
    for desk, dtype in ((GpuDesk(), "f16"), (Desk(), "f32")):
        desk.load(folder_spec("sd", tmp_path / "sd"), dtype=dtype)
        desk.load(folder_spec("net", tmp_path / "net", family="controlnet"), dtype=dtype)
        work, blobs = generate([1], edge=64, scale=2, model="sd", steps=3, control=[unit])
        job = desk.run(work, *blobs, image.tobytes())
        desk.finish()
        found.append(desk.picture(job))
    assert psnr(*found) >= 30


def test_graphs_serve_control_units_each_with_its_own_picture_and_weight(tmp_path: Path) -> None:
    tiny.saved(tiny.sd(), tmp_path / "sd")
    tiny.controlnet(tiny.TEXT, None, 5, zero=False).save_pretrained(tmp_path / "net")
    images = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)

    def drawn(desk: Desk) -> list[np.ndarray[Any, Any]]:
        jobs = []
        for seed, (image, weight) in enumerate(zip(images, (0.4, 0.8))):
            picture = BlobRef(blob=1, dtype="u8", shape=[64, 64, 3])
            unit = ControlUnit(model="net", image=picture, weight=weight, start=0.0, end=1.0)
            work, blobs = generate([seed], edge=64, scale=2, model="sd", steps=4, control=[unit])
            jobs.append(desk.run(work, *blobs, image.tobytes()))
        desk.finish()
        return [desk.picture(job) for job in jobs]

    plain, gpu = Desk(), GpuDesk()
    for desk in (plain, gpu):
        desk.load(folder_spec("sd", tmp_path / "sd"), dtype="f32")
        desk.load(folder_spec("net", tmp_path / "net", family="controlnet"), dtype="f32")
    expected = drawn(plain)
    for _ in range(3):
        assert all(psnr(ours, theirs) >= 45 for ours, theirs in zip(drawn(gpu), expected))
    graphs = gpu.loop.stepper.graphs
    assert graphs.problem is None
    assert any(captured.input.control for captured in graphs._graphs.values())
    gpu.tell(down.Unload(unload="u", model="net"))
    assert not graphs._graphs


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_a_controlnet_is_on_the_device_only_while_the_denoiser_computes(tmp_path: Path, offload: Any) -> None:
    tiny.saved(tiny.sd(), tmp_path / "sd")
    tiny.controlnet(tiny.TEXT, None, 5, zero=False).save_pretrained(tmp_path / "net")
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    unit = ControlUnit(
        model="net", image=BlobRef(blob=1, dtype="u8", shape=[64, 64, 3]), weight=0.5, start=0.0, end=1.0
    )
    found: list[np.ndarray[Any, Any]] = []
    seen: list[tuple[str, set[str]]] = []
    for plan in (down.LoadPlan(), down.LoadPlan(offload=offload)):
        desk = GpuDesk()
        for id, family in (("sd", "sd"), ("net", "controlnet")):
            spec = folder_spec(id, tmp_path / id, family=family)
            desk.tell(down.Load(load=id, model=spec, dtype="f16", budget_bytes=0, plan=plan))
            assert id in desk.loop.models, desk.said[-1]
        model, net = desk.loop.family("sd"), desk.loop.control_net("net").module
        modules = {"unet": model.denoiser, "net": net, "vae": model.vae}
        for name, part in {"unet": model.denoiser.conv_in, "vae": model.vae.decoder.conv_in}.items():
            part.register_forward_pre_hook(looks(seen, name, modules))
        work, blobs = generate([1], edge=64, scale=2, model="sd", steps=2, control=[unit])
        job = desk.run(work, *blobs, image.tobytes())
        seen.clear()
        desk.finish()
        found.append(desk.picture(job))
    by_layers = [("unet", {"unet"}), ("unet", {"unet"}), ("vae", {"vae"})]
    whole = [("unet", {"unet", "net"}), ("unet", {"unet", "net"}), ("vae", {"vae"})]
    assert seen == (by_layers if offload == "sequential" else whole)
    assert psnr(*found) >= 50
    desk.loop.make_room()
    assert {one.device.type for module in modules.values() for one in module.parameters()} == {"cpu"}


def looks(seen: list[tuple[str, set[str]]], name: str, modules: dict[str, Any]) -> Callable[..., None]:
    """Notes which modules have weights on the device when a part computes."""

    def look(*_: Any) -> None:
        there = {other for other, module in modules.items() if any(one.is_cuda for one in module.parameters())}
        seen.append((name, there))

    return look


@pytest.fixture
def start() -> Iterator[Start]:
    with workers() as begin:
        yield begin


def test_an_assert_on_the_device_in_a_step_ends_the_worker_and_the_next_one_is_well(
    start: Start, tmp_path: Path
) -> None:
    once = ["device_assert", "--once", str(tmp_path / "once")]
    worker = faulty(start, *once, kind="cuda").run("j", steps=6)
    worker.step(1)
    worker.ends_with("device-side assert")
    again = faulty(start, *once, kind="cuda").run("j", steps=6)
    assert len(again.picture("j")) == 64 * 64 * 3
    again.leave()
