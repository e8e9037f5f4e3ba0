"""Trajectories of diffusers' schedulers with a toy model: what samplers.json and samplers.safetensors hold."""

import json
from contextlib import contextmanager
from pathlib import Path

import diffusers
import numpy as np
import torch
from safetensors.numpy import save_file

from noise import gaussian

SHAPE = (1, 4, 2, 2)
NOISE_SEED = 42
INIT_SEED = 7
STEP_COUNTS = (4, 10, 20)
STRENGTHS = (0.3, 0.6, 1.0)

# The class, what is set in its configuration, and whether it has the Karras schedule.
SAMPLERS = {
    "ddim": ("DDIMScheduler", {}, False),
    "euler": ("EulerDiscreteScheduler", {}, True),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}, False),
    "heun": ("HeunDiscreteScheduler", {}, True),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}, True),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, True),
    "lcm": ("LCMScheduler", {}, False),
    "unipc": ("UniPCMultistepScheduler", {}, True),
}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
CLASSIC_CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
    "trained_betas": None,
}


def make_scheduler(config: dict, sampler: str, schedule: str, prediction: str):
    """Make a scheduler from a model's configuration, as diffusers does when the user picks another sampler."""
    class_name, changes, _ = SAMPLERS[sampler]
    config = {k: v for k, v in config.items() if not k.startswith("_")}
    if class_name != "DPMSolverMultistepScheduler":
        config.pop("algorithm_type", None)
    changes = {**changes, "prediction_type": prediction}
    if schedule == "karras":
        changes["use_karras_sigmas"] = True
    return getattr(diffusers, class_name).from_config(config, **changes)


@contextmanager
def steps_draw(scheduler, seed: int):
    """Give the scheduler our noise: the function that comes out sets the index of the step."""
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    step = [0]

    def draw(shape, **_):
        return torch.from_numpy(gaussian(seed, 1 + step[0], tuple(shape)))

    def set_step(index):
        step[0] = index

    before = getattr(module, "randn_tensor", None)
    module.randn_tensor = draw
    try:
        yield set_step
    finally:
        if before is None:
            del module.randn_tensor
        else:
            module.randn_tensor = before


