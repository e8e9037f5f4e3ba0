"""Train the UNet and the text encoder together, lean enough to keep the GPUs busy. Start with train.sh (torchrun).

- A ring of latents lives on the GPU. Every few steps a batch of fresh pictures is composited, encoded and written
  over the oldest ones; each latent is used about --reuse times, with new noise and a new time step.
- One training step (draw from the ring, text encoder, UNet, losses, backward) is compiled and captured as one CUDA
  graph, so it costs the CPU almost nothing; the CPU spends its time launching the compositor, which never reads
  anything back.
- Parameters, gradients and EMA are three flat buffers: one all-reduce, one norm, one AdamW, one EMA kernel a step.
- v-prediction, min-SNR 5 with a floor, 10 % empty captions, linear warm-up, flat, then cosine to zero.
- Helper loss: the pooled text output predicts the MiniLM embedding of words and captions.
- --minutes is the wall time of everything, compilation included. OUT/begin holds the time of the first start, so a
  restart on the same machine keeps the deadline; without that file a resumed run gets back the share of the time it
  had used.
"""

import argparse
import copy
import math
import os
import time

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler

from models import MAX_LEN, SCHEDULE, TEXT_DIM, build_text, build_unet, text_forward
from render import Compositor, load_atlas
from sample import PROMPTS
from stream import Tok, batches, log, to_pil

START = time.time()
ALIGN = 64  # floats; keeps every parameter 256-byte aligned inside the flat buffer


