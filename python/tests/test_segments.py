"""Weights in shared memory: the same pictures, no copy on a CPU, and `released` only once nothing is mapped."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from calotype_worker.device import Device
from calotype_worker.errors import DeviceLost
from calotype_worker.segments import Segments
from calotype_worker.upload import Uploader
from calotype_worker.wire import down, up
from calotype_worker.wire.work import Adapter

from .conftest import FIXTURES
from .desk import TINY, Desk, folder_spec, generate

UNET = "unet/diffusion_pytorch_model.safetensors"
LORA = Adapter(id="tiny", path=str(FIXTURES / "lora_tiny_peft.safetensors"), weight=1.0)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where the system has one."""
    shared = Path("/dev/shm")
    folder = shared / f"calotype-test-{tmp_path.name}" if shared.is_dir() else tmp_path / "memory"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def segment(source: Path, memory: Path, id: str = "s") -> down.Segment:
    path = shutil.copyfile(source, memory / id)
    return down.Segment(id=id, path=str(path), bytes=path.stat().st_size)


def full_precision(memory: Path) -> down.Segment:
    """The UNet in f32: on a CPU nothing of it has to be converted."""
    path = memory / "s"
    save_file({name: tensor.float() for name, tensor in load_file(TINY / UNET).items()}, path)
    return down.Segment(id="s", path=str(path), bytes=path.stat().st_size)


def spec(segments: dict[str, down.Segment], root: Path = TINY) -> down.ModelSpec:
    plain = folder_spec("calotype-tiny", root)
    return down.ModelSpec(
        id=plain.id, family=plain.family, format=plain.format, components=plain.components, segments=segments
    )


def mapped_files() -> str:
    return Path("/proc/self/maps").read_text()


def picture(desk: Desk, **changes: Any) -> Any:
    work, blobs = generate([1], steps=2, **changes)
    job = desk.run(work, *blobs)
    desk.finish()
    return desk.picture(job)


def test_a_model_of_segments_gives_the_pictures_of_its_files(memory: Path, tmp_path: Path) -> None:
    # Configs are read from the folder, weights from nowhere else than the segments.
    root = Path(shutil.copytree(TINY, tmp_path / "model"))
    files = {role: next((root / role).glob("*.safetensors")) for role in ("unet", "vae", "text_encoder")}
    segments = {role: segment(file, memory, role) for role, file in files.items()}
    for file in files.values():
        file.unlink()
    desk = Desk()
    loaded = desk.load(spec(segments, root))
    assert isinstance(loaded, up.Loaded), loaded
    assert set(loaded.phases_ms) == {"read", "map", "convert"}
    plain = Desk().tiny()
    for changes in ({}, {"adapters": [LORA]}, {}):
        assert (picture(desk, **changes) == picture(plain, **changes)).all()


def test_on_a_cpu_weights_of_the_right_type_are_views_of_the_mapping(memory: Path) -> None:
    desk = Desk()
    held = full_precision(memory)
    assert isinstance(desk.load(spec({"unet": held})), up.Loaded)
    mapped = desk.loop.device.segments._mapped["s"]
    unet = desk.loop.family("calotype-tiny").denoiser
    assert all(mapped.holds(parameter.data) for parameter in unet.parameters())
    assert isinstance(desk.load(spec({"unet": held}), dtype="bf16"), up.Loaded)
    unet = desk.loop.family("calotype-tiny").denoiser
    assert not any(mapped.holds(parameter.data) for parameter in unet.parameters())


def test_a_release_is_answered_once_the_last_model_that_uses_it_is_unloaded(memory: Path) -> None:
    desk = Desk()
    held = full_precision(memory)
    assert isinstance(desk.load(spec({"unet": held})), up.Loaded)
    picture(desk, adapters=[LORA])
    desk.tell(down.Release(segment="s"))
    desk.tell(down.Release(segment="s"))
    assert not desk.all(up.Released)
    assert any("`s` is released once" in message.message for message in desk.all(up.Log))
    assert held.path in mapped_files()
    # It is on its way out: nothing new is built on it.
    other = down.ModelSpec(
        id="other", family="sd", format="diffusers", components={"root": str(TINY)}, segments={"unet": held}
    )
    answer = desk.load(other)
    assert isinstance(answer, up.LoadFailed)
    assert "being released" in answer.failure.message
    picture(desk)
    desk.tell(down.Unload(unload="u"))
    assert desk.all(up.Released) == [up.Released(segment="s")]
    assert held.path not in mapped_files()
    # And may come again.
    assert isinstance(desk.load(spec({"unet": held})), up.Loaded)


