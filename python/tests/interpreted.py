"""Modules with kernels in Triton's interpreter, against diffusers' own: a process of its own, see `test_quick`."""

import copy
import sys
from typing import Any

import torch

from calotype_worker.kernels import serve
from calotype_worker.pipelines.adapted import PLAIN, Adapted, AdapterSet
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


def adapters() -> None:
    """A set of adapters changes what is computed, by the right weights, and off again it is bit for bit what it was."""
    plain, quick = pair(tiny.unet(tiny.TEXT, None))
    inputs = random(1, 4, 6, 6), torch.tensor([500.0]), random(1, 5, tiny.TEXT)
    exact = inputs[0].double(), inputs[1], inputs[2].double()
    changed = ("attn1.to_k", "attn2.to_v", "proj_in", "conv1", "conv_shortcut", "ff.net.0.proj", "upsamplers.0.conv")
    merged = {
        ("unet", name): parameter.data + 0.2 * torch.randn_like(parameter)
        for name, parameter in quick.named_parameters()
        if name.removesuffix(".weight").endswith(changed) and name.endswith(".weight")
    }
    assert all(any(layer in name for _, name in merged) for layer in changed)
    adapted = Adapted({"unet": quick}, lambda part, layer: (), 0)
    before = quick(*inputs, return_dict=False)[0]
    adapted.activate(AdapterSet("set", merged))
    on = quick(*inputs, return_dict=False)[0]
    adapted.activate(PLAIN)
    assert torch.equal(quick(*inputs, return_dict=False)[0], before)
    for (_, name), tensor in merged.items():
        plain.get_parameter(name).data = tensor.double()
    expected = plain(*exact, return_dict=False)[0]
    near(on, expected)
    assert float((before - on).abs().max()) > 0.05 * float(expected.abs().max())


def offloaded() -> None:
    """Where each layer's weights are there during its own forward only, it computes the same."""
    plain, quick = pair(tiny.unet(tiny.TEXT, None))
    for part in quick.modules():
        own = list(part.parameters(recurse=False))
        if own:
            values = [parameter.data for parameter in own]
            nothing = [torch.full_like(value, float("nan")) for value in values]
            part.register_forward_pre_hook(_puts(own, values))
            part.register_forward_hook(_puts(own, nothing))
            _puts(own, nothing)()
    sample, states, steps = random(1, 4, 6, 6), random(1, 5, tiny.TEXT), torch.tensor([500.0])
    near(quick(sample, steps, states, return_dict=False)[0], plain(sample.double(), steps, states.double())[0])


def _puts(parameters: list[torch.nn.Parameter], values: list[torch.Tensor]) -> Any:
    def put(*_: Any) -> None:
        for parameter, value in zip(parameters, values):
            parameter.data = value

    return put


@torch.no_grad()
def main() -> None:
    assert serve.INTERPRETED
    torch.manual_seed(0)
    unets()
    vaes()
    controlnets()
    adapters()
    offloaded()
    print("same")


if __name__ == "__main__":
    sys.exit(main())