def arguments():
    """Parse the command line."""
    p = argparse.ArgumentParser()
    p.add_argument("--data", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--vae", required=True, help="folder of the trained VAE; it is only used to encode")
    p.add_argument("--minutes", type=float, default=27)
    p.add_argument("--steps", type=int, default=0, help="stop after so many steps (tests)")
    p.add_argument("--batch", type=int, default=512, help="a GPU")
    p.add_argument("--fresh", type=int, default=1024, help="pictures composited at a time")
    p.add_argument("--encode", type=int, default=256)
    p.add_argument("--reuse", type=float, default=8)
    p.add_argument("--pool", type=int, default=196608)
    p.add_argument("--first_fill", type=int, default=49152)
    p.add_argument("--lr", type=float, default=9e-4)
    p.add_argument("--text_lr", type=float, default=5e-4)
    p.add_argument("--warmup", type=int, default=600)
    p.add_argument("--flat", type=float, default=0.35, help="share of the time before the rate falls")
    p.add_argument("--ema", type=float, default=0.9995)
    p.add_argument("--drop", type=float, default=0.10)
    p.add_argument("--floor", type=float, default=0.15)
    p.add_argument("--aux", type=int, default=128)
    p.add_argument("--aux_w", type=float, default=0.05)
    p.add_argument("--save_every", type=float, default=300)
    p.add_argument("--preview_every", type=float, default=300)
    p.add_argument("--first_preview", type=float, default=120)
    p.add_argument("--compile", type=int, default=1)
    p.add_argument("--graph", type=int, default=1)
    p.add_argument("--workers", type=int, default=12)
    p.add_argument("--device", default="cuda")
    p.add_argument("--log_every", type=int, default=100)
    return p.parse_args()


def flatten(modules, dev):
    """Move the modules' parameters into one flat float32 buffer, keeping their memory format.

    Returns (buffer, views, length of each module's part).
    """
    ps = [[q for q in m.parameters()] for m in modules]

    def size(q):
        return -(-q.numel() // ALIGN) * ALIGN

    buf = torch.zeros(sum(size(q) for m in ps for q in m), device=dev)
    views, parts, o = [], [], 0
    for m in ps:
        a = o
        for q in m:
            v = torch.as_strided(buf, q.shape, q.stride(), o)
            v.copy_(q.data)
            q.data = v
            views.append(v)
            o += size(q)
        parts.append(o - a)
    return buf, views, parts


def strided_like(buf, views):
    """Return views of a buffer laid out like other views."""
    return [torch.as_strided(buf, v.shape, v.stride(), v.storage_offset()) for v in views]


@torch.no_grad()
def sample(unet, text, vae, tok, prompts, dev, steps=12, cfg=5.0, seed=1):
    """Draw prompts with the model in training."""
    sch = DPMSolverMultistepScheduler(**SCHEDULE)
    sch.set_timesteps(steps, device=dev)
    x = torch.cat(
        [torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(seed + i)) for i in range(len(prompts))]
    ).to(dev)
    ids = torch.from_numpy(tok([""] * len(prompts) + list(prompts))).to(dev)
    with (
        torch.autocast(dev.type, torch.bfloat16, enabled=dev.type == "cuda"),
        torch.backends.cudnn.flags(enabled=True, benchmark=False),
    ):
        e = text(input_ids=ids).last_hidden_state
        for t in sch.timesteps:
            u, c = unet(torch.cat([x, x]), t, e, return_dict=False)[0].float().chunk(2)
            x = sch.step(u + cfg * (c - u), t, x, return_dict=False)[0]
        return torch.cat([vae.decode(z / vae.config.scaling_factor, return_dict=False)[0].float() for z in x.split(16)])


def save_preview(img, path, cols=8, cell=192):
    """Save pictures as a sheet."""
    from PIL import Image

    out = Image.new("RGB", (cols * cell, -(-len(img) // cols) * cell))
    for i, t in enumerate(img):
        out.paste(to_pil(t).resize((cell, cell), Image.LANCZOS), (i % cols * cell, i // cols * cell))
    out.save(path + ".tmp", "PNG")
    os.replace(path + ".tmp", path)


def main():
    """Train until the time is over."""
    a = arguments()
    rank, world, local = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    cuda = a.device == "cuda"
    dev = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(dev)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    os.makedirs(a.out, exist_ok=True)
    if world > 1:
        dist.init_process_group("nccl" if cuda else "gloo", **(dict(device_id=dev) if cuda else {}))
    lead = rank == 0
    say = log if lead else (lambda s: None)
    torch.manual_seed(1)
    sync = torch.cuda.synchronize if cuda else (lambda: None)
    nhwc = torch.channels_last

    # ---- data: start the workers first, they need a while
    ck = f"{a.out}/state.pt"
    state = torch.load(ck, map_location="cpu", weights_only=True) if os.path.exists(ck) else None
    step, total = (state["step"] if state else 0), 60 * a.minutes
    if not os.path.exists(f"{a.out}/begin") and lead:
        open(f"{a.out}/begin", "w").write(str(START - (state["u"] * total if state else 0)))
    data = batches(a.data, a.fresh, a.workers, seed=7 + step + 100000 * rank, packed=True)
    tok = Tok(f"{a.data}/tokenizer")
    comp = Compositor(load_atlas(a.data, dev), dev)
    vae = AutoencoderKL.from_pretrained(a.vae).float().to(dev).eval().requires_grad_(False).to(memory_format=nhwc)
    scale = vae.config.scaling_factor
    say(f"data ready, {len(comp.full)} sprites, scaling {scale:.5f}")

    # ---- models, in flat buffers
    def make():
        return (
            build_unet().to(dev).to(memory_format=nhwc),
            build_text(f"{a.data}/tokenizer").to(dev),
            torch.nn.Linear(TEXT_DIM, 384).to(dev),
        )

    unet, text, head = net = make()
    e_unet, e_text, e_head = ema_net = make()
    flat, views, parts = flatten(net, dev)
    e_flat, _, _ = flatten(ema_net, dev)
    e_flat.copy_(flat)
    grad = torch.zeros_like(flat)
    for q, g in zip([q for m in net for q in m.parameters()], strided_like(grad, views)):
        q.grad = g
    for m in ema_net:
        m.eval().requires_grad_(False)
    k = parts[0]
    master = [torch.nn.Parameter(flat[:k]), torch.nn.Parameter(flat[k:])]
    master[0].grad, master[1].grad = grad[:k], grad[k:]
    opt = torch.optim.AdamW(
        [
            dict(params=master[:1], base=a.lr, weight_decay=0.01),
            dict(params=master[1:], base=a.text_lr, weight_decay=0.02),
        ],
        lr=a.lr,
        betas=(0.9, 0.99),
        eps=1e-8,
        fused=True,
    )

    def count(m):
        return sum(q.numel() for q in m.parameters()) / 1e6

    say(f"unet {count(unet):.2f} M, text {count(text):.2f} M, vae {count(vae):.2f} M")
    if state:
        flat.copy_(state["flat"])
        e_flat.copy_(state["ema"])
        opt.load_state_dict(state["opt"])
        say(f"resumed at step {step}")
        for g, b in zip(opt.param_groups, (a.lr, a.text_lr)):
            g["base"] = b
        state = None
    if world > 1:
        dist.broadcast(flat, 0)
        dist.broadcast(e_flat, 0)

    # ---- constants
    beta = torch.linspace(SCHEDULE["beta_start"] ** 0.5, SCHEDULE["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    ac = torch.cumprod(1 - beta, 0)
    snr = (ac / (1 - ac)).float()
    wt = (snr.clamp(max=5) / (snr + 1)).clamp(min=a.floor)
    sa, sb, wt = (x.float().to(dev) for x in (ac.sqrt(), (1 - ac).sqrt(), wt / wt.mean()))
    empty = torch.from_numpy(tok([""])).to(dev)
    z = np.load(f"{a.data}/aux.npz")
    aux_ids = torch.from_numpy(tok(z["text"].tobytes().decode().split("\n"), 24)).to(dev)
    aux_emb = F.normalize(torch.from_numpy(z["emb"]).to(dev).float(), dim=-1)

    def amp():
        return torch.autocast(dev.type, torch.bfloat16)

    # ---- the ring of latents
    pool_z = torch.zeros(a.pool, 4, 32, 32, device=dev, dtype=torch.float16)
    pool_t = torch.zeros(a.pool, MAX_LEN, device=dev, dtype=torch.int16)
    filled_t = torch.zeros((), device=dev)
    ring = dict(at=0, filled=0, made=0)

    def put(x):
        return (torch.from_numpy(x).pin_memory() if cuda else torch.from_numpy(x)).to(dev, non_blocking=True)

    def encode(x):
        return vae.encode(x).latent_dist.mode()

    if a.compile:
        encode = torch.compile(encode, dynamic=False)

    @torch.no_grad()
    def refill():
        x, plan, ids = next(data)
        img = comp.draw(put(x), plan)
        with amp():
            for j in range(0, plan["n"], a.encode):
                p = (ring["at"] + j) % a.pool
                pool_z[p : p + a.encode] = encode(img[j : j + a.encode].contiguous(memory_format=nhwc)).float() * scale
        pool_t[ring["at"] : ring["at"] + plan["n"]] = put(ids)
        ring["at"] = (ring["at"] + plan["n"]) % a.pool
        ring["made"] += plan["n"]
        if ring["filled"] < a.pool:
            ring["filled"] = min(a.pool, ring["filled"] + plan["n"])
            filled_t.fill_(ring["filled"])

    assert a.pool % a.fresh == 0 and a.fresh % a.encode == 0

    # ---- one step
    def forward(x0, ids, n, t, ids_k, emb_k):
        A, B = sa[t].view(-1, 1, 1, 1), sb[t].view(-1, 1, 1, 1)
        xt = (A * x0 + B * n).contiguous(memory_format=nhwc)
        v = unet(xt, t, text_forward(text, ids)[0], return_dict=False)[0]
        mse = (v.float() - (A * n - B * x0)).pow(2).mean((1, 2, 3))
        aux = 1 - F.cosine_similarity(head(text_forward(text, ids_k)[1]).float(), emb_k, dim=-1).mean()
        loss = (mse * wt[t]).mean()
        return loss + a.aux_w * aux, torch.stack([mse.mean(), loss, aux]).detach()

    run = torch.compile(forward, dynamic=False) if a.compile else forward
    acc = torch.zeros(4, device=dev)

    def work():
        """Everything up to the gradients; no argument, no result, so it can be captured."""
        i = (torch.rand(a.batch, device=dev) * filled_t).long()
        ids = torch.where(torch.rand(a.batch, 1, device=dev) < a.drop, empty, pool_t[i].long())
        t = (
            ((torch.arange(a.batch, device=dev) + torch.rand(a.batch, device=dev)) * (1000 / a.batch))
            .long()
            .clamp(max=999)
        )  # stratified
        j = torch.randint(0, aux_ids.shape[0], (a.aux,), device=dev)
        x0 = pool_z[i].float()
        with amp():
            total, m = run(x0, ids, torch.randn_like(x0), t, aux_ids[j], aux_emb[j])
        total.backward()
        acc[:3] += m

    replay, t0 = work, time.time()
    torch.manual_seed(100 + rank + step)
    for _ in range(2):
        refill()
    sync()
    say(f"generator ready ({time.time() - t0:.0f} s)")
    t0 = time.time()
    if cuda:
        s = torch.cuda.Stream()
        s.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(s):
            for _ in range(3):
                work()
        torch.cuda.current_stream().wait_stream(s)
        sync()
        say(f"step compiled ({time.time() - t0:.0f} s)")
        if a.graph:
            try:
                g = torch.cuda.CUDAGraph()
                with torch.cuda.graph(g, capture_error_mode="thread_local"):
                    work()
                replay = g.replay
                replay()
                sync()
                say("step captured as a CUDA graph")
            except Exception as e:
                log(f"rank {rank}: no CUDA graph ({type(e).__name__}: {str(e)[:200]}); running without")
                replay = work
                torch.cuda.synchronize()
    grad.zero_()
    acc.zero_()
    t0 = time.time()
    n0 = ring["made"]
    while ring["filled"] < min(a.pool, a.first_fill):
        refill()
    sync()
    say(
        f"pool {ring['filled']}, {(ring['made'] - n0) / max(time.time() - t0, 1e-3):.0f} fresh pictures/s a GPU, "
        f"{torch.cuda.max_memory_allocated() / 2**30 if cuda else 0:.1f} GiB"
    )

    # ---- saving
    def save():
        """fp32 state for resuming; fp16 EMA weights to fetch."""
        torch.save(dict(flat=flat.cpu(), ema=e_flat.cpu(), opt=opt.state_dict(), step=step, u=u), ck + ".tmp")
        os.replace(ck + ".tmp", ck)
        for m, n in ((e_unet, "unet"), (e_text, "text")):
            copy.deepcopy(m).to(memory_format=torch.contiguous_format).half().save_pretrained(f"{a.out}/weights/{n}")
        open(f"{a.out}/weights/STEP", "w").write(f"{step} {u:.4f}\n")

    def preview():
        t = time.time()
        save_preview(
            sample(e_unet, e_text, vae, tok, [p for p, _ in PROMPTS], dev, steps=12 if cuda else 3),
            f"{a.out}/preview_{step:06d}.png",
        )
        log(f"preview_{step:06d} in {time.time() - t:.1f} s")

    # ---- the loop
    if world > 1:
        dist.barrier()
    begin, u = float(open(f"{a.out}/begin").read()), 0.0
    last, last_step, last_save, next_prev = time.time(), step, time.time(), time.time() + a.first_preview
    owed, tick, gen_cpu, base = 0.0, 10 if cuda else 1, 0.0, step
    clock = torch.zeros(1, dtype=torch.float64, device=dev)
    while True:
        if (step - base) % tick == 0:  # rank 0's clock counts; everything else runs ahead between two of these
            clock.fill_((time.time() - begin) / total)
            if world > 1:
                dist.broadcast(clock, 0)
            u = clock.item()
            if u >= 1 or (a.steps and step >= a.steps):
                break
        f = min(1, (step + 1) / a.warmup) * (
            1.0 if u < a.flat else 0.5 * (1 + math.cos(math.pi * (u - a.flat) / (1 - a.flat)))
        )
        for gr in opt.param_groups:
            gr["lr"] = gr["base"] * f
        replay()
        if world > 1:
            dist.all_reduce(grad, op=dist.ReduceOp.AVG if cuda else dist.ReduceOp.SUM)
        if world > 1 and not cuda:
            grad.div_(world)
        gn = grad.norm()
        grad.mul_((1.0 / (gn + 1e-6)).clamp(max=1.0))
        acc[3] += gn
        opt.step()
        grad.zero_()
        step += 1
        e_flat.lerp_(flat, 1 - min(a.ema, (1 + step) / (10 + step)))
        owed += a.batch / a.reuse / a.fresh
        if owed >= 1 and (step - base) % tick == min(
            3, tick - 1
        ):  # a few steps are queued already, so this never leaves the GPU idle
            t0 = time.time()
            while owed >= 1:
                refill()
                owed -= 1
            gen_cpu += time.time() - t0
        if step % a.log_every == 0 or not cuda:
            m = (acc / (step - last_step)).tolist()
            acc.zero_()
            now = time.time()
            say(
                f"step {step} u {u:.3f} mse {m[0]:.4f} loss {m[1]:.4f} aux {m[2]:.3f} gn {m[3]:.2f} "
                f"lr {a.lr * f:.2e} img/s {(step - last_step) * a.batch * world / (now - last):.0f} "
                f"fresh {ring['made']} launch {gen_cpu / (now - last):.0%}"
            )
            assert math.isfinite(m[0]), "not finite"
            last, last_step, gen_cpu = now, step, 0.0
        if lead and time.time() > next_prev:
            preview()
            next_prev = time.time() + a.preview_every
        if lead and time.time() - last_save > a.save_every:
            save()
            last_save = time.time()
            log("saved")
    if lead:
        save()
        log(f"done, {step} steps, {step * a.batch * world / 1e6:.1f} M samples, {time.time() - begin:.0f} s")
        open(f"{a.out}/DONE", "w").write(str(step))
        preview()
        open(f"{a.out}/SHOWN", "w").write("1")
    os._exit(0)


if __name__ == "__main__":
    main()
