"""Samplers against the native worker's reference values, and against diffusers' own schedulers."""

import inspect
import json
import math
from functools import lru_cache
from typing import Any, cast

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from calotype_worker import noise
from calotype_worker.errors import NotSupported
from calotype_worker.samplers.run import SamplerRun, planned
from calotype_worker.samplers.schedule import NoiseSchedule
from calotype_worker.wire.words import SAMPLERS, SCHEDULES, Sampler, Schedule

from .conftest import FIXTURES

INDEX = json.loads((FIXTURES / "samplers.json").read_text())
SHAPE = tuple(INDEX["shape"])
SEED, INIT_SEED = INDEX["noise_seed"], INDEX["init_seed"]
CLASSIC, MODEL = INDEX["configs"]["classic"], INDEX["configs"]["model"]


@lru_cache
def arrays() -> dict[str, torch.Tensor]:
    return cast("dict[str, torch.Tensor]", load_file(FIXTURES / "samplers.safetensors"))


def toy_model(latents: torch.Tensor, timestep: float) -> torch.Tensor:
    return 0.5 * torch.tanh(latents) + 0.1 * torch.cos(torch.tensor(float(timestep)) / 100)


def drawn(offset: int) -> torch.Tensor:
    return torch.from_numpy(noise.normal(SEED, offset, SHAPE))


def trajectory(run: SamplerRun, start: int, latents: torch.Tensor) -> list[torch.Tensor]:
    run.begin_at(start)
    seen = []
    for i in range(start, run.evaluations):
        output = toy_model(run.scale_input(i, latents), run.timestep(i))
        latents = run.step(i, output, latents, drawn)
        seen.append(latents)
    return seen


def run_of(config: dict[str, Any], sampler: str, schedule: str, prediction: str, steps: int) -> SamplerRun:
    noise_schedule = NoiseSchedule.of_config({**config, "prediction_type": prediction})
    return SamplerRun(planned(noise_schedule, cast(Sampler, sampler), cast(Schedule, schedule), steps))


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    largest = max(float(theirs.abs().max()), 1e-3)
    assert float((ours.reshape(-1) - theirs.reshape(-1)).abs().max()) <= tolerance * largest


@pytest.mark.parametrize("case", INDEX["cases"], ids=lambda case: case["name"])
def test_a_run_follows_the_reference_values_of_both_workers(case: dict[str, Any]) -> None:
    expected = {
        name.removeprefix(case["name"] + "/"): array
        for name, array in arrays().items()
        if name.startswith(case["name"] + "/")
    }
    run = run_of(
        INDEX["configs"][case["config"]], case["sampler"], case["schedule"], case["prediction_type"], case["steps"]
    )
    start = 0
    latents = drawn(noise.INITIAL) * run.init_noise_sigma
    if case["config"] == "image":
        start = run.start_for_strength(case["strength"])
        assert start == case["first_call"]
        init = torch.from_numpy(noise.normal(INIT_SEED, noise.INITIAL, SHAPE)) * 0.5
        latents = run.add_noise(start, init, drawn(noise.INITIAL))
        assert_close(latents, expected["start"])
    else:
        assert run.init_noise_sigma == pytest.approx(case["init_noise_sigma"], rel=1e-6)
    timesteps = torch.tensor([run.timestep(i) for i in range(start, run.evaluations)])
    assert_close(timesteps, expected["timesteps"], 1e-6)
    seen = trajectory(run, start, latents)
    assert len(seen) == case["calls"]
    for ours, theirs in zip(seen, expected["latents"]):
        assert_close(ours, theirs)


# What diffusers has beyond the reference values: class, settings, schedules.
DIFFUSERS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "ddpm": ("DDPMScheduler", {}, ("default",)),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}, ("default",)),
    "tcd": ("TCDScheduler", {}, ("default",)),
    "lms": ("LMSDiscreteScheduler", {}, ("default", "karras", "exponential", "beta")),
    "dpm2": ("KDPM2DiscreteScheduler", {}, ("default", "karras", "exponential", "beta")),
    "dpm2_ancestral": ("KDPM2AncestralDiscreteScheduler", {}, ("default", "karras", "exponential", "beta")),
    "euler": ("EulerDiscreteScheduler", {}, ("exponential", "beta")),
    "heun": ("HeunDiscreteScheduler", {}, ("exponential", "beta")),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}, ("exponential", "beta")),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, ("exponential", "beta")),
    "unipc": ("UniPCMultistepScheduler", {}, ("exponential", "beta")),
}
CASES = [(name, schedule) for name, (_, _, schedules) in DIFFUSERS.items() for schedule in schedules]


