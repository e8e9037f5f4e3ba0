"""What the two LoRA trainers share: the command line, the frozen base model and the loop.

A step is captured as one CUDA graph.
"""

import argparse
import math
import os
import time

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel

from lora import NHWC, add_lora
from models import SCHEDULE, build_text
from stream import Tok, log, to_pil


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
