"""Train the f8 autoencoder on composited pictures.

Phase 1 (default): encoder and decoder. Random 128x128 crops for most of the time (many cheap steps), whole
256x256 pictures for the rest. Losses: L1, multi-scale gradients, Laplacian. The posterior has a fixed small
deviation (--sigma): a learned one with a KL term let one of the four channels die and green turn brown.
Phase 2 (--init DIR): the encoder, and so the latents, stay; only the decoder goes on, at the end with a
small patch discriminator (hinge loss, adaptive weight). It can run beside the UNet's training.
"""

import argparse
import math
import os
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import AutoencoderKL

from models import build_vae
from render import Compositor, load_atlas
from stream import batches, log, save_grid


def gn_forward(self, x):
    """Group norm in the activations' own type: autocast would go through float32 and back."""
    with torch.autocast(x.device.type, enabled=False):
        return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def pyramid_loss(a, b):
    """L1 on colours (chroma once more), on first differences at three scales, and on the Laplacian."""
    e = a - b
    l1 = e.abs().mean()
    chroma = (e - e.mean(1, keepdim=True)).abs().mean()
    g = 0.0
    for s in range(3):
        if s:
            e = F.avg_pool2d(e, 2)
        g = g + (e[..., 1:] - e[..., :-1]).abs().mean() + (e[..., 1:, :] - e[..., :-1, :]).abs().mean()
        if s == 0:
            g = (
                g
                + (4 * e[..., 1:-1, 1:-1] - e[..., :-2, 1:-1] - e[..., 2:, 1:-1] - e[..., 1:-1, :-2] - e[..., 1:-1, 2:])
                .abs()
                .mean()
                * 0.5
            )
    return l1 + 0.5 * chroma + 0.5 * g, l1


class PatchD(nn.Sequential):
    """A small patch discriminator."""

    def __init__(self, c=48):
        sn = nn.utils.parametrizations.spectral_norm

        def act():
            return nn.LeakyReLU(0.2)

        super().__init__(
            sn(nn.Conv2d(3, c, 4, 2, 1)),
            act(),
            sn(nn.Conv2d(c, 2 * c, 4, 2, 1)),
            act(),
            sn(nn.Conv2d(2 * c, 4 * c, 4, 2, 1)),
            act(),
            sn(nn.Conv2d(4 * c, 4 * c, 3, 1, 1)),
            act(),
            sn(nn.Conv2d(4 * c, 1, 3, 1, 1)),
        )


