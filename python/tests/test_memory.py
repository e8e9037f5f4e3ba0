"""Peaks by phase, groups by free memory, and what becomes of a worker that ran out of memory."""

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from calotype_worker.errors import DeviceLost, ModelLoad, OutOfMemory, WorkerError, told
from calotype_worker.job import Tally
from calotype_worker.peaks import Peaks
from calotype_worker.pipelines import registry
from calotype_worker.step import Stepper
from calotype_worker.wire import down, up
from calotype_worker.wire.words import BlobRef
from calotype_worker.wire.work import Decode, Encode

from .desk import TINY, Desk, folder_spec, generate, psnr

NUMBERS = "7 of 9 bytes are free"


@pytest.fixture
def desk(fresh: Desk) -> Desk:
    fresh.loop.family("calotype-tiny").keeps_to_tiles = False
    return fresh


def text_to_image(desk: Desk, **changes: Any) -> str:
    work, blobs = generate([1], **changes)
    return desk.run(work, *blobs)


# What the frameworks say, by the kind of device.
NO_MEMORY: list[BaseException] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB"),
    torch.OutOfMemoryError("HIP out of memory. Tried to allocate 2.00 GiB"),
    torch.OutOfMemoryError("XPU out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("miopenStatusAllocFailed"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB)"),
    RuntimeError("Invalid buffer size: 24.00 GB"),
    RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    RuntimeError("Native API failed. Native API returns: -5 (PI_ERROR_OUT_OF_RESOURCES)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 68719476736 bytes."),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
    OSError(12, "Cannot allocate memory"),
]
LOST: list[BaseException] = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    RuntimeError("HIP error: invalid device function"),
    RuntimeError("level_zero backend failed with error: 20 (UR_RESULT_ERROR_DEVICE_LOST)"),
]
NEITHER: list[BaseException] = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)"),
    ValueError("CUDA error is a word in this message, and no error of a device"),
    OSError(2, "No such file or directory"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_memory_that_ran_out_is_told_with_numbers_on_every_kind_of_device(error: BaseException) -> None:
    problem = told(error, NUMBERS)
    assert isinstance(problem, OutOfMemory), problem
    assert NUMBERS in (problem.detail or "")


@pytest.mark.parametrize("error", [*LOST, *NEITHER], ids=str)
def test_a_lost_device_and_any_other_error_are_not_taken_for_short_memory(error: BaseException) -> None:
    assert type(told(error, NUMBERS)) is (DeviceLost if error in LOST else WorkerError)


@pytest.mark.skipif(torch.cuda.is_available(), reason="real memory of the host runs out here")
def test_a_host_that_really_has_not_so_much_memory_is_told() -> None:
    with pytest.raises(Exception) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert isinstance(told(caught.value), OutOfMemory)


def test_an_error_that_was_told_keeps_nothing_of_what_failed() -> None:
    def failing() -> None:
        tensor = torch.zeros(1)
        kept.append(weakref.ref(tensor))
        try:
            raise ValueError(tensor)
        except ValueError:
            raise ModelLoad("the weights are not usable") from None

    kept: list[weakref.ref[torch.Tensor]] = []
    try:
        failing()
    except ModelLoad as error:
        problem = told(error)
    assert problem.message == "the weights are not usable"
    assert kept[0]() is None


def scarce(real: Callable[..., Any], failures: list[int], when: Callable[[], bool]) -> Callable[..., Any]:
    """A function that runs out of memory as long as `when` says so."""

    def work(*arguments: Any, **named: Any) -> Any:
        if when():
            failures.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return real(*arguments, **named)

    return work


def test_an_encoding_that_runs_out_of_memory_goes_on_in_tiles(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    model, failures = desk.loop.family("calotype-tiny"), list[int]()
    picture = np.full((64, 64, 3), 90, np.uint8)
    work, blobs = generate([1], mode="image_to_image", init_image=picture, strength=0.5)
    before = desk.run(work, *blobs)
    desk.finish()
    for encode_alone in (False, True):
        model.keeps_to_tiles = False
        failures.clear()
        with monkeypatch.context() as patch:
            untiled = scarce(model.encode_image, failures, lambda: not model.vae_is_tiled)
            patch.setattr(model, "encode_image", untiled)
            ref = BlobRef(blob=0, dtype="u8", shape=[64, 64, 3])
            job = desk.run(Encode(model=model.id, image=ref), picture.tobytes()) if encode_alone else ""
            job = job or desk.run(work, *blobs)
            desk.finish()
        assert failures == [1]
        result = desk.result(job)[0]
        assert result.plan == ["vae_tiling"]
        assert encode_alone or psnr(desk.picture(job), desk.picture(before)) >= 40
    assert sum("tiles" in message.message for message in desk.all(up.Log)) == 2


@pytest.mark.parametrize("part", ["encode_image", "decode"])
@pytest.mark.parametrize("alone", [False, True])
def test_a_vae_that_has_no_memory_in_tiles_either_ends_the_job_with_numbers_and_nothing_else(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, part: str, alone: bool
) -> None:
    model, failures, proofs = desk.loop.family("calotype-tiny"), list[int](), list[int]()
    prove = desk.loop.device.prove

    def proved() -> None:
        proofs.append(1)
        prove()

    monkeypatch.setattr(desk.loop.device, "prove", proved)
    picture = np.full((64, 64, 3), 90, np.uint8)
    with monkeypatch.context() as patch:
        patch.setattr(model, part, scarce(getattr(model, part), failures, lambda: True))
        if alone and part == "encode_image":
            ref = BlobRef(blob=0, dtype="u8", shape=[64, 64, 3])
            job = desk.run(Encode(model=model.id, image=ref), picture.tobytes())
        elif alone:
            ref = BlobRef(blob=0, dtype="f32", shape=[1, 4, 8, 8])
            job = desk.run(Decode(model=model.id, latents=ref), np.zeros((1, 4, 8, 8), np.float32).tobytes())
        else:
            work, blobs = generate([1], mode="image_to_image", init_image=picture, strength=0.5)
            job = desk.run(work, *blobs)
        desk.finish()
    # Once as it was and once in tiles.
    assert failures == [1, 1]
    failure = desk.failure(job)
    assert failure.outcome == "out_of_memory"
    assert "bytes are free" in (failure.detail or "")
    assert proofs == [1]
    model.keeps_to_tiles = False
    after = text_to_image(desk)
    desk.finish()
    assert desk.picture(after).shape == (64, 64, 3)


def test_a_text_encoder_that_runs_out_of_memory_fails_its_job_and_tiles_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, failures = desk.loop.family("calotype-tiny"), list[int]()
    with monkeypatch.context() as patch:
        patch.setattr(model, "encode", scarce(model.encode, failures, lambda: True))
        job = text_to_image(desk)
        desk.finish()
    assert failures == [1]
    assert desk.failure(job).outcome == "out_of_memory"
    assert not model.keeps_to_tiles


def test_other_jobs_go_on_when_one_has_no_memory(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    model = desk.loop.family("calotype-tiny")
    alone = text_to_image(desk, steps=6)
    desk.finish()
    running = text_to_image(desk, steps=6)
    desk.until(lambda: desk.loop.jobs[0].steps_done == 2)
    with monkeypatch.context() as patch:
        patch.setattr(model, "encode", scarce(model.encode, [], lambda: True))
        short = text_to_image(desk)
        desk.until(lambda: bool(desk.all(up.Failed, short)))
    desk.finish()
    assert (desk.picture(running) == desk.picture(alone)).all()


def test_memory_that_does_not_come_back_and_a_device_that_does_not_compute_end_the_loop(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, device = desk.loop.family("calotype-tiny"), desk.loop.device
    held = [1 << 30]
    monkeypatch.setattr(device, "held_bytes", lambda: held[0])

    for kept, ends in ((1 << 20, False), (1 << 30, True)):

        def leaks(*arguments: Any, kept: int = kept, **named: Any) -> Any:
            held[0] += kept
            raise torch.OutOfMemoryError("CUDA out of memory.")

        with monkeypatch.context() as patch:
            patch.setattr(model, "denoise", leaks)
            job = text_to_image(desk)
            if ends:
                with pytest.raises(DeviceLost, match="did not come back"):
                    desk.finish()
            else:
                desk.finish()
        assert desk.failure(job).outcome == "out_of_memory"

    desk.said.clear()
    real, held[0] = registry.load, 1 << 30

    def half(*arguments: Any) -> Any:
        held[0] += 1 << 30
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr(registry, "load", half)
        with pytest.raises(DeviceLost, match="did not come back"):
            desk.load(folder_spec("other", TINY))
    assert desk.all(up.LoadFailed)[0].failure.outcome == "out_of_memory"
    assert registry.load is real

    def silent() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(device, "synchronize", silent)
    with monkeypatch.context() as patch:
        patch.setattr(model, "encode", scarce(model.encode, [], lambda: True))
        held[0] = 1 << 30
        job = text_to_image(desk)
        with pytest.raises(DeviceLost, match="unspecified launch failure"):
            desk.finish()
    assert desk.failure(job).outcome == "out_of_memory"


def test_the_peak_of_a_phase_is_what_was_held_in_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    model = desk.loop.family("calotype-tiny")
    if desk.loop.device.end_lap() is None:
        pytest.skip("this system does not let a process forget its peak")
    text_to_image(desk)
    desk.finish()
    much = 600 << 20
    for part, phase in (("encode", "encode"), ("denoise", "denoise"), ("decode", "decode")):
        real = getattr(model, part)

        def wasteful(*arguments: Any, real: Any = real, **named: Any) -> Any:
            torch.ones(much, dtype=torch.uint8)
            return real(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(model, part, wasteful)
            job = text_to_image(desk, prompt=f"something new for {part}")
            desk.finish()
        result = desk.result(job)[0]
        peaks = result.phase_peaks_bytes
        assert peaks is not None and peaks.keys() == {"encode", "denoise", "decode"}
        others = max(peak for name, peak in peaks.items() if name != phase)
        assert peaks[phase] - others > much // 2  # type: ignore[index]
        assert result.peak_bytes >= max(peaks.values())


def test_peaks_go_to_the_jobs_of_a_phase_and_to_all_that_are_there() -> None:
    laps = iter([5, 100, 70, 300, 20])
    idle = [0]
    peaks = Peaks(lambda: next(laps), lambda: idle[0])
    one, two = Tally(), Tally()
    peaks.begin("encode", [one], [one])  # 5: before anything.
    assert not peaks.begin("encode", [one], [one])
    peaks.begin("denoise", [one], [one, two])  # 100
    idle[0] = 7
    assert peaks.begin("denoise", [one, two], [one, two])  # 70
    assert not peaks.begin("denoise", [one, two], [one, two])
    assert peaks.begin("denoise", [one, two], [one, two], anew=True)  # 300, without what is no job's
    peaks.end([one, two])  # 20
    assert one.phase_peaks == {"encode": 100, "denoise": 293}
    assert two.phase_peaks == {"denoise": 293}
    assert (one.peak_bytes, two.peak_bytes) == (293, 293)


def test_where_laps_are_not_told_there_are_no_peaks_of_phases(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk.loop.device, "_forget_peak", lambda: False)
    job = text_to_image(desk)
    desk.finish()
    result = desk.result(job)[0]
    assert result.phase_peaks_bytes is None
    assert result.peak_bytes > 0


def test_the_peak_since_a_reset_outlives_the_laps(desk: Desk) -> None:
    desk.tell(down.AskMemory(seq=1, op="reset_peak"))
    desk.loop.device.end_lap()
    torch.ones(500 << 20, dtype=torch.uint8)
    desk.loop.device.end_lap()
    desk.tell(down.AskMemory(seq=2, op="status"))
    before, after = (message.report for message in desk.all(up.Memory))
    assert after.peak_bytes - before.peak_bytes > 400 << 20


def test_groups_grow_with_what_was_measured_and_end_where_memory_does(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device whose driver tells of 1000 bytes, and a denoiser that takes 100 for a sample."""
    device, model = desk.loop.device, desk.loop.family("calotype-tiny")
    real, held, peak = model.denoise, 50, 0

    def denoise(input: Any) -> torch.Tensor:
        nonlocal peak
        peak = held + 100 * len(input.sample)
        return real(input)

    monkeypatch.setattr(model, "denoise", denoise)
    monkeypatch.setattr(device, "room_bytes", lambda: 1000)
    monkeypatch.setattr(device, "held_bytes", lambda: held)
    monkeypatch.setattr(device, "lap_peak_bytes", lambda: peak)
    monkeypatch.setattr(
        Stepper,
        "measures",
        lambda stepper, chosen: stepper.sizes.is_new(
            chosen[0][1].shape, sum(sampling.samples for _, sampling in chosen)
        ),
    )
    desk.loop.stepper.max_jobs = 16
    jobs = []
    for seed in range(1, 7):
        work, blobs = generate([seed], steps=3)
        jobs.append(desk.run(work, *blobs, priority=-seed))
    desk.finish()
    # One job alone, two, then four, of which 1000 bytes hold as many as 8 samples; the last two afterwards.
    assert desk.result(jobs[0])[0].batch_sizes == [2, 4, 8]
    assert all(max(desk.result(job)[0].batch_sizes) <= 8 for job in jobs)
    assert desk.all_jobs()[0] == jobs[0]
    assert desk.all_jobs()[-1] == jobs[-1]
