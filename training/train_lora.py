"""Train a LoRA of the UNet: here the pixel art style. Start with lora.sh.

train_lcm.py takes the LoRA, the clock and the loop from here.

The LoRA is written as what it is, a low-rank change of the weights: W + B A is computed once a step, so a step costs
no more than without it, and the base weights can stay in bfloat16. No peft, no torch.compile; the step is captured as
one CUDA graph. The file has the names that diffusers' load_lora_weights expects (unet.<layer>.lora_A.weight,
lora_B.weight; alpha = rank).

Pixel art: composites with a dark outline, averaged to 32x32 (one pixel a latent cell), few colours, enlarged to
256x256.
"""

import argparse
import math
import os
import re
import time

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import nn

from canvas import S
from models import SCHEDULE, build_text
from packing import order, pack
from recipes import RecipeMaker, collate
from render import Compositor, load_atlas
from sample import PROMPTS
from stream import PackedStream, Tok, _same, log, to_pil

LAYERS = (
    r"(to_q|to_k|to_v|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2"
    r"|conv1|conv2|conv_shortcut|(down|up)samplers\.0\.conv|time_emb_proj)$"
)
NHWC = torch.channels_last


# ---------------------------------------------------------------- the LoRA
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


# ---------------------------------------------------------------- shared parts of the trainers
def options(**d):
    """Parse the command line; the defaults are the trainer's."""
    p = argparse.ArgumentParser()
    p.add_argument("--data", required=True)
    p.add_argument("--model", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--deadline", type=float, default=0, help="epoch seconds at which the process must have ended")
    p.add_argument("--reserve", type=float, default=18, help="seconds kept for saving and the preview")
    p.add_argument("--steps", type=int, default=0, help="stop after so many (tests)")
    p.add_argument("--device", default="cuda")
    p.add_argument("--graph", type=int, default=1)
    p.add_argument("--log_every", type=int, default=50)
    p.add_argument("--warmup", type=int, default=50)
    p.add_argument("--flat", type=float, default=0.4, help="share of the time before the rate falls")
    for k, v in d.items():
        p.add_argument(f"--{k}", type=type(v), default=v)
    a = p.parse_args()
    if not a.deadline:
        a.deadline = time.time() + 280
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.benchmark_limit = 4
    torch.set_float32_matmul_precision("high")
    os.makedirs(a.out, exist_ok=True)
    torch.manual_seed(1)
    return a


class Base:
    """The model's parts on the device, frozen; the UNet with the LoRA around its layers."""

    def __init__(self, a, rank):
        from safetensors.torch import load_file

        self.dev = dev = torch.device(a.device)
        self.dtype = torch.bfloat16 if a.device == "cuda" else torch.float32
        self.vae = (
            AutoencoderKL.from_pretrained(f"{a.model}/vae")
            .to(self.dtype)
            .to(dev)
            .eval()
            .requires_grad_(False)
            .to(memory_format=NHWC)
        )
        self.text = build_text(f"{a.model}/tokenizer").to(dev).eval().requires_grad_(False)
        getattr(self.text, "text_model", self.text).load_state_dict(
            {
                k.removeprefix("text_model."): v
                for k, v in load_file(f"{a.model}/text_encoder/model.safetensors").items()
                if "position_ids" not in k
            }
        )
        self.unet = UNet2DConditionModel.from_pretrained(f"{a.model}/unet").float().to(dev)
        self.wraps = add_lora(self.unet, rank, self.dtype)
        self.tok, self.zoom = Tok(f"{a.model}/tokenizer"), self.vae.config.scaling_factor
        b = torch.linspace(SCHEDULE["beta_start"] ** 0.5, SCHEDULE["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
        ac = torch.cumprod(1 - b, 0)
        self.sa, self.sb, self.snr = (x.float().to(dev) for x in (ac.sqrt(), (1 - ac).sqrt(), ac / (1 - ac)))
        self.none = self.words(self.tok([""]))
        log(
            f"{len(self.wraps)} layers, "
            f"{sum(q.numel() for w in self.wraps.values() for q in w.parameters()) / 1e6:.2f} M numbers at rank {rank}"
        )

    @torch.no_grad()
    def words(self, ids):
        """Numpy ids -> hidden states. Causal: the end tokens used as padding are encoded too, as the pipeline does."""
        x = torch.from_numpy(np.asarray(ids, np.int64)).to(self.dev)
        return torch.cat([self.text(input_ids=i).last_hidden_state for i in x.split(1024)]).to(self.dtype)

    def v(self, x, t, e):
        """Return the network's v."""
        return self.unet(x.to(self.dtype).contiguous(memory_format=NHWC), t, e, return_dict=False)[0].float()

    def ab(self, t):
        """Return the rates of signal and noise at t."""
        return self.sa[t].view(-1, 1, 1, 1), self.sb[t].view(-1, 1, 1, 1)

    @torch.no_grad()
    def guided(self, x, t, e, w):
        """Return the guided v for guidance w."""
        u, c = self.v(torch.cat([x, x]), torch.cat([t, t]), torch.cat([self.none.expand_as(e), e])).chunk(2)
        return u + w * (c - u)

    @torch.no_grad()
    def sample(self, prompts, sch, cfg, seed=1):
        """What StableDiffusionPipeline does, with the scheduler sch (its timesteps set)."""
        x = torch.cat(
            [torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(seed + i)) for i in range(len(prompts))]
        ).to(self.dev)
        e = self.words(self.tok(list(prompts)))
        g = torch.Generator().manual_seed(seed)
        for t in sch.timesteps:
            tt = t.to(self.dev).expand(len(x))
            v = self.guided(x, tt, e, cfg) if cfg != 1 else self.v(x, tt, e)
            x = sch.step(v, t, x, **(dict(generator=g) if "LCM" in type(sch).__name__ else {}), return_dict=False)[0]
        return [
            to_pil(i)
            for z in x.split(16)
            for i in self.vae.decode((z / self.zoom).to(self.dtype), return_dict=False)[0]
        ]

    def dpm(self, n):
        """Return a scheduler of n steps."""
        s = DPMSolverMultistepScheduler(**SCHEDULE)
        s.set_timesteps(n, device=self.dev)
        return s


def sheet(rows, path, cell=192):
    """A PNG with one row of pictures a list."""
    from PIL import Image

    out = Image.new("RGB", (max(map(len, rows)) * cell, len(rows) * cell))
    for j, r in enumerate(rows):
        for i, im in enumerate(r):
            out.paste(im.resize((cell, cell), Image.LANCZOS), (i * cell, j * cell))
    out.save(path)


def loop(a, flat, work, refill, owed_a_step, acc, names, at_end):
    """Steps until the deadline.

    work() leaves gradients in flat and adds to acc; refill() makes fresh data, owed_a_step times a step.
    """
    cuda = a.device == "cuda"
    replay, sync = work, (torch.cuda.synchronize if cuda else lambda: None)
    if cuda:
        s = torch.cuda.Stream()
        s.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(s):
            for _ in range(3):
                work()
        torch.cuda.current_stream().wait_stream(s)
        sync()
        if a.graph:
            try:
                g = torch.cuda.CUDAGraph()
                with torch.cuda.graph(g, capture_error_mode="thread_local"):
                    work()
                replay = g.replay
                replay()
                sync()
                log("step captured as a CUDA graph")
            except Exception as e:
                log(f"no CUDA graph ({type(e).__name__}: {str(e)[:200]}); running without")
                replay = work
                sync()
    flat.p.grad.zero_()
    acc.zero_()
    t0 = last = time.time()
    stop = a.deadline - a.reserve
    step = last_step = 0
    owed = 0.0
    tick = 10 if cuda else 1
    fresh_s = 0.0
    saved = False
    good = flat.mean.clone()
    log(f"training for {stop - t0:.0f} s")
    while True:
        if step % tick == 0:
            sync()
            u = (step / a.steps) if a.steps else (time.time() - t0) / max(stop - t0, 1)
            if u >= 1 or time.time() > stop:
                break
            if u > 0.6 and not saved:
                flat.save(a.out)
                saved = True
                log("saved (on the way)")
        f = min(1, (step + 1) / a.warmup) * (
            1.0 if u < a.flat else 0.5 * (1 + math.cos(math.pi * (u - a.flat) / (1 - a.flat)))
        )
        replay()
        acc[-1] += flat.step(f)
        step += 1
        owed += owed_a_step
        if owed >= 1:
            sync()
            t = time.time()
            while owed >= 1:
                owed -= 1
                if u < 0.95 and time.time() < stop:
                    refill(u)  # nothing new for the last few steps
            sync()
            fresh_s += time.time() - t
        if step % a.log_every == 0 or not cuda:
            m = (acc / (step - last_step)).tolist()
            now = time.time()
            acc.zero_()
            log(
                f"step {step} u {u:.3f} "
                + " ".join(f"{n} {x:.4f}" for n, x in zip(names, m))
                + f" gn {m[-1]:.3f} lr {a.lr * f:.1e} "
                f"img/s {(step - last_step) * a.batch / (now - last):.0f} "
                f"(refill {fresh_s / (now - last):.0%} of the time)"
            )
            if not math.isfinite(sum(m)):
                log("not finite: going back to the last good state and stopping")
                flat.mean.copy_(good)
                break
            good.copy_(flat.mean)
            last, last_step, fresh_s = now, step, 0.0
    sync()
    flat.save(a.out)
    log(f"saved; {step} steps of {a.batch}, {time.time() - t0:.0f} s of training")
    flat.p.data.copy_(flat.mean)
    torch.backends.cudnn.benchmark = False
    if cuda:
        torch.cuda.empty_cache()
    if time.time() < a.deadline - 4 or not cuda:
        at_end()
        log("preview saved")
    os._exit(0)  # do not wait for the workers


# ---------------------------------------------------------------- pixel art
class PixelStream(PackedStream):
    """PackedStream, with the trigger words in most captions."""

    trigger, share = "pixel art", 0.85

    def __iter__(self):
        w = torch.utils.data.get_worker_info()
        seed = self.seed * 1000 + (w.id if w else 0)
        rm, tok, rng = RecipeMaker(self.data, seed=seed), Tok(f"{self.data}/tokenizer"), np.random.default_rng(seed)
        while True:
            rs = [rm.sample() for _ in range(self.batch)]
            rs = [rs[i] for i in order(np.array([r["ground"] for r in rs]))]
            yield (
                *pack(collate(rs)),
                tok([r["caption"] + (f", {self.trigger}" if rng.random() < self.share else "") for r in rs]).astype(
                    np.int16
                ),
            )


class PixelCompositor(Compositor):
    """Also keeps where the objects are, for the outline."""

    def paste(self, img, q, k, atlas, on):
        """Paste the sprites, each with a dark outline."""
        super().paste(img, q, k, atlas, on)
        cx, cy, s, co, si, fl = q["aff"][on, k].unbind(1)  # output [-1,1] -> sprite [-1,1], as in Compositor.paste
        th = torch.stack(
            [
                torch.stack([fl * co / s, fl * si / s, -fl * (co * (2 * cx - 1) + si * (2 * cy - 1)) / s], 1),
                torch.stack([-si / s, co / s, -(-si * (2 * cx - 1) + co * (2 * cy - 1)) / s], 1),
            ],
            1,
        )
        n = on.numel()
        al = F.grid_sample(
            atlas[q["spr"][on, k], 3:].float() / 255,
            F.affine_grid(th, (n, 1, S // 2, S // 2), align_corners=False),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        self.alpha[on] = torch.maximum(self.alpha[on], F.avg_pool2d(al, 4))

    @torch.no_grad()
    def pixels(self, x, plan, levels=5, edge=0.35):
        """Pictures as pixel art: 32x32 cells, a darkened outline around the objects, levels values a channel."""
        self.alpha = torch.zeros(plan["n"], 1, 32, 32, device=self.dev)
        img = F.avg_pool2d(self.draw(x, plan) * 0.5 + 0.5, 8)
        solid = (self.alpha > 0.5).float()
        line = F.max_pool2d(solid, 3, 1, 1) - solid
        img = ((img - 0.5) * 1.1 + 0.5) * (1 - (1 - edge) * line)
        img = (img.clamp(0, 1) * (levels - 1)).round() / (levels - 1)
        return F.interpolate(img, scale_factor=8, mode="nearest") * 2 - 1


def main():
    """Train until the deadline."""
    a = options(
        batch=384,
        fresh=512,
        encode=256,
        pool=32768,
        first_fill=4096,
        reuse=20.0,
        lr=1e-3,
        rank=16,
        ema=0.99,
        drop=0.1,
        floor=0.15,
        sharpen=0.7,
        workers=12,
    )
    cuda = a.device == "cuda"
    kw = dict(num_workers=a.workers, prefetch_factor=4, persistent_workers=True) if a.workers else {}
    data = iter(
        torch.utils.data.DataLoader(PixelStream(a.data, a.fresh, 7, True), batch_size=None, collate_fn=_same, **kw)
    )
    base = Base(a, a.rank)
    dev = base.dev
    flat = Flat(base.wraps, a.lr, a.ema)
    comp = PixelCompositor(load_atlas(a.data, dev), dev)
    log("sprites loaded")

    def put(x):
        return (torch.from_numpy(x).pin_memory() if cuda else torch.from_numpy(x)).to(dev, non_blocking=True)

    pool_z = torch.zeros(a.pool, 4, 32, 32, device=dev, dtype=torch.float16)
    pool_e = torch.zeros(a.pool, *base.none.shape[1:], device=dev, dtype=base.dtype)
    filled = torch.zeros((), device=dev)
    ring = dict(at=0, n=0)

    def enc(x):
        return base.vae.encode(x).latent_dist.mode()

    @torch.no_grad()
    def refill(u=0):
        x, plan, ids = next(data)
        img, p = comp.pixels(put(x), plan), ring["at"]
        for j in range(0, plan["n"], a.encode):
            x = img[j : j + a.encode].to(base.dtype).contiguous(memory_format=NHWC)
            z = enc(x)
            z = z + a.sharpen * (
                z - enc(base.vae.decode(z, return_dict=False)[0])
            )  # one correction: the VAE alone would round the cells off
            pool_z[p + j : p + j + len(z)] = (z.float() * base.zoom).half()
        pool_e[p : p + plan["n"]] = base.words(ids)
        ring["at"] = (p + plan["n"]) % a.pool
        ring["n"] = min(a.pool, ring["n"] + plan["n"])
        filled.fill_(ring["n"])

    assert a.pool % a.fresh == 0
    wt = (base.snr.clamp(max=5) / (base.snr + 1)).clamp(min=a.floor)
    wt = wt / wt.mean()
    acc = torch.zeros(3, device=dev)  # mse, loss, gradient norm

    def work():
        i = (torch.rand(a.batch, device=dev) * filled).long()
        e = torch.where(torch.rand(a.batch, 1, 1, device=dev) < a.drop, base.none, pool_e[i])
        t = (
            ((torch.arange(a.batch, device=dev) + torch.rand(a.batch, device=dev)) * (1000 / a.batch))
            .long()
            .clamp(max=999)
        )  # stratified
        x0 = pool_z[i].float()
        n = torch.randn_like(x0)
        A, B = base.ab(t)
        mse = (base.v(A * x0 + B * n, t, e) - (A * n - B * x0)).pow(2).mean((1, 2, 3))
        loss = (mse * wt[t]).mean()
        loss.backward()
        acc[:2] += torch.stack([mse.mean(), loss]).detach()

    t0 = time.time()
    while ring["n"] < min(a.pool, a.first_fill):
        refill()
    if cuda:
        torch.cuda.synchronize()
    log(f"ring {ring['n']}, {ring['n'] / (time.time() - t0):.0f} fresh pictures/s")

    def show():
        ps = [p for p, _ in PROMPTS[::3]][: 16 if cuda else 4]
        rows = []
        for s in (0.0, 0.5, 1.0):
            Lora.scale = s
            rows.append(base.sample([p + ", pixel art" if s else p for p in ps], base.dpm(12), 5.0))
        sheet(rows, f"{a.out}/preview.png")

    loop(a, flat, work, refill, a.batch / a.reuse / a.fresh, acc, ("mse", "loss"), show)


if __name__ == "__main__":
    main()