def toy_model(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """A smooth function of latents and timestep."""
    return 0.5 * torch.tanh(latents) + 0.1 * torch.cos(timestep.float() / 100)


def run(scheduler, latents: torch.Tensor, timesteps: torch.Tensor) -> np.ndarray:
    """Denoise with the toy model and return the latents after every call."""
    trajectory = []
    with steps_draw(scheduler, NOISE_SEED) as set_step:
        for index, timestep in enumerate(timesteps):
            set_step(index)
            model_input = scheduler.scale_model_input(latents, timestep)
            output = toy_model(model_input, timestep)
            latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
            trajectory.append(latents.reshape(-1).numpy())
    return np.stack(trajectory)


def cumulative_alphas(scheduler, timesteps: torch.Tensor) -> np.ndarray:
    """The squared signal rates at the timesteps."""
    return scheduler.alphas_cumprod[timesteps.long()].numpy().astype(np.float32)


class Recorder:
    """Collects cases and arrays, and writes them as an index and a safetensors file."""

    def __init__(self):
        self.cases = []
        self.skipped = []
        self.arrays = {}

    def add(self, case: dict, **arrays: np.ndarray) -> None:
        """Add one case; its arrays are called `<case name>/<array name>`."""
        self.cases.append(case)
        for name, array in arrays.items():
            self.arrays[f"{case['name']}/{name}"] = np.ascontiguousarray(array, dtype=np.float32)

    def write(self, out: Path, stem: str, head: dict) -> None:
        """Write the index with one case a line, and the arrays."""
        lines = [json.dumps(case) for case in self.cases]
        body = ",\n".join(lines)
        skipped = json.dumps(self.skipped)
        fields = "".join(f"{json.dumps(k)}: {json.dumps(v)},\n" for k, v in head.items())
        (out / f"{stem}.json").write_text(f'{{"format": 1,\n{fields}"skipped": {skipped},\n"cases": [\n{body}\n]}}\n')
        json.loads((out / f"{stem}.json").read_text())
        save_file(self.arrays, out / f"{stem}.safetensors")


def text_case(recorder: Recorder, config_name: str, config: dict, key: tuple[str, str, str], steps: int) -> None:
    """Record a run from pure noise."""
    sampler, schedule, prediction = key
    scheduler = make_scheduler(config, sampler, schedule, prediction)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    sigma = float(scheduler.init_noise_sigma)
    noise = torch.from_numpy(gaussian(NOISE_SEED, 0, SHAPE))
    name = f"{config_name}/{sampler}/{schedule}/{prediction}/{steps}"
    case = {
        "name": name,
        "config": config_name,
        "sampler": sampler,
        "schedule": schedule,
        "prediction_type": prediction,
        "steps": steps,
        "calls": len(timesteps),
        "order": scheduler.order,
        "init_noise_sigma": sigma,
    }
    arrays = {"timesteps": timesteps.float().numpy(), "alphas_cumprod": cumulative_alphas(scheduler, timesteps)}
    if hasattr(scheduler, "sigmas"):
        arrays["sigmas"] = scheduler.sigmas.numpy()
    recorder.add(case, **arrays, latents=run(scheduler, noise * sigma, timesteps))


def image_case(recorder: Recorder, config: dict, sampler: str, schedule: str, strength: float, steps: int = 10) -> None:
    """Record a run that starts from a noised image, as diffusers' img2img pipeline does it."""
    scheduler = make_scheduler(config, sampler, schedule, config["prediction_type"])
    scheduler.set_timesteps(steps)
    kept = min(int(steps * strength), steps)
    first = max(steps - kept, 0) * scheduler.order
    timesteps = scheduler.timesteps[first:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    init = torch.from_numpy(gaussian(INIT_SEED, 0, SHAPE)) * 0.5
    noise = torch.from_numpy(gaussian(NOISE_SEED, 0, SHAPE))
    start = scheduler.add_noise(init, noise, timesteps[:1])
    case = {
        "name": f"image/{sampler}/{schedule}/{strength}",
        "config": "image",
        "sampler": sampler,
        "schedule": schedule,
        "prediction_type": config["prediction_type"],
        "steps": steps,
        "strength": strength,
        "first_call": first,
        "calls": len(timesteps),
        "order": scheduler.order,
    }
    recorder.add(
        case,
        timesteps=timesteps.float().numpy(),
        start=start.reshape(-1).numpy(),
        latents=run(scheduler, start, timesteps),
    )


def make_sampler_fixtures(model: Path, out: Path) -> None:
    """Record every combination that diffusers has."""
    config = json.loads((model / "scheduler" / "scheduler_config.json").read_text())
    recorder = Recorder()
    combinations = [
        (sampler, schedule)
        for sampler, (_, _, has_karras) in SAMPLERS.items()
        for schedule in (("default", "karras") if has_karras else ("default",))
    ]
    for sampler, schedule in combinations:
        for prediction in PREDICTIONS:
            try:
                for steps in STEP_COUNTS:
                    text_case(recorder, "model", config, (sampler, schedule, prediction), steps)
            except (NotImplementedError, ValueError) as error:
                # Raised by diffusers, where one of its schedulers lacks a prediction: there is no reference then.
                recorder.skipped.append({"sampler": sampler, "schedule": schedule, "prediction_type": prediction})
                print(f"skipped {sampler} {schedule} {prediction}: {str(error)[:100]}")
        for steps in STEP_COUNTS:
            text_case(recorder, "classic", CLASSIC_CONFIG, (sampler, schedule, "epsilon"), steps)
        for strength in STRENGTHS:
            image_case(recorder, config, sampler, schedule, strength)
    head = {"noise_seed": NOISE_SEED, "init_seed": INIT_SEED, "shape": SHAPE}
    recorder.write(out, "samplers", {**head, "configs": {"model": config, "classic": CLASSIC_CONFIG, "image": config}})
    print(f"samplers: {len(recorder.cases)} cases")
