"""Laws of the tick loop: jobs join, leave, pause and fail without touching one another."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, rule, run_state_machine_as_test

from calotype_worker.errors import DeviceLost
from calotype_worker.job import Sampling
from calotype_worker.wire import down, up
from calotype_worker.wire.words import SAMPLERS, BlobRef, Sampler
from calotype_worker.wire.work import Adapter, Decode, Encode, Matte, Span

from .conftest import MODELS
from .desk import Desk, generate, psnr


@pytest.fixture
def desk(fresh: Desk) -> Desk:
    return fresh


def alone(desk: Desk, *args: Any, **changes: Any) -> np.ndarray[Any, Any]:
    work, blobs = generate(*args, **changes)
    job = desk.run(work, *blobs)
    desk.finish()
    return desk.picture(job)


def test_image_i_of_n_equals_the_single_image_with_seed_plus_i(desk: Desk) -> None:
    work, blobs = generate([7, 8, 9], sampler="euler_ancestral")
    job = desk.run(work, *blobs)
    desk.finish()
    result, pictures = desk.result(job)
    assert result.seeds == [7, 8, 9]
    assert result.batch_sizes == [6, 6, 6, 6]
    # The same numbers in a larger batch: a product's rounding differs, a pixel by one at most.
    for index, picture in enumerate(pictures):
        assert psnr(picture, alone(desk, [7 + index], sampler="euler_ancestral")) >= 60


def test_a_job_that_joins_a_running_batch_equals_itself_alone(desk: Desk) -> None:
    first, first_blobs = generate([1], steps=8)
    second, second_blobs = generate([2], steps=5, sampler="dpmpp_2m_sde", guidance=1.0, prompt="a lemon")
    one = desk.run(first, *first_blobs)
    desk.until(lambda: desk.loop.jobs[0].steps_done == 3)
    two = desk.run(second, *second_blobs)
    desk.finish()
    assert desk.result(one)[0].batch_sizes == [2, 2, 2, 3, 3, 3, 3, 3]
    assert desk.result(two)[0].batch_sizes == [3, 3, 3, 3, 3]
    assert psnr(desk.picture(one), alone(desk, [1], steps=8)) >= 60
    same = alone(desk, [2], steps=5, sampler="dpmpp_2m_sde", guidance=1.0, prompt="a lemon")
    assert psnr(desk.picture(two), same) >= 60


def test_jobs_of_another_shape_are_not_in_the_batch(desk: Desk) -> None:
    jobs = [desk.run(work, *blobs) for work, blobs in (generate([1], edge=64), generate([1], edge=128))]
    desk.finish()
    assert all(desk.result(job)[0].batch_sizes == [2, 2, 2, 2] for job in jobs)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pause_and_resume_give_the_pixels_of_an_uninterrupted_run(desk: Desk, sampler: Sampler) -> None:
    work, blobs = generate([3], sampler=sampler, steps=6)
    job = desk.run(work, *blobs)
    desk.until(lambda: desk.loop.jobs[0].steps_done == 2)
    desk.tell(down.Pause(job=job, attempt=1, offload=True))
    sampling = desk.loop.jobs[0].stage
    assert isinstance(sampling, Sampling)
    # What `offload` does on an accelerator, there and back.
    sampling.move(torch.device("cpu"))
    assert not desk.loop.has_work()
    desk.tell(down.Resume(job=job, attempt=1))
    desk.finish()
    assert [(m.at_step) for m in desk.all(up.Paused, job)] == [2]
    assert [(m.at_step) for m in desk.all(up.Resumed, job)] == [2]
    assert (desk.picture(job) == alone(desk, [3], sampler=sampler, steps=6)).all()
    steps = [m.done for m in desk.all(up.Progress, job) if m.phase == "denoise"]
    assert steps == [1, 2, 3, 4, 5, 6]


def answers(desk: Desk, job: str) -> list[tuple[str, int]]:
    """What was said of pausing a job, in order."""
    said = [said.message for said in desk.said if isinstance(said.message, (up.Paused, up.Resumed))]
    return [(type(message).__name__, message.at_step) for message in said if message.job == job]


def test_each_pause_and_each_resume_has_one_answer_in_order_whatever_the_job_does(desk: Desk) -> None:
    work, blobs = generate([3], steps=4)
    # Before its first step, and several within one tick.
    job = desk.run(work, *blobs)
    for kind in (down.Pause, down.Pause, down.Resume, down.Resume, down.Pause, down.Resume):
        desk.tell(kind(job=job, attempt=1))
    words = ["Paused", "Paused", "Resumed", "Resumed", "Paused", "Resumed"]
    assert answers(desk, job) == [(word, 0) for word in words]
    desk.until(lambda: desk.loop.jobs[0].steps_done == 2)
    for offload in (False, True):
        desk.tell(down.Pause(job=job, attempt=1, offload=offload))
    desk.tell(down.Resume(job=job, attempt=1))
    desk.tell(down.Resume(job=job, attempt=1))
    assert answers(desk, job)[6:] == [("Paused", 2), ("Paused", 2), ("Resumed", 2), ("Resumed", 2)]
    # What has ended, and another attempt, answer nothing.
    desk.tell(down.Pause(job=job, attempt=2, offload=True))
    desk.finish()
    desk.tell(down.Pause(job=job, attempt=1, offload=True))
    desk.tell(down.Resume(job=job, attempt=1))
    assert len(answers(desk, job)) == 10
    assert (desk.picture(job) == alone(desk, [3], steps=4)).all()


def test_paused_jobs_take_no_place_and_do_not_hold_others_up(desk: Desk) -> None:
    held = []
    for seed in range(desk.loop.stepper.max_jobs):
        work, blobs = generate([seed])
        held.append(desk.run(work, *blobs))
    desk.until(lambda: all(job.steps_done == 1 for job in desk.loop.jobs))
    for job in held:
        desk.tell(down.Pause(job=job, attempt=1, offload=True))
    assert not desk.loop.has_work()
    others = []
    for seed in range(desk.loop.stepper.max_jobs):
        work, blobs = generate([20 + seed])
        others.append(desk.run(work, *blobs))
    desk.finish()
    # All of the others in one run, as if nobody else were there.
    assert desk.all_jobs() == others
    assert [desk.result(job)[0].batch_sizes for job in others] == [[2 * len(others)] * 4] * len(others)
    for job in held:
        desk.tell(down.Resume(job=job, attempt=1))
    desk.finish()
    assert sorted(desk.all_jobs()) == sorted([*held, *others])


def test_a_paused_job_holds_no_merged_loras_and_draws_the_same_when_resumed(desk: Desk) -> None:
    lora = Adapter(id="lcm", path=str(MODELS / "loras" / "calotype-tiny-lcm.safetensors"), weight=1.0)
    asked: dict[str, Any] = {"steps": 4, "guidance": 1.0, "sampler": "lcm", "adapters": [lora]}
    plain = alone(desk, [5], **asked)
    desk.loop.forget_idle_sets(0)
    work, blobs = generate([5], **asked)
    job = desk.run(work, *blobs)
    desk.until(lambda: desk.loop.jobs[0].steps_done == 2)
    adapted = desk.loop.family("calotype-tiny").adapted
    assert adapted.idle_bytes(()) > 0
    desk.tell(down.Pause(job=job, attempt=1, offload=True))
    sampling = desk.loop.jobs[0].stage
    assert isinstance(sampling, Sampling)
    assert (adapted.idle_bytes(()), [leg.bound.merged_bytes for leg in sampling.legs]) == (0, [0])
    desk.tell(down.Resume(job=job, attempt=1))
    desk.finish()
    assert (desk.picture(job) == plain).all()


def test_a_paused_job_whose_lora_was_replaced_fails_instead_of_drawing_something_else(
    desk: Desk, tmp_path: Path
) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes((MODELS / "loras" / "calotype-tiny-lcm.safetensors").read_bytes())
    lora = Adapter(id="lcm", path=str(path), weight=1.0)
    work, blobs = generate([5], adapters=[lora])
    job = desk.run(work, *blobs)
    desk.until(lambda: desk.loop.jobs[0].steps_done == 2)
    desk.tell(down.Pause(job=job, attempt=1, offload=True))
    path.write_bytes((MODELS / "loras" / "calotype-tiny-pixel.safetensors").read_bytes())
    desk.tell(down.Resume(job=job, attempt=1))
    assert "replaced while the job was paused" in desk.failure(job).message
    assert not desk.all(up.Resumed, job)


def test_what_others_take_while_a_job_is_paused_is_not_its_peak(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    lap = 1000
    monkeypatch.setattr(desk.loop._peaks, "_lap", lambda: lap)
    work, blobs = generate([3])
    job = desk.run(work, *blobs)
    desk.until(lambda: desk.loop.jobs[0].steps_done == 1)
    desk.tell(down.Pause(job=job, attempt=1, offload=True))
    lap = 9000
    other_work, other_blobs = generate([4])
    other = desk.run(other_work, *other_blobs)
    desk.finish()
    lap = 2000
    desk.tell(down.Resume(job=job, attempt=1))
    desk.finish()
    assert desk.result(other)[0].peak_bytes == 9000
    # The lap in which it came back began while it was paused.
    assert desk.result(job)[0].peak_bytes == 2000


def test_what_was_cached_for_a_paused_job_goes_back_to_the_device(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[int] = []
    work, blobs = generate([3])
    job = desk.run(work, *blobs)
    desk.until(lambda: desk.loop.jobs[0].steps_done == 1)
    monkeypatch.setattr(desk.loop.device, "trim", lambda: trims.append(1))
    monkeypatch.setattr(desk.loop.device, "torch", SimpleNamespace(type="cuda"))
    desk.tell(down.Pause(job=job, attempt=1, offload=False))
    assert trims == []
    desk.tell(down.Pause(job=job, attempt=1, offload=True))
    assert trims == [1]
    monkeypatch.undo()
    desk.tell(down.Resume(job=job, attempt=1))
    desk.finish()
    assert desk.result(job)


def test_cancel_drops_one_job_and_leaves_the_other_alone(desk: Desk) -> None:
    one, two = (desk.run(work, *blobs) for work, blobs in (generate([1]), generate([2])))
    desk.until(lambda: desk.loop.jobs[1].steps_done == 2)
    desk.tell(down.Cancel(job=one, attempt=1))
    desk.tell(down.Cancel(job=one, attempt=1))
    desk.finish()
    assert [message.at_step for message in desk.all(up.Cancelled, one)] == [2]
    assert not desk.all(up.Result, one)
    assert psnr(desk.picture(two), alone(desk, [2])) >= 60
    assert desk.result(two)[0].batch_sizes == [4, 4, 2, 2]


def test_the_larger_priority_goes_first_when_not_all_can_tick(desk: Desk) -> None:
    desk.loop.stepper.max_jobs = 1
    low_work, low_blobs = generate([1], steps=3)
    low = desk.run(low_work, *low_blobs)
    desk.until(lambda: desk.loop.jobs[0].steps_done == 1)
    high_work, high_blobs = generate([2], steps=3)
    high = desk.run(high_work, *high_blobs, priority=5)
    desk.finish()
    assert [message.job for message in desk.all(up.Result)] == [high, low]


def test_a_group_that_does_not_fit_is_halved_and_a_single_job_that_does_not_fails_with_numbers(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = desk.loop.family("calotype-tiny")
    denoise = model.denoise

    def scarce(input: Any) -> torch.Tensor:
        if len(input.sample) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return denoise(input)

    monkeypatch.setattr(model, "denoise", scarce)
    jobs = [desk.run(work, *blobs) for work, blobs in (generate([1]), generate([2]), generate([1, 2]))]
    desk.finish()
    for job in jobs[:2]:
        assert desk.result(job)[0].batch_sizes == [2, 2, 2, 2]
    failure = desk.failure(jobs[2])
    assert failure.outcome == "out_of_memory"
    assert failure.detail is not None and "bytes are free" in failure.detail
    monkeypatch.undo()
    assert (desk.picture(jobs[0]) == alone(desk, [1])).all()


def test_a_lost_device_ends_the_loop(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(input: Any) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(desk.loop.family("calotype-tiny"), "denoise", lost)
    work, blobs = generate([1])
    desk.run(work, *blobs)
    with pytest.raises(DeviceLost, match="illegal memory access"):
        desk.finish()
    desk.loop.jobs.clear()


def test_any_other_error_fails_the_job_with_its_traceback(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(input: Any) -> torch.Tensor:
        return torch.zeros(1) @ torch.zeros(2)

    monkeypatch.setattr(desk.loop.family("calotype-tiny"), "denoise", broken)
    work, blobs = generate([1])
    job = desk.run(work, *blobs)
    desk.finish()
    failure = desk.failure(job)
    assert failure.outcome == "failed"
    assert "in broken" in (failure.detail or "")


def test_a_vae_that_runs_out_of_memory_goes_on_in_tiles(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    model = desk.loop.family("calotype-tiny")
    decode, failed = model.decode, []

    def scarce(latents: torch.Tensor) -> torch.Tensor:
        if not model.vae.use_tiling:
            failed.append(1)
            raise MemoryError
        return decode(latents)

    monkeypatch.setattr(model, "decode", scarce)
    work, blobs = generate([1])
    job = desk.run(work, *blobs)
    desk.finish()
    model.vae.disable_tiling()
    monkeypatch.undo()
    assert failed == [1]
    assert any("tiles" in message.message for message in desk.all(up.Log))
    assert psnr(desk.picture(job), alone(desk, [1])) >= 40


def test_previews_come_at_the_asked_interval_and_are_half_the_size(desk: Desk) -> None:
    work, blobs = generate([1, 2], steps=5, preview_every=2)
    job = desk.run(work, *blobs)
    desk.finish()
    previews = desk.all(up.Preview, job)
    assert [(preview.done, preview.image.shape) for preview in previews] == [(2, [32, 32, 3]), (4, [32, 32, 3])]


def test_timings_cover_the_phases_and_progress_is_of_work_that_was_done(desk: Desk) -> None:
    work, blobs = generate([1], sampler="heun", steps=3)
    job = desk.run(work, *blobs)
    desk.finish()
    result = desk.result(job)[0]
    assert set(result.timings_ms) == {"encode", "denoise", "decode"}
    assert result.peak_bytes > 0
    assert result.batch_sizes == [2] * 5
    told = [(m.phase, m.done, m.total) for m in desk.all(up.Progress, job)]
    assert told == [("encode", 1, 1), *(("denoise", i, 3) for i in (1, 2, 3)), ("decode", 1, 1)]


def test_a_latent_goes_through_encode_and_decode(desk: Desk) -> None:
    picture = alone(desk, [1], edge=128, steps=8)
    ref = BlobRef(blob=0, dtype="u8", shape=list(picture.shape))
    job = desk.run(Encode(model="calotype-tiny", image=ref), picture.tobytes())
    desk.finish()
    latents = desk.picture(job)
    assert latents.shape == (1, 4, 16, 16)
    tensor = BlobRef(blob=0, dtype="f32", shape=list(latents.shape))
    job = desk.run(Decode(model="calotype-tiny", latents=tensor), latents.tobytes())
    desk.finish()
    assert psnr(desk.picture(job), picture) >= 20


def test_strength_0_gives_the_image_back_through_the_vae(desk: Desk) -> None:
    picture = alone(desk, [1], edge=128, steps=8)
    again = alone(desk, [2], edge=128, mode="image_to_image", init_image=picture, strength=0.0)
    assert psnr(again, picture) >= 20
    mask = np.zeros((128, 128), np.uint8)
    kept = alone(desk, [2], edge=128, mode="inpaint", init_image=picture, mask=mask, strength=0.7)
    assert (kept == picture).all()


def test_drain_finishes_what_runs_takes_nothing_new_and_says_bye() -> None:
    desk = Desk().tiny()
    work, blobs = generate([1])
    running, paused = desk.run(work, *blobs), desk.run(work, *blobs)
    desk.tell(down.Pause(job=paused, attempt=1, offload=True))
    desk.tell(down.Drain())
    late = desk.run(work, *blobs)
    desk.finish()
    assert desk.failure(paused).outcome == "failed"
    assert desk.failure(late).outcome == "failed"
    assert desk.result(running)
    assert desk.said[-1].message == up.Bye()


def test_unload_fails_the_models_jobs_and_says_what_came_back() -> None:
    desk = Desk().tiny()
    work, blobs = generate([1])
    job = desk.run(work, *blobs)
    desk.loop.tick()
    paused = desk.run(work, *blobs)
    desk.tell(down.Pause(job=paused, attempt=1, offload=True))
    desk.tell(down.Unload(unload="u"))
    assert desk.failure(job).message == "the job's model was unloaded"
    assert desk.failure(paused).message == "the job's model was unloaded"
    desk.tell(down.Resume(job=paused, attempt=1))
    assert len(answers(desk, paused)) == 1
    assert desk.all(up.Unloaded)[0].freed_bytes >= 0
    work, blobs = generate([1])
    job = desk.run(work, *blobs)
    desk.finish()
    assert "not resident" in desk.failure(job).message


def test_memory_and_probe_answer_with_figures_of_this_process(desk: Desk) -> None:
    for op in ("status", "trim", "reset_peak"):
        desk.tell(down.AskMemory(seq=1, op=op))
    assert all(m.report.total_bytes > m.report.used_bytes > 0 for m in desk.all(up.Memory))
    desk.tell(down.Probe(seq=2, op="benchmark"))
    figures = desk.all(up.Probed)[0].figures
    assert figures["matmul_flops_per_s"] > 0
    assert figures["step_256_ms.calotype-tiny"] > 0


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"width": 60}, "invalid_input", "width 60"),
    ({"height": 8192}, "invalid_input", "height 8192"),
    ({"steps": 0}, "invalid_input", "0 steps"),
    ({"guidance": float("nan")}, "invalid_input", "guidance"),
    ({"seeds": []}, "invalid_input", "0 seeds"),
    ({"seeds": [-1]}, "invalid_input", "seed"),
    ({"seeds": [1, 2]}, "invalid_input", "initial noise"),
    ({"mode": "image_to_image"}, "invalid_input", "initial image"),
    ({"initial_noise": BlobRef(blob=3, dtype="f32", shape=[1, 4, 8, 8])}, "invalid_input", "blob 3"),
    ({"initial_noise": BlobRef(blob=0, dtype="f16", shape=[1, 4, 8, 8])}, "invalid_input", "f16"),
    ({"initial_noise": BlobRef(blob=0, dtype="f32", shape=[1, 4, 8, -8])}, "invalid_input", "shape"),
    ({"prompt": [Span(text="x", weight=float("inf"))]}, "invalid_input", "weight"),
    ({"prompt": [Span(text="word " * 2000, weight=1.0)]}, "invalid_input", "tokens"),
    ({"clip_skip": 9}, "invalid_input", "clip skip"),
    ({"sampler": "ddim", "schedule": "karras"}, "not_supported", "karras"),
    ({"sampler": "lcm", "steps": 51}, "not_supported", "at most 50"),
]


@pytest.mark.parametrize(("changes", "outcome", "words"), BAD)
def test_bad_input_ends_in_a_typed_outcome_and_the_worker_lives(
    desk: Desk, changes: dict[str, Any], outcome: str, words: str
) -> None:
    work, blobs = generate()
    job = desk.run(msgspec.structs.replace(work, **changes), *blobs)
    desk.finish()
    failure = desk.failure(job)
    assert (failure.outcome, words in failure.message) == (outcome, True), failure
    assert alone(desk, [1]).shape == (64, 64, 3)


def test_noise_that_is_not_finite_and_images_that_do_not_fit_are_refused(desk: Desk) -> None:
    work, _ = generate()
    job = desk.run(work, np.full((1, 4, 8, 8), np.nan, np.float32).tobytes())
    small, grey = np.zeros((32, 32, 3), np.uint8), np.zeros((64, 64), np.uint8)
    whole = np.zeros((64, 64, 3), np.uint8)
    jobs = [job]
    for changes in (
        {"mode": "image_to_image", "init_image": small},
        {"mode": "image_to_image", "init_image": grey},
        {"mode": "image_to_image", "init_image": whole, "strength": 1.5},
        {"mode": "inpaint", "init_image": whole},
        {"mode": "inpaint", "init_image": whole, "mask": np.zeros((32, 32), np.uint8)},
    ):
        other, blobs = generate(**changes)
        jobs.append(desk.run(other, *blobs))
    desk.finish()
    assert [desk.failure(job).outcome for job in jobs] == ["invalid_input"] * 6


class AnythingInAnyOrder(RuleBasedStateMachine):
    """Jobs are sent, held, resumed, cancelled and ticked in any order: each attempt ends exactly once."""

    desk: ClassVar[Desk]
    count: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.desk.finish()
        self.desk.said.clear()
        self.sent: list[str] = []

    jobs = Bundle("jobs")

    @rule(
        target=jobs,
        steps=st.integers(0, 3),
        priority=st.integers(-1, 1),
        sampler=st.sampled_from(["euler", "heun", "dpmpp_sde"]),
    )
    def send(self, steps: int, priority: int, sampler: str) -> str:
        AnythingInAnyOrder.count += 1
        work, blobs = generate([self.count], edge=32, steps=steps, sampler=sampler, guidance=1.0)
        job = self.desk.run(work, *blobs, priority=priority, job=f"any_{self.count}")
        self.sent.append(job)
        return job

    @rule(job=jobs, kind=st.sampled_from([down.Cancel, down.Pause, down.Resume]))
    def ask(self, job: str, kind: Any) -> None:
        self.desk.tell(kind(job=job, attempt=1))

    @rule()
    def tick(self) -> None:
        if self.desk.loop.has_work():
            self.desk.loop.tick()

    def teardown(self) -> None:
        for held in list(self.desk.loop.jobs):
            self.desk.tell(down.Resume(job=held.job, attempt=1))
        self.desk.finish()
        for job in self.sent:
            ends = [self.desk.all(kind, job) for kind in (up.Result, up.Failed, up.Cancelled)]
            assert sum(map(len, ends)) == 1, job
            told = [message.done for message in self.desk.all(up.Progress, job) if message.phase == "denoise"]
            assert told == list(range(1, len(told) + 1))
            last = next(i for i, said in enumerate(self.desk.said) if said.message in [m for end in ends for m in end])
            assert not any(
                getattr(said.message, "job", None) == job
                for said in self.desk.said[last + 1 :]
                if not isinstance(said.message, up.Log)
            )


def test_each_attempt_ends_exactly_once_whatever_comes_in_whatever_order(desk: Desk) -> None:
    AnythingInAnyOrder.desk = desk
    limits = settings(max_examples=12, stateful_step_count=25, deadline=None)
    run_state_machine_as_test(AnythingInAnyOrder, settings=limits)


def test_work_that_is_not_served_says_so(desk: Desk) -> None:
    job = desk.run(Matte(model="calotype-tiny", image=BlobRef(blob=0, dtype="u8", shape=[1, 1, 3])), b"abc")
    desk.finish()
    assert desk.failure(job).outcome == "not_supported"