def diffusers_trajectory(
    sampler: str, schedule: str, config: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[float, list[torch.Tensor]]:
    name, changes, _ = DIFFUSERS[sampler]
    kind = getattr(diffusers, name)
    plain = {k: v for k, v in config.items() if not k.startswith("_")}
    if name != "DPMSolverMultistepScheduler":
        plain.pop("algorithm_type", None)
    if schedule != "default":
        changes = {**changes, f"use_{schedule}_sigmas": True}
    scheduler = kind.from_config(plain, **changes, clip_sample=False)
    scheduler.set_timesteps(steps)
    step_of = [0]
    module = inspect.getmodule(kind)
    if module is not None and hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: drawn(noise.of_step(step_of[0])))
    latents = drawn(noise.INITIAL) * scheduler.init_noise_sigma
    halves = sampler.startswith("dpm2") or sampler == "heun"
    seen = []
    for index, timestep in enumerate(scheduler.timesteps):
        step_of[0] = index // 2 if halves else index
        output = toy_model(scheduler.scale_model_input(latents, timestep), float(timestep))
        latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
        seen.append(latents)
    return float(scheduler.init_noise_sigma), seen


@pytest.mark.parametrize("steps", [1, 4, 15])
@pytest.mark.parametrize("base", ["classic", "model"])
@pytest.mark.parametrize(("sampler", "schedule"), CASES)
def test_a_run_follows_diffusers(
    sampler: str, schedule: str, base: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = INDEX["configs"][base]
    if steps == 1 and schedule != "default":
        pytest.skip("diffusers divides by the number of steps less one")
    run = run_of(config, sampler, schedule, config["prediction_type"], steps)
    sigma, theirs = diffusers_trajectory(sampler, schedule, config, steps, monkeypatch)
    assert run.init_noise_sigma == pytest.approx(sigma, rel=1e-6)
    ours = trajectory(run, 0, drawn(noise.INITIAL) * run.init_noise_sigma)
    assert len(ours) == len(theirs)
    # LMS and beta are integrals that diffusers finds numerically, to 1e-4.
    tolerance = 2e-4 if sampler == "lms" else 5e-5
    for mine, other in zip(ours, theirs):
        assert_close(mine, other, tolerance)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_model_that_knows_the_picture_gets_it_from_every_sampler(sampler: str) -> None:
    picture = torch.from_numpy(noise.normal(9, 0, SHAPE))
    try:
        run = run_of(CLASSIC, sampler, "default", "sample", 12)
        prediction = "sample"
    except NotSupported:
        run = run_of(CLASSIC, sampler, "default", "epsilon", 12)
        prediction = "epsilon"
    latents = drawn(0) * run.init_noise_sigma
    for i in range(run.evaluations):
        level = run.level(i)
        output = picture if prediction == "sample" else (latents - level.signal * picture) / level.noise
        latents = run.step(i, output, latents, drawn)
    # tcd and ddpm end at the lowest level of the training, which still holds a little noise.
    assert float((latents - picture).abs().max()) < (0.2 if sampler in ("tcd", "ddpm", "pndm", "ddim") else 2e-3)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_combination_runs_or_says_why_not(sampler: Sampler, schedule: Schedule) -> None:
    for config in (CLASSIC, MODEL):
        schedule_of_model = NoiseSchedule.of_config(config)
        try:
            run = SamplerRun(planned(schedule_of_model, sampler, schedule, 7))
        except NotSupported as error:
            assert schedule in error.message
            assert sampler in ("ddim", "ddpm", "lcm", "tcd", "pndm")
            continue
        seen = trajectory(run, 0, drawn(0) * run.init_noise_sigma)
        assert all(bool(torch.isfinite(latents).all()) for latents in seen)
        assert run.step_of(run.evaluations - 1) == 6
        # Beginning in the middle forgets what has been, and the run is the same again.
        start = run.start_for_strength(0.6)
        assert run.step_of(start) == 3
        again = [trajectory(run, start, latents)[-1] for latents in (drawn(5), drawn(5))]
        assert torch.equal(*again)


def k_diffusion_trajectory(sampler: str, run: SamplerRun, sigmas: list[float]) -> list[torch.Tensor]:
    """DPM-Solver++ 2S ancestral and SDE as k-diffusion writes them, in logarithms of sigma, with our noise."""

    def ancestral(sigma: float, to: float) -> tuple[float, float]:
        added = min(to, math.sqrt(to**2 * (sigma**2 - to**2) / sigma**2))
        return math.sqrt(to**2 - added**2), added

    def denoised(x: torch.Tensor, sigma: float, i: int) -> torch.Tensor:
        return x - sigma * toy_model(x / math.sqrt(sigma**2 + 1), run.timestep(i))

    x, i, seen = drawn(noise.INITIAL) * run.init_noise_sigma, 0, []
    for step, (sigma, following) in enumerate(zip(sigmas, [*sigmas[1:], 0.0])):
        picture = denoised(x, sigma, i)
        if following == 0.0:
            seen.append(picture)
            break
        down, added = ancestral(sigma, following)
        if sampler == "dpmpp_2s_ancestral":
            h = math.log(sigma) - math.log(down)
            half = math.exp(math.log(sigma) - h / 2)
            middle = (half / sigma) * x - math.expm1(-h / 2) * picture
            second = denoised(middle, half, i + 1)
            x = (down / sigma) * x - math.expm1(-h) * second + drawn(noise.of_step(step)) * added
        else:
            half = math.sqrt(sigma * following)
            half_down, half_added = ancestral(sigma, half)
            first_noise = drawn(noise.of_half_step(step))
            middle = (half_down / sigma) * x - math.expm1(math.log(half_down) - math.log(sigma)) * picture
            middle = middle + first_noise * half_added
            second = denoised(middle, half, i + 1)
            # The increments of one Brownian path from sigma to the half and on to the next.
            path = first_noise * math.sqrt(sigma - half) + drawn(noise.of_step(step)) * math.sqrt(half - following)
            x = (down / sigma) * x - math.expm1(math.log(down) - math.log(sigma)) * second
            x = x + path / math.sqrt(sigma - following) * added
        seen += [middle, x]
        i += 2
    return seen


@pytest.mark.parametrize("schedule", ["default", "karras"])
@pytest.mark.parametrize("sampler", ["dpmpp_2s_ancestral", "dpmpp_sde"])
def test_a_run_follows_k_diffusion_where_diffusers_has_no_such_noise(sampler: str, schedule: str) -> None:
    run = run_of(CLASSIC, sampler, schedule, "epsilon", 10)
    sigmas = [run.level(i).noise for i in range(0, run.evaluations, 2)]
    theirs = k_diffusion_trajectory(sampler, run, sigmas)
    ours = trajectory(run, 0, drawn(noise.INITIAL) * run.init_noise_sigma)
    assert len(ours) == len(theirs) == 19
    for mine, other in zip(ours, theirs):
        assert_close(mine, other, 2e-5)


def test_strength_counts_whole_steps_as_decimals() -> None:
    run = run_of(CLASSIC, "euler", "default", "epsilon", 10)
    for strength, start in [(0.0, 10), (0.05, 10), (0.3, 7), (0.7, 3), (0.99, 1), (1.0, 0)]:
        assert run.start_for_strength(strength) == start
    assert run_of(CLASSIC, "heun", "default", "epsilon", 10).start_for_strength(0.0) == 19


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"beta_start": None}, "beta_start"),
        ({"beta_end": "much"}, "beta_end"),
        ({"beta_end": 1.5}, "beta_end"),
        ({"beta_start": 1e-12}, "beta_start"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule"),
        ({"num_train_timesteps": 1}, "num_train_timesteps"),
        ({"num_train_timesteps": 10.5}, "num_train_timesteps"),
        ({"trained_betas": [0.1]}, "trained_betas"),
        ({"prediction_type": "flow_prediction"}, "prediction_type"),
        ({"timestep_spacing": "sideways"}, "timestep_spacing"),
        ({"steps_offset": -1}, "steps_offset"),
        ({"set_alpha_to_one": 1}, "set_alpha_to_one"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"final_sigmas_type": "sigma_min"}, "final_sigmas_type"),
        ({"variance_type": "learned_range"}, "variance_type"),
    ],
)
def test_a_wrong_configuration_names_the_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(NotSupported, match=f"`{field}`"):
        NoiseSchedule.of_config({**CLASSIC, **changes})
