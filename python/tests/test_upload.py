"""Tensors lie on a device as they would by themselves, in few allocations."""

import weakref

import pytest
import torch

from calotype_worker import upload
from calotype_worker.device import Device
from calotype_worker.upload import ROUNDED_BYTES, Slots, Uploader

CPU = Device("cpu", torch.device("cpu"))
SHAPES = [torch.Size(shape) for shape in ((), (3,), (1,), (5, 7), (2, 3, 4), (6, 3, 3, 3), (4, 8, 1, 1), (1, 1, 2, 5))]


def filled(dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    slots, uploader = Slots(CPU, dtype, SHAPES), Uploader(CPU, lambda tensor: False)
    hosts = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in SHAPES]
    return hosts, [uploader.put_into(slots.take(host.shape), host) for host in hosts]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_slot_holds_what_an_allocation_by_itself_would(dtype: torch.dtype) -> None:
    hosts, tensors = filled(dtype)
    for host, tensor in zip(hosts, tensors):
        alone = host.to(dtype)
        alone = alone.to(memory_format=torch.channels_last) if alone.ndim == 4 else alone
        assert torch.equal(tensor, alone)
        assert (tensor.dtype, tensor.shape, tensor.stride()) == (dtype, alone.shape, alone.stride())
        assert tensor.storage_offset() * dtype.itemsize % ROUNDED_BYTES == 0


def test_nothing_is_allocated_that_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    rounded = [-(-shape.numel() * 4 // ROUNDED_BYTES) * ROUNDED_BYTES for shape in SHAPES]
    for most in (ROUNDED_BYTES, 2 * ROUNDED_BYTES, 1 << 20):
        monkeypatch.setattr(upload, "ROOM_BYTES", most)
        _, tensors = filled(torch.float32)
        rooms = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        assert sum(rooms.values()) == sum(rounded)
        assert all(size <= max(most, max(rounded)) for size in rooms.values())
        assert len(rooms) <= 2 * -(-sum(rounded) // most)


def test_a_room_is_free_once_no_tensor_is_in_it() -> None:
    tensors = filled(torch.float32)[1]
    room = weakref.ref(tensors[0].untyped_storage())
    assert room() is not None
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
    del tensors
    assert room() is None


@pytest.mark.parametrize("locked", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_slot_is_in_the_type_to_compute_with_whatever_way_its_bytes_take(dtype: torch.dtype, locked: bool) -> None:
    # No device is needed to see which way is taken: `meta` copies nothing.
    device = Device("cpu", torch.device("meta"))
    slots, uploader = Slots(device, dtype, SHAPES), Uploader(device, lambda tensor: locked)
    for shape in SHAPES:
        slot = slots.take(shape)
        assert uploader.put_into(slot, torch.zeros(shape)) is slot
        assert slot.dtype == dtype
    assert uploader.runs_ahead == locked


class Over:
    """An event of a copy that is over when it returns."""

    def synchronize(self) -> None: ...

    def record(self) -> None: ...


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_goes_in_pieces_arrives_whole_in_its_slot(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device("cpu", torch.device("cpu"))
    device.is_cuda = True
    monkeypatch.setattr(upload, "LEAST_BYTES", 8)
    monkeypatch.setattr(upload, "PIECE_BYTES", 60)
    monkeypatch.setattr(upload, "_piece", lambda: (torch.empty(60, dtype=torch.uint8), Over()))
    slots, uploader = Slots(device, dtype, SHAPES), Uploader(device, lambda tensor: False)
    for shape in SHAPES:
        host = torch.randn(shape)
        slot = slots.take(shape)
        assert uploader.put_into(slot, host) is slot
        assert torch.equal(slot, host.to(dtype))
        assert torch.equal(uploader.put(host, dtype), slot)
