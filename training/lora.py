"""The LoRA of the UNet, its optimizer and its file.

It is written as what it is, a low-rank change of the weights: W + B A is computed once a step, so a step costs no more
than without it, and the base weights can stay in bfloat16. No peft, no torch.compile. The file has the names that
diffusers' load_lora_weights expects (unet.<layer>.lora_A.weight, lora_B.weight; alpha = rank).
"""

import math
import os
import re

import torch
import torch.nn.functional as F
from torch import nn

LAYERS = (
    r"(to_q|to_k|to_v|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2"
    r"|conv1|conv2|conv_shortcut|(down|up)samplers\.0\.conv|time_emb_proj)$"
)
NHWC = torch.channels_last


class Lora(nn.Module):
    """A Linear or Conv2d with weight W + scale * B A. At scale 0 the plain layer."""

    scale = 1.0  # one for all

    def __init__(self, base, rank, dtype):
        super().__init__()
        conv, w = isinstance(base, nn.Conv2d), base.weight.data
        self.conv = (base.stride, base.padding) if conv else None
        if conv:
            w = w.contiguous(memory_format=NHWC)
        self.k = w.shape[2:]
        self.register_buffer("w32", w)
        self.register_buffer("w", w.to(dtype))
        self.register_buffer("b", base.bias.data.to(dtype) if base.bias is not None else None)
        n = w[0].numel()
        self.down = nn.Parameter(
            (torch.rand(rank, n) * 2 - 1) / math.sqrt(n)
        )  # as peft's default; columns in the order height, width, channel
        self.up = nn.Parameter(torch.zeros(w.shape[0], rank))

    def weight(self):
        """Return the changed weight, or the base weight when the LoRA is off."""
        if not Lora.scale:
            return self.w
        d = self.up @ self.down
        if self.conv:
            d = d.view(d.shape[0], *self.k, -1).permute(0, 3, 1, 2)
        return (self.w32 + Lora.scale * d).to(self.w.dtype)

    def forward(self, x, *_):
        """Apply the layer with the changed weight."""
        return F.conv2d(x, self.weight(), self.b, *self.conv) if self.conv else F.linear(x, self.weight(), self.b)

    def export(self, up, down):
        """(A, B) in peft's layout."""
        if not self.conv:
            return down, up
        return down.view(down.shape[0], *self.k, -1).permute(0, 3, 1, 2), up[..., None, None]


def add_lora(unet, rank, dtype, layers=LAYERS):
    """Wrap the layers and turn the rest of the UNet into dtype. Returns {name: Lora}."""
    unet.eval().requires_grad_(False).to(memory_format=NHWC)
    found = {n: m for n, m in unet.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and re.search(layers, n)}
    wraps = {n: Lora(m, rank, dtype) for n, m in found.items()}
    unet.to(dtype)
    for n, w in wraps.items():
        parent, _, leaf = n.rpartition(".")
        setattr(unet.get_submodule(parent), leaf, w.to(unet.device))
    return wraps


class Flat:
    """All LoRA numbers in one flat buffer, with gradient, moving average and AdamW."""

    def __init__(self, wraps, lr, ema, decay=0.0):
        self.wraps, ps = wraps, [q for w in wraps.values() for q in (w.up, w.down)]
        size = [-(-q.numel() // 64) * 64 for q in ps]
        self.p = nn.Parameter(torch.zeros(sum(size), device=ps[0].device))
        self.p.grad = torch.zeros_like(self.p)
        self.at, o = [], 0
        for q, s in zip(ps, size):

            def cut(b, o=o, q=q):
                return b[o : o + q.numel()].view(q.shape)

            cut(self.p.data).copy_(q.data)
            q.data = cut(self.p.data)
            q.grad = cut(self.p.grad)
            self.at.append(cut)
            o += s
        self.mean, self.decay, self.n = self.p.data.clone(), ema, 0
        self.opt = torch.optim.AdamW([self.p], lr=lr, betas=(0.9, 0.99), weight_decay=decay, fused=self.p.is_cuda)
        self.lr = lr

    def step(self, f):
        """One optimizer step at the rate lr * f; returns the gradient's norm (on the device)."""
        g = self.p.grad
        gn = g.norm()
        g.mul_((1.0 / (gn + 1e-6)).clamp(max=1.0))
        self.opt.param_groups[0]["lr"] = self.lr * f
        self.opt.step()
        g.zero_()
        self.n += 1
        self.mean.lerp_(self.p.data, 1 - min(self.decay, (1 + self.n) / (10 + self.n)))
        return gn

    def save(self, out):
        """The moving average, as diffusers wants it."""
        from safetensors.torch import save_file

        views, sd = [c(self.mean) for c in self.at], {}
        for (n, w), up, down in zip(self.wraps.items(), views[::2], views[1::2]):
            for k, v in zip("AB", w.export(up, down)):
                sd[f"unet.{n}.lora_{k}.weight"] = v.half().contiguous().cpu()
        path = f"{out}/pytorch_lora_weights.safetensors"
        save_file(sd, path + ".tmp", metadata={"format": "pt"})
        os.replace(path + ".tmp", path)
