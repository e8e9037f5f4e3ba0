"""Modules with kernels in Triton's interpreter, against diffusers' own: a process of its own, see `test_quick`."""

import copy
import sys
from typing import Any

import torch

from calotype_worker.kernels import serve
from calotype_worker.pipelines.quick import quicken

from . import tiny

DTYPE = torch.float16


def pair(module: Any) -> tuple[Any, Any]:
    """The module as it is, exact, and its quick copy in half precision, as a device has it."""
    quick = copy.deepcopy(module.eval()).to(DTYPE)
    quicken(quick)
    # What the copy's weights really are.
    return module.double().load_state_dict(quick.state_dict()) and module, quick.to(memory_format=torch.channels_last)


def near(ours: torch.Tensor, exact: torch.Tensor) -> None:
    assert serve.problem() is None, serve.problem()
    worst = float((ours.double() - exact).abs().max() / exact.abs().max())
    assert worst < 1e-2, worst


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape).to(DTYPE)


def unets() -> None:
    for times, cross in ((None, tiny.TEXT), (6, tiny.TEXT)):
        plain, quick = pair(tiny.unet(cross, times))
        # 10 by 6 pixels are not twice the 5 by 3 below them in every block: both ways of upsampling are met.
        sample, states, steps = random(2, 4, 10, 6), random(2, 5, cross), torch.tensor([500.0, 20.0])
        added = None if times is None else {"text_embeds": random(2, tiny.TEXT), "time_ids": torch.ones(2, times)}
        exact = {name: value.double() for name, value in added.items()} if added else None
        near(
            quick(sample, steps, states, added_cond_kwargs=added, return_dict=False)[0],
            plain(sample.double(), steps, states.double(), added_cond_kwargs=exact, return_dict=False)[0],
        )


def vaes() -> None:
    plain, quick = pair(tiny.vae())
    latents, pixels = random(1, 4, 5, 4), random(1, 3, 10, 8)
    near(quick.decode(latents).sample, plain.decode(latents.double()).sample)
    near(quick.encode(pixels).latent_dist.mode(), plain.encode(pixels.double()).latent_dist.mode())


def controlnets() -> None:
    plain, quick = pair(tiny.controlnet(tiny.TEXT, None, 5, zero=False))
    sample, states, image = random(1, 4, 8, 6), random(1, 5, tiny.TEXT), random(1, 3, 16, 12)
    steps = torch.tensor([500.0])
    ours, theirs = (
        net(sample.to(dtype), steps, states.to(dtype), image.to(dtype), return_dict=False)
        for net, dtype in ((quick, DTYPE), (plain, torch.float64))
    )
    for one, other in zip([*ours[0], ours[1]], [*theirs[0], theirs[1]]):
        near(one, other)


@torch.no_grad()
def main() -> None:
    assert serve.INTERPRETED
    torch.manual_seed(0)
    unets()
    vaes()
    controlnets()
    print("same")


if __name__ == "__main__":
    sys.exit(main())
