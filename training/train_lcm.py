"""Train a LoRA that makes pictures in 4 steps with LCMScheduler and guidance 1. Start with lora.sh.

The consistency function, taught directly: LCMScheduler walks noise -> f(x, 999) -> noise again to 759 -> f -> 499 ->
f -> 259 -> f, where f(x, t) should be the end of the guided ODE that starts at x. Here the frozen base model (LoRA
switched off) solves that ODE with a few DPM-Solver++ steps, and the LoRA learns the end point with a pseudo-Huber
loss. Compared with bootstrapping (20-step skips and an averaged target network) the targets are right from the first
step, and each is used several times. The starting points are those that the sampler meets: each chain goes on from
the teacher's end point or, more and more often, from the student's own (so it learns to mend its mistakes). No
pictures are needed, only captions.
"""

import time

import numpy as np
import torch
from diffusers import LCMScheduler

from lora import Flat, Lora
from lora_training import Base, loop, options
from models import MAX_LEN, SCHEDULE
from recipes import RecipeMaker
from sample import PROMPTS
from stream import Tok, _same, log, sheet

STAGES = (999, 759, 499, 259)  # LCMScheduler's 4 of its 50


class Captions(torch.utils.data.IterableDataset):
    """Endless batches of token ids of random captions."""

    def __init__(self, data, n, seed):
        self.data, self.n, self.seed = data, n, seed

    def __iter__(self):
        w = torch.utils.data.get_worker_info()
        rm, tok = RecipeMaker(self.data, seed=self.seed * 1000 + (w.id if w else 0)), Tok(f"{self.data}/tokenizer")
        while True:
            yield tok([rm.sample()["caption"] for _ in range(self.n)]).astype(np.int16)


def consistency(base, x, t, v, scaling=10.0, sigma=0.5):
    """f(x, t) from the network's v, as LCMScheduler.step computes it."""
    A, B = base.ab(t)
    s = (t.float() * scaling).view(-1, 1, 1, 1)
    return sigma**2 / (s**2 + sigma**2) * x + s / (s**2 + sigma**2).sqrt() * (A * x - B * v)


@torch.no_grad()
def solve(base, x, t0, e, w, n):
    """The end of the guided ODE from x at t0 (one a sample).

    Takes n steps of DPM-Solver++(2M), evenly spaced in time, the last to 0.
    """
    was, Lora.scale = Lora.scale, 0.0

    def at(i):
        return (t0.float() * (n - i) / n).round().long()

    d_last = h_last = None
    for i in range(n):
        t = at(i)
        A, B = base.ab(t)
        d = A * x - B * base.guided(x, t, e, w)
        if i == n - 1:
            break
        A1, B1 = base.ab(at(i + 1))
        h = (A1 / B1).log() - (A / B).log()
        m = d if i == 0 else d + (d - d_last) * h / (2 * h_last)
        x = B1 / B * x - A1 * torch.expm1(-h) * m
        d_last, h_last = d, h
    Lora.scale = was
    return d


def main():
    """Train until the deadline."""
    a = options(
        batch=256,
        fresh=1024,
        pool=12288,
        first_fill=2,
        reuse=8.0,
        lr=1e-3,
        rank=48,
        ema=0.995,
        w="5,4,3,2.5",
        own=0.6,
        jitter=0.3,
        teacher="12,9,6,4",
        workers=4,
    )
    cuda = a.device == "cuda"
    kw = dict(num_workers=a.workers, prefetch_factor=4, persistent_workers=True) if a.workers else {}
    data = iter(torch.utils.data.DataLoader(Captions(a.data, a.fresh, 11), batch_size=None, collate_fn=_same, **kw))
    base = Base(a, a.rank)
    dev = base.dev
    flat = Flat(base.wraps, a.lr, a.ema)
    steps, guidance = [int(n) for n in a.teacher.split(",")], [float(w) for w in a.w.split(",")]  # one a stage
    K = len(STAGES)

    def half(*s):
        return torch.zeros(*s, device=dev, dtype=torch.float16)

    pool_x, pool_y, pool_t = (
        half(a.pool, K, 4, 32, 32),
        half(a.pool, K, 4, 32, 32),
        torch.zeros(a.pool, K, device=dev, dtype=torch.long),
    )
    pool_e = torch.zeros(a.pool, MAX_LEN, base.none.shape[-1], device=dev, dtype=base.dtype)
    filled = torch.zeros((), device=dev)
    ring = dict(at=0, n=0)
    assert a.pool % a.fresh == 0

    @torch.no_grad()
    def refill(u=0.0):
        n, s = a.fresh, slice(ring["at"], ring["at"] + a.fresh)
        e = base.words(next(data))
        own = a.own * min(1.0, u / 0.5)
        z = None
        for k, (t, m, w) in enumerate(zip(STAGES, steps, guidance)):
            t = torch.full((n,), t, device=dev)
            x = torch.randn(n, 4, 32, 32, device=dev)
            if k:  # some elsewhere, so that other numbers of steps work too
                t = t + 20 * torch.randint(-6, 7, (n,), device=dev) * (torch.rand(n, device=dev) < a.jitter)
                A, B = base.ab(t)
                x = A * z + B * x
            y = solve(base, x, t, e, w, m)
            pool_x[s, k], pool_y[s, k], pool_t[s, k] = x.half(), y.half(), t
            mine = consistency(base, x, t, base.v(x, t, e)) if own else y
            z = torch.where(torch.rand(n, 1, 1, 1, device=dev) < own, mine, y)
        pool_e[s] = e
        ring["at"] = (ring["at"] + n) % a.pool
        ring["n"] = min(a.pool, ring["n"] + n)
        filled.fill_(ring["n"])

    acc = torch.zeros(2 + K, device=dev)  # loss, L1 of each stage, gradient norm
    k = torch.arange(a.batch, device=dev) % K

    def work():
        i = (torch.rand(a.batch, device=dev) * filled).long()
        x, y, t = pool_x[i, k].float(), pool_y[i, k].float(), pool_t[i, k]
        d = consistency(base, x, t, base.v(x, t, pool_e[i])) - y
        loss = ((d**2 + 0.001**2).sqrt() - 0.001).mean()
        loss.backward()
        acc[0] += loss.detach()
        acc[1 : 1 + K] += d.detach().abs().mean((1, 2, 3)).view(-1, K).mean(0)

    t0 = time.time()
    for _ in range(a.first_fill):
        refill()
    if cuda:
        torch.cuda.synchronize()
    log(f"{ring['n']} chains of {K}, {ring['n'] / (time.time() - t0):.0f} chains/s")

    def show():
        ps = [p for p, _ in PROMPTS[::3]][: 16 if cuda else 4]
        sch = LCMScheduler.from_config(dict(SCHEDULE, clip_sample=False, set_alpha_to_one=False))
        sch.set_timesteps(4, device=dev)
        Lora.scale = 0.0
        rows = [base.sample(ps, base.dpm(20), guidance[0]), base.sample(ps, sch, 1.0)]
        Lora.scale = 1.0
        sch.set_timesteps(4, device=dev)
        rows.append(base.sample(ps, sch, 1.0))
        sheet(rows, f"{a.out}/preview.png")  # teacher at 20 steps; 4 LCM steps without and with the LoRA

    loop(a, flat, work, refill, a.batch / a.reuse / (a.fresh * K), acc, ("loss", *(f"L1@{t}" for t in STAGES)), show)


if __name__ == "__main__":
    main()