def test_an_id_that_is_not_known_and_one_that_nothing_uses_are_released_at_once(memory: Path) -> None:
    desk = Desk()
    desk.tell(down.Release(segment="nothing"))
    assert desk.said[-1].message == up.Released(segment="nothing")
    held = segment(TINY / UNET, memory)
    # In another type than it is stored in: all of it was copied.
    assert isinstance(desk.load(spec({"unet": held})), up.Loaded)
    assert held.path in mapped_files()
    desk.tell(down.Release(segment="s"))
    assert desk.said[-1].message == up.Released(segment="s")
    assert held.path not in mapped_files()


def test_a_load_that_failed_keeps_no_segment_from_its_release(memory: Path) -> None:
    desk = Desk()
    held = segment(TINY / "vae/diffusion_pytorch_model.safetensors", memory)
    answer = desk.load(spec({"unet": held}))
    assert isinstance(answer, up.LoadFailed)
    assert held.path in (answer.failure.detail or "")
    assert "conv_in.weight" in (answer.failure.detail or "")
    desk.tell(down.Release(segment="s"))
    assert desk.said[-1].message == up.Released(segment="s")
    assert held.path not in mapped_files()


def shorter(held: down.Segment) -> down.Segment:
    Path(held.path).write_bytes(Path(held.path).read_bytes()[:-4])
    return held


def announced_wrongly(held: down.Segment) -> down.Segment:
    return down.Segment(id=held.id, path=held.path, bytes=held.bytes + 4096)


def cut_and_announced(held: down.Segment) -> down.Segment:
    shorter(held)
    return down.Segment(id=held.id, path=held.path, bytes=held.bytes - 4)


def garbage(held: down.Segment) -> down.Segment:
    Path(held.path).write_bytes(b"\xff" * held.bytes)
    return held


def empty(held: down.Segment) -> down.Segment:
    Path(held.path).write_bytes(b"")
    return down.Segment(id=held.id, path=held.path, bytes=0)


def absent(held: down.Segment) -> down.Segment:
    Path(held.path).unlink()
    return held


