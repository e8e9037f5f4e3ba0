"""Train the LoRA of the pixel art style. Start with lora.sh.

Pixel art: composites with a dark outline, averaged to 32x32 (one pixel a latent cell), few colours, enlarged to
256x256.
"""

import time

import numpy as np
import torch
import torch.nn.functional as F

from canvas import S
from lora import NHWC, Flat, Lora
from lora_training import Base, loop, options
from packing import order, pack
from recipes import RecipeMaker, collate
from render import Compositor, load_atlas
from sample import PROMPTS
from stream import PackedStream, Tok, _same, log, sheet


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