def crops(img, n, size):
    """N random crops of every picture, at offsets of a multiple of 8, in random order."""
    out = []
    for _ in range(n):
        y, x = (int(v) * 8 for v in torch.randint(0, (256 - size) // 8 + 1, (2,)))
        out.append(img[:, :, y : y + size, x : x + size])
    out = torch.cat(out)
    return out[torch.randperm(out.shape[0], device=out.device)]


def main():
    """Train until the time is over."""
    p = argparse.ArgumentParser()
    p.add_argument("--data", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--name", default="vae")
    p.add_argument("--seconds", type=float, default=140)
    p.add_argument("--until", default="", help="file with a Unix time to stop at, instead of --seconds")
    p.add_argument("--init", help="go on from this VAE, the decoder only")
    p.add_argument("--crop_share", type=float, default=0.72, help="share of the time on 128x128 crops")
    p.add_argument("--gan_from", type=float, default=2.0)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--lr", type=float, default=6e-4)
    p.add_argument("--sigma", type=float, default=0.05)
    p.add_argument("--render", type=int, default=256)
    p.add_argument("--device", default="cuda")
    p.add_argument("--workers", type=int, default=6)
    a = p.parse_args()
    dev = torch.device(a.device)
    cuda = dev.type == "cuda"
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    os.makedirs(a.out, exist_ok=True)
    torch.manual_seed(0)
    nn.GroupNorm.forward = gn_forward
    data = batches(a.data, a.render, a.workers, seed=100, tokens=False)
    comp = Compositor(load_atlas(a.data, dev), dev)
    new = (lambda: AutoencoderKL.from_pretrained(a.init)) if a.init else build_vae
    vae, ema = new().to(dev), new().to(dev)
    if not a.init:
        with torch.no_grad():  # the posterior's deviation is a constant
            vae.quant_conv.weight[4:].zero_()
            vae.quant_conv.bias[4:].fill_(2 * math.log(a.sigma))
    ema.load_state_dict(vae.state_dict())
    disc = PatchD().to(dev)
    dec_p = list(vae.decoder.parameters()) + list(vae.post_quant_conv.parameters())
    enc_p = [] if a.init else list(vae.encoder.parameters()) + list(vae.quant_conv.parameters())
    if a.init:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    params = enc_p + dec_p
    opt = torch.optim.AdamW(params, lr=a.lr, betas=(0.9, 0.99), weight_decay=1e-5, fused=cuda)
    opt_d = torch.optim.AdamW(disc.parameters(), lr=3e-4, betas=(0.5, 0.99), fused=cuda)

    def amp():
        return torch.autocast(dev.type, torch.bfloat16)

    fixed = None
    step = seen = 0
    gan = False
    stock = []
    size = 128
    t0 = last = time.time()
    total = float(open(a.until).read()) - t0 if a.until else a.seconds
    log(f"start, {total:.0f} s")
    while True:
        u = (time.time() - t0) / total
        if u >= 1:
            break
        if u > a.crop_share and size == 128:
            size, stock = 256, []
            log(f"whole pictures from step {step}")
        if not stock:
            img = comp(next(data)[0])
            if fixed is None:
                fixed = img[:32].clone()
            n = a.batch if size == 128 else max(1, a.batch // 2)
            stock = [x for x in (crops(img, 3, 128) if size == 128 else img).split(n) if x.shape[0] == n]
        x = stock.pop()
        if not gan and u > a.gan_from:
            gan = True
            ema.save_pretrained(f"{a.out}/{a.name}_rec")
            log(f"discriminator from step {step}")
        lr = a.lr * min(1, (step + 1) / 200) * (0.5 * (1 + math.cos(math.pi * u)) * 0.95 + 0.05)
        for g in opt.param_groups:
            g["lr"] = lr
        with amp():
            with torch.set_grad_enabled(not a.init):
                mean = vae.quant_conv(vae.encoder(x)).float().chunk(2, 1)[0]
            y = vae.decoder(vae.post_quant_conv(mean + a.sigma * torch.randn_like(mean))).float()
        rec, l1 = pyramid_loss(y, x)
        gl = wt = 0.0
        if not gan:
            loss = rec + 1e-5 * mean.pow(2).mean()
        else:
            disc.requires_grad_(False)
            with amp():
                gl = -disc(y).float().mean()
            w = vae.decoder.conv_out.weight
            ga = torch.autograd.grad(rec, w, retain_graph=True)[0].norm()
            gb = torch.autograd.grad(gl, w, retain_graph=True)[0].norm()
            wt = (ga / (gb + 1e-6)).clamp(0, 50).detach() * 0.2 * min(1.0, (u - a.gan_from) / 0.08)
            loss = rec + wt * gl
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        if gan:
            disc.requires_grad_(True)
            with amp():
                d = F.relu(1 - disc(x)).float().mean() + F.relu(1 + disc(y.detach())).float().mean()
            opt_d.zero_grad(set_to_none=True)
            d.backward()
            opt_d.step()
        with torch.no_grad():
            k = min(0.998, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(ema.parameters()), list(vae.parameters()), 1 - k)
        step += 1
        seen += x.shape[0]
        if step % 200 == 0 or not cuda:
            n = time.time()
            log(
                f"{a.name} {step} u {u:.2f} size {size} rec {rec.item():.4f} l1 {l1.item():.4f} "
                f"mean2 {mean.pow(2).mean().item():.2f} gan {float(gl):.3f} w {float(wt):.3f} "
                f"img/s {seen / (n - last):.0f}"
            )
            last, seen = n, 0
    ema.eval()
    with torch.no_grad(), amp():
        z = torch.cat([ema.encode(x).latent_dist.mode().float() for x in comp(next(data)[0]).split(32)])
        if not a.init:
            ema.register_to_config(scaling_factor=round(1 / z.std().item(), 5))
        y = torch.cat([ema.decode(ema.encode(x).latent_dist.mode()).sample.float() for x in fixed.split(16)])
    mse = ((y.clamp(-1, 1) - fixed) / 2).pow(2).mean((1, 2, 3))
    log(
        f"latent mean {[round(v, 3) for v in z.mean((0, 2, 3)).tolist()]} "
        f"std {[round(v, 3) for v in z.std((0, 2, 3)).tolist()]} "
        f"scaling {ema.config.scaling_factor} psnr {(-10 * mse.log10()).mean().item():.2f}"
    )
    ema.to("cpu").save_pretrained(f"{a.out}/{a.name}")
    open(f"{a.out}/{a.name}/READY", "w").write("1")
    save_grid(
        torch.stack([fixed[:16], y[:16]], 1).flatten(0, 1),
        [""] * min(32, 2 * fixed.shape[0]),
        f"{a.out}/{a.name}_recon.png",
        cols=8,
    )
    log(f"{a.name} done, {step} steps, {time.time() - t0:.0f} s")
    os._exit(0)


if __name__ == "__main__":
    main()