def beyond(held: down.Segment) -> down.Segment:
    """Offsets that leave the file."""
    data = Path(held.path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = max((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"][1])
    begin, end = header[name]["data_offsets"]
    header[name]["data_offsets"] = [begin + (1 << 40), end + (1 << 40)]
    text = json.dumps(header).encode()
    Path(held.path).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return down.Segment(id=held.id, path=held.path, bytes=Path(held.path).stat().st_size)


@pytest.mark.parametrize(
    "fault", [shorter, announced_wrongly, cut_and_announced, garbage, empty, absent, beyond], ids=lambda f: f.__name__
)
def test_a_segment_that_is_wrong_is_named_and_not_kept(
    memory: Path, fault: Callable[[down.Segment], down.Segment]
) -> None:
    held = fault(segment(TINY / UNET, memory))
    desk = Desk()
    answer = desk.load(spec({"unet": held}))
    assert isinstance(answer, up.LoadFailed)
    assert answer.failure.outcome == "model_load"
    assert held.path in (answer.failure.detail or "")
    assert held.path not in mapped_files()
    assert isinstance(desk.load(folder_spec("calotype-tiny", TINY)), up.Loaded)


def test_a_tensor_that_lies_elsewhere_than_its_segment_is_named_and_leaves_nothing(memory: Path) -> None:
    desk = Desk()
    held = full_precision(memory)
    assert isinstance(desk.load(spec({"unet": held})), up.Loaded)
    mapped = desk.loop.device.segments._mapped["s"]
    name = "mid_block.resnets.1.conv2.weight"
    right = mapped._table[name]
    mapped._table[name] = msgspec.structs.replace(right, data_offsets=(held.bytes, held.bytes + 4))
    answer = desk.load(spec({"unet": held}))
    assert isinstance(answer, up.LoadFailed)
    assert all(word in (answer.failure.detail or "") for word in (held.path, name))
    assert not desk.loop.models
    assert not mapped.in_use()
    mapped._table[name] = right
    assert isinstance(desk.load(spec({"unet": held})), up.Loaded)
    assert (picture(desk) == picture(Desk().tiny())).all()


def test_a_segment_for_a_part_that_is_not_read_and_an_id_that_is_another_are_refused(memory: Path) -> None:
    desk = Desk()
    held = segment(TINY / UNET, memory)
    answer = desk.load(spec({"nowhere": held}))
    assert isinstance(answer, up.LoadFailed)
    assert "`nowhere`" in (answer.failure.detail or "")
    other = segment(TINY / UNET, memory, "other")
    answer = desk.load(spec({"unet": down.Segment(id="s", path=other.path, bytes=other.bytes)}))
    assert isinstance(answer, up.LoadFailed)
    assert "is another" in answer.failure.message
    assert not desk.loop.models


def test_a_single_file_may_lie_in_memory(memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from .test_checkpoint import known_xl, single_file
    from .test_checkpoint import picture as of_xl
    from .test_checkpoint import spec as file_spec

    pipeline = known_xl(tmp_path, monkeypatch)
    path = single_file(pipeline, tmp_path / "model.safetensors")
    desk = Desk()
    assert isinstance(desk.load(file_spec(path)), up.Loaded), desk.said[-1]
    expected = of_xl(desk, "single")
    plain = file_spec(path)
    held = segment(path, memory)
    path.unlink()
    in_memory = down.ModelSpec(
        id="single", family="sdxl", format="checkpoint", components=plain.components, segments={"checkpoint": held}
    )
    assert isinstance(desk.load(in_memory), up.Loaded), desk.said[-1]
    assert (of_xl(desk, "single") == expected).all()


class Locks:
    """Page-locking that only keeps the account."""

    def __init__(self, refuses: str | None = None) -> None:
        self.locked: list[tuple[int, int]] = []
        self.unlocked: list[int] = []
        self.refuses = refuses
        self.mapped: list[bool] = []

    def lock(self, address: int, size: int) -> str | None:
        self.locked.append((address, size))
        return self.refuses

    def unlock(self, address: int) -> None:
        if address not in [begin for begin, _ in self.locked]:
            raise DeviceLost("it was never locked")
        self.mapped.append(f"{address:x}-" in mapped_files())
        self.unlocked.append(address)


def test_pages_are_locked_once_for_all_loads_and_given_back_before_they_are_unmapped(memory: Path) -> None:
    locks, desk = Locks(), Desk()
    desk.loop.device.segments = Segments(locks)
    held = segment(TINY / UNET, memory)
    for dtype in ("bf16", "f32", "bf16"):
        loaded = desk.load(spec({"unet": held}), dtype=dtype)
        assert isinstance(loaded, up.Loaded), loaded
        assert {"map", "pin"} <= loaded.phases_ms.keys()
    assert [size for _, size in locks.locked] == [held.bytes]
    assert not locks.unlocked
    desk.tell(down.Release(segment="s"))
    assert desk.said[-1].message == up.Released(segment="s")
    assert (locks.unlocked, locks.mapped) == ([locks.locked[0][0]], [True])
    assert held.path not in mapped_files()


def test_pages_that_cannot_be_locked_are_copied_in_pieces_and_that_is_logged(memory: Path) -> None:
    locks, desk = Locks("out of room"), Desk()
    desk.loop.device.segments = Segments(locks)
    held = segment(TINY / UNET, memory)
    for _ in range(2):
        assert isinstance(desk.load(spec({"unet": held}), dtype="bf16"), up.Loaded)
        parameter = torch.zeros(1)
        assert not desk.loop.device.segments.is_locked(parameter)
    assert len(locks.locked) == 1
    assert len([m for m in desk.all(up.Log) if "out of room" in m.message and held.path in m.message]) == 1
    desk.tell(down.Release(segment="s"))
    assert desk.said[-1].message == up.Released(segment="s")
    assert not locks.unlocked


def test_what_is_locked_goes_to_the_device_as_it_lies() -> None:
    # No device is needed to see which way is taken: `meta` copies nothing.
    device = Device("cpu", torch.device("meta"))
    ahead, other = (Uploader(device, lambda tensor, locked=locked: locked) for locked in (True, False))  # type: ignore[misc]
    for uploader in (ahead, other):
        assert uploader.put(torch.zeros(8, 3), torch.float16).dtype == torch.float16
    assert (ahead.runs_ahead, other.runs_ahead) == (True, False)
