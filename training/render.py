"""The compositor: a batch of recipes -> [B,3,256,256] pictures in [-1,1], on the GPU (or the CPU)."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F

from packing import order, pack, unpack

S = 256


def load_atlas(data, device, dtype=torch.uint8):
    """All sprites as premultiplied RGBA uint8, at 256 and at 128 (for small placements)."""
    from PIL import Image

    meta = json.load(open(f"{data}/sprites.json"))
    blob = open(f"{data}/sprites.bin", "rb").read()

    def one(m):
        a = np.asarray(Image.open(io.BytesIO(blob[m["off"] : m["off"] + m["n"]])).convert("RGBA")).astype(np.uint16)
        a[..., :3] = (a[..., :3] * a[..., 3:] + 127) // 255
        return torch.from_numpy(a.astype(np.uint8)).permute(2, 0, 1)

    with ThreadPoolExecutor(16) as ex:
        full = torch.stack(list(ex.map(one, meta))).to(device)
    half = torch.cat([F.avg_pool2d(x.float(), 2).round().to(torch.uint8) for x in full.split(256)])
    return full, half


def lerp(a, b, t):
    """Mix a and b."""
    return a + (b - a) * t


_CONST = {}


def const(v, dev):
    """A small constant on the device, copied there once (every copy from the host stalls the stream)."""
    k = (repr(v), str(dev))
    if k not in _CONST:
        _CONST[k] = torch.tensor(v, device=dev)
    return _CONST[k]


def col(*rgb, like):
    """Return a colour that broadcasts over pictures."""
    return const(rgb, like.device).view(1, 3, 1, 1)


class Compositor:
    """Draws recipes on the GPU, a batch at a time."""

    def __init__(self, atlas, device):
        self.full, self.half = atlas
        self.dev = device
        g = (torch.arange(S, device=device, dtype=torch.float32) + 0.5) / S
        self.y, self.x = torch.meshgrid(g, g, indexing="ij")
        self.y, self.x = self.y[None, None], self.x[None, None]

    # ---------------------------------------------------------------- helpers
    def edge(self, v, soft=0.004):
        """Return a soft step."""
        return torch.sigmoid(v / soft)

    def blend(self, img, colour, mask):
        """Lay a colour over a picture through a mask."""
        return img + (colour - img) * mask

    def specks(self, n, p, cells=64, size=4, blur=True):
        """Random soft dots: [n,1,S,S] in 0..1."""
        m = (torch.rand(n, 1, cells, cells, device=self.dev) < p).float() * (
            0.5 + 0.5 * torch.rand(n, 1, cells, cells, device=self.dev)
        )
        m = (
            F.interpolate(m, size=(S, S), mode="bicubic" if blur else "nearest", align_corners=False)
            if blur
            else F.interpolate(m, size=(S, S), mode="nearest")
        )
        return (m * 1.6 - 0.25).clamp(0, 1)

    def tri(self, x, f, ph):
        """Return a triangle wave in 0..1."""
        return 1 - (2 * torch.frac(x * f + ph) - 1).abs()

    def sky(self, b, kind, r, hz):
        """Sky colours by kind (0 day, 1 sunset, 2 night, 3 cloudy), with sun, moon, stars or clouds."""
        n = b
        x, y = self.x, self.y
        dev = self.dev
        top = const([[0.26, 0.58, 0.95], [0.33, 0.22, 0.55], [0.02, 0.04, 0.15], [0.58, 0.64, 0.70]], dev)
        mid = const([[0.55, 0.80, 0.98], [0.96, 0.48, 0.42], [0.06, 0.09, 0.28], [0.72, 0.77, 0.81]], dev)
        bot = const([[0.86, 0.95, 1.0], [1.0, 0.80, 0.45], [0.16, 0.20, 0.46], [0.87, 0.90, 0.92]], dev)
        k = kind
        j = (r[:, 0:3] - 0.5).view(n, 3, 1, 1) * 0.10
        t, m, bo = (c[k].view(n, 3, 1, 1) + j for c in (top, mid, bot))
        v = (y / hz.clamp(min=0.45)).clamp(0, 1)
        img = torch.where(v < 0.6, lerp(t, m, v / 0.6), lerp(m, bo, (v - 0.6) / 0.4)).expand(n, 3, S, S).contiguous()
        one = torch.ones(1, 1, 1, 1, device=dev)

        def f(c):
            return c.view(n, 1, 1, 1)

        day, sun, night, cl = ((f((k == i).float())) for i in range(4))
        # stars and moon
        stars = self.specks(n, 0.012) * (y < hz) * night
        img = self.blend(img, one, stars * 0.95)
        mx, my, mr = 0.15 + 0.7 * f(r[:, 3]), 0.10 + 0.15 * f(r[:, 4]), 0.045 + 0.035 * f(r[:, 5])
        d = ((x - mx) ** 2 + (y - my) ** 2).sqrt()
        moon = self.edge(mr - d) * night * f((r[:, 6] < 0.6).float())
        cres = self.edge(((x - mx - 0.5 * mr) ** 2 + (y - my + 0.3 * mr) ** 2).sqrt() - mr * 0.85)
        img = self.blend(
            img, col(1.0, 0.97, 0.82, like=img), moon * torch.where(f(r[:, 7]) < 0.6, cres, torch.ones_like(cres))
        )
        # sun: by day in the upper part, at sunset on the horizon
        has = day * f((r[:, 6] < 0.35).float()) + sun * f((r[:, 6] < 0.75).float())
        sy = my * (1 - sun) + (hz - 0.05 - 0.12 * f(r[:, 4])) * sun
        d = ((x - mx) ** 2 + (y - sy) ** 2).sqrt()
        sr = 0.055 + 0.05 * f(r[:, 5]) * (1 + sun * 0.6)
        glow = torch.exp(-((d / (sr * 2.4)) ** 2)) * 0.45
        img = self.blend(img, col(1.0, 0.93, 0.62, like=img), (glow + self.edge(sr - d)).clamp(0, 1) * has)
        # clouds
        cm = torch.zeros(n, 1, S, S, device=dev)
        for c in range(3):
            cx, cy = f(r[:, 8 + c]), 0.08 + 0.26 * f(r[:, 11 + c])
            w = 0.07 + 0.06 * f(r[:, 14 + c])
            for dx, dy, q in ((-1, 0.25, 0.55), (-0.35, -0.15, 0.8), (0.4, 0, 0.7), (1.05, 0.28, 0.5)):
                dd = (((x - cx - dx * w) / 1.15) ** 2 + (y - cy - dy * w) ** 2).sqrt()
                cm = torch.maximum(cm, self.edge(w * q - dd, 0.008) * self.edge(cy + 0.38 * w - y, 0.006))
        ca = day * f((r[:, 17] < 0.65).float()) * 0.92 + cl * 0.8 + sun * f((r[:, 17] < 0.4).float()) * 0.5
        cc = torch.where(sun > 0, col(1.0, 0.78, 0.70, like=img), torch.ones_like(img[:, :, :1, :1]))
        return self.blend(img, cc, cm * ca)

    def tone(self, img, kind):
        """Dim and tint the ground by the time of day."""
        t = const([[1.0, 1.0, 1.0], [1.0, 0.80, 0.74], [0.38, 0.42, 0.62], [0.88, 0.90, 0.92]], self.dev)[kind].view(
            -1, 3, 1, 1
        )
        return img * t

    # ---------------------------------------------------------------- backgrounds
    def background(self, q, plan):
        """Draw the backgrounds of a batch in drawing order."""
        out = torch.empty(plan["n"], 3, S, S, device=self.dev)
        m = plan["sky"]
        sky = self.sky(m, q["sky"][:m], q["rnd"][:m], q["horizon"][:m].view(m, 1, 1, 1)) if m else None
        for g, a, b in plan["grounds"]:
            out[a:b] = self.one(g, {k: v[a:b] for k, v in q.items()}, b - a, sky[a:b] if b <= m else None)
        return out.clamp_(0, 1)

    def one(self, g, q, n, sky):
        """Draw n backgrounds of ground g."""
        x, y, dev = self.x, self.y, self.dev
        r = q["rnd"]

        def f(c):
            return r[:, c].view(n, 1, 1, 1)

        C, D = q["c"].view(n, 3, 1, 1), q["d"].view(n, 3, 1, 1)
        C = C + (r[:, 0:3].view(n, 3, 1, 1) - 0.5) * 0.05
        hz = q["horizon"].view(n, 1, 1, 1)
        kind = q["sky"]
        flat = q["flat"].view(n, 1, 1, 1)

        def full(c):
            return c.expand(n, 3, S, S).clone()

        def cc(*v):
            return col(*v, like=r)

        white = cc(1.0, 1.0, 1.0)
        if g == 0:  # studio: soft pastel with a light centre
            h = f(1) * 6.283
            base = 0.82 + 0.14 * torch.cat([torch.cos(h), torch.cos(h - 2.094), torch.cos(h + 2.094)], 1)
            base = torch.where(f(4) < 0.25, cc(0.90, 0.91, 0.93), base)
            d = ((x - 0.5) ** 2 + (y - 0.42) ** 2).sqrt()
            return lerp(
                full((base + (white - base) * 0.45).clamp(max=1)), base, (d * 1.3).clamp(0, 1) * (1 - 0.6 * flat)
            )
        if g == 24:
            return full(white * (0.985 + 0.015 * f(1)))
        if g == 1:
            v = (y - 0.5) * 0.10 * f(3) * (1 - flat)
            return full(C) - v
        if g == 2:
            a = f(3) * 6.283
            t = (((x - 0.5) * torch.cos(a) + (y - 0.5) * torch.sin(a)) * 1.1 + 0.5).clamp(0, 1)
            return lerp(C, D, t)
        if g == 18 or g == 19:
            k = 5 + torch.floor(f(3) * 5)
            if g == 18:
                u, v = torch.frac(x * k) - 0.5, torch.frac(y * k) - 0.5
                m = self.edge(0.27 - (u * u + v * v).sqrt(), 0.03)
            else:
                a = torch.where(
                    f(4) < 0.4,
                    torch.zeros_like(f(4)),
                    torch.where(f(4) < 0.7, torch.full_like(f(4), 1.5708), torch.full_like(f(4), 0.7854)),
                )
                m = self.edge((torch.frac((x * torch.cos(a) + y * torch.sin(a)) * k) - 0.5).abs() - 0.25, 0.02)
            return self.blend(full(C), D, m)
        if g == 7:  # underwater
            img = full(lerp(cc(0.25, 0.75, 0.90), cc(0.02, 0.18, 0.48), y**0.8 * (1 - 0.3 * flat)))
            rays = torch.sin((x - 0.5 + (y + 0.3) * (f(3) - 0.5)) * 22 + f(4) * 6) * 0.5 + 0.5
            img = img + rays * (1 - y) * 0.10
            sand = self.edge(y - (0.86 + 0.03 * torch.sin(x * 9 + f(5) * 6)), 0.006)
            img = self.blend(img, lerp(cc(0.90, 0.80, 0.55), cc(0.62, 0.60, 0.50), y), sand * (f(6) < 0.6) * 0.85)
            for b in range(8):
                bx, by, br = f(8 + b), f(15 + b % 8) * 0.9, 0.008 + 0.018 * f((9 + b) % 24)
                d = ((x - bx) ** 2 + (y - by) ** 2).sqrt()
                img = self.blend(
                    img, white, self.edge(br - d, 0.003) * 0.25 + self.edge(0.003 - (d - br).abs(), 0.0015) * 0.6
                )
            return img
        if g in (16, 17):  # space, moon
            img = full(lerp(cc(0.02, 0.02, 0.08), cc(0.09, 0.04, 0.20), y))
            for b in range(2):
                cx, cy, w = f(3 + b), f(5 + b), 0.22 + 0.25 * f(7 + b)
                h = f(9 + b) * 6.283
                cl_ = 0.5 + 0.5 * torch.cat([torch.cos(h), torch.cos(h - 2.094), torch.cos(h + 2.094)], 1)
                img = img + cl_ * 0.38 * torch.exp(-(((x - cx) ** 2 + (y - cy) ** 2) / w**2))
            img = self.blend(img, white, self.specks(n, 0.02))
            if g == 16:
                d = ((x - f(11)) ** 2 + (y - f(12) * 0.9) ** 2).sqrt()
                pr = 0.05 + 0.08 * f(13)
                h = f(14) * 6.283
                pc = 0.62 + 0.3 * torch.cat([torch.cos(h), torch.cos(h - 2.094), torch.cos(h + 2.094)], 1)
                sh = ((x - f(11)) + (y - f(12) * 0.9)) / pr
                img = self.blend(img, pc * (1 - 0.35 * sh.clamp(-1, 1)), self.edge(pr - d) * (f(15) < 0.5))
            else:
                gy = y - (hz + 0.03 * torch.sin(x * 5 + f(3) * 6))
                ground = lerp(cc(0.78, 0.78, 0.80), cc(0.52, 0.52, 0.55), ((y - hz) * 2.2).clamp(0, 1))
                for b in range(7):
                    cx, cy, w = f(8 + b), hz + 0.06 + 0.40 * f(15 + b), 0.03 + 0.05 * f((10 + b) % 24)
                    d = ((x - cx) ** 2 + ((y - cy) * 2.4) ** 2).sqrt()
                    ground = self.blend(ground, cc(0.45, 0.45, 0.48), self.edge(w - d, 0.004) * 0.7)
                    ground = self.blend(
                        ground,
                        cc(0.66, 0.66, 0.68),
                        self.edge(w * 0.78 - ((x - cx) ** 2 + ((y - cy - w * 0.06) * 2.4) ** 2).sqrt(), 0.004) * 0.9,
                    )
                img = self.blend(img, ground, self.edge(gy))
            return img
        if g in (13, 14):  # table, room
            h = f(1) * 6.283
            wall = 0.80 + 0.13 * torch.cat([torch.cos(h), torch.cos(h - 2.094), torch.cos(h + 2.094)], 1)
            img = full(wall) * (1 - 0.12 * (y - 0.3).clamp(min=0) * (1 - flat))
            if g == 14:
                wx, wy = 0.12 + 0.6 * f(3), 0.10 + 0.06 * f(4)
                win = self.edge(0.12 - (x - wx).abs()) * self.edge(0.13 - (y - wy - 0.12).abs())
                inn = (
                    self.edge(0.105 - (x - wx).abs())
                    * self.edge(0.115 - (y - wy - 0.12).abs())
                    * (1 - self.edge(0.006 - (x - wx).abs(), 0.002))
                    * (1 - self.edge(0.006 - (y - wy - 0.12).abs(), 0.002))
                )
                img = self.blend(img, white, win * (f(5) < 0.7))
                img = self.blend(img, lerp(cc(0.45, 0.72, 0.98), cc(0.85, 0.95, 1.0), y * 2), inn * (f(5) < 0.7))
                img = self.blend(img, white * 0.95, self.edge(0.012 - (y - hz - 0.08).abs(), 0.002))
            e = hz + (0.10 if g == 14 else 0.06)
            wood = lerp(cc(0.80, 0.56, 0.34), cc(0.60, 0.38, 0.22), ((y - e) * 2).clamp(0, 1)) * (0.85 + 0.3 * f(6))
            line = self.edge(0.0035 - (torch.frac((y - e) * (6 if g == 13 else 9)) - 0.5).abs() / 9, 0.0015)
            wood = self.blend(wood, wood * 0.72, line)
            return self.blend(img, wood, self.edge(y - e))
        if g == 23:  # stage
            img = full(lerp(cc(0.10, 0.05, 0.14), cc(0.16, 0.08, 0.20), y))
            cur = torch.sin(x * 60) * 0.5 + 0.5
            img = self.blend(
                img, lerp(cc(0.60, 0.05, 0.10), cc(0.36, 0.02, 0.06), cur), self.edge((x - 0.5).abs() - 0.38)
            )
            img = self.blend(img, lerp(cc(0.62, 0.40, 0.24), cc(0.40, 0.24, 0.14), (y - 0.72) * 3), self.edge(y - 0.74))
            cone = self.edge(0.04 + y * 0.34 - (x - 0.5 - (f(3) - 0.5) * 0.3 * (1 - y)).abs(), 0.02)
            return img + cone * 0.22
        if g == 25:  # flames
            img = full(lerp(cc(0.20, 0.03, 0.03), cc(0.55, 0.10, 0.02), y))
            for c_, a, fr, s0 in (
                ((0.90, 0.22, 0.05), 0.62, 7, 3),
                ((1.0, 0.55, 0.08), 0.48, 8, 7),
                ((1.0, 0.85, 0.25), 0.32, 9, 11),
            ):
                hgt = (
                    a
                    * (0.55 + 0.45 * self.tri(x, float(fr), f(s0)) ** 0.7)
                    * (0.75 + 0.25 * torch.sin(x * 13 + f(s0 + 1) * 6))
                )
                img = self.blend(img, cc(*c_), self.edge(y - (1 - hgt), 0.012))
            return img
        if g in (22, 27):  # confetti, hearts
            base = torch.where(f(3) < 0.5, white * 0.98, C * 0.4 + white * 0.6)
            img = full(base)
            for b in range(3 if g == 27 else 6):
                if g == 22:
                    m = self.specks(n, 0.035, cells=32)
                    m = self.edge(m - 0.35, 0.05)
                    h = (f(4) + b / 6) * 6.283
                    cl_ = 0.62 + 0.38 * torch.cat([torch.cos(h), torch.cos(h - 2.094), torch.cos(h + 2.094)], 1)
                    img = self.blend(img, cl_, m)
                else:
                    k = 3 + b
                    u, v = torch.frac(x * k + f(5 + b)) * 2 - 1, 1 - torch.frac(y * k + f(8 + b)) * 2
                    u, v = u * 1.9, v * 1.9
                    hrt = (u * u + v * v - 1) ** 3 - u * u * v**3
                    keep = (torch.rand(n, 1, k, k, device=dev) < 0.45).float()
                    keep = F.interpolate(keep, size=(S, S), mode="nearest")
                    img = self.blend(
                        img, cc(*((0.95, 0.25, 0.40), (0.98, 0.60, 0.72), (0.85, 0.12, 0.25))[b]), self.edge(-hrt, 0.05)
                    )
            return img
        if g == 21:  # rain
            img = full(lerp(cc(0.42, 0.47, 0.54), cc(0.66, 0.70, 0.75), y))
            img = self.blend(
                img,
                lerp(cc(0.42, 0.46, 0.50), cc(0.30, 0.34, 0.38), (y - hz) * 2),
                self.edge(y - hz - 0.12) * (f(3) < 0.6),
            )
            z = (torch.rand(n, 1, 22, 64, device=dev) < 0.14).float()
            z = F.interpolate(z, size=(S, S), mode="bilinear", align_corners=False)
            shift = (torch.arange(S, device=dev)[:, None] * 0.25 + torch.arange(S, device=dev)[None]).long() % S
            z = torch.gather(z, 3, shift.view(1, 1, S, S).expand(n, 1, S, S))
            return self.blend(img, cc(0.86, 0.92, 0.98), (z * 1.4 - 0.5).clamp(0, 0.75))
        if g == 20:  # rainbow
            img = sky
            d = ((x - 0.5 - (f(18) - 0.5) * 0.2) ** 2 + (y - hz - 0.12) ** 2).sqrt()
            t = (d - 0.30) / 0.16
            bow = torch.cat([0.5 + 0.6 * torch.cos((1 - t) * 4.6 - k) for k in (0.0, 2.094, -2.094)], 1).clamp(0, 1)
            img = self.blend(img, bow, self.edge(t, 0.03) * self.edge(1 - t, 0.03) * 0.85)
            gr = lerp(cc(0.48, 0.80, 0.34), cc(0.27, 0.60, 0.22), (y - hz) * 2)
            return self.blend(img, gr, self.edge(y - hz - 0.12 - 0.03 * torch.sin(x * 5 + f(19) * 6)))
        # --- the rest have a sky
        img = sky

        def wav(fr, am, c):
            return hz + am * torch.sin(x * fr + f(c) * 6.283)

        def lay(im, c, e, soft=0.004):
            return self.blend(im, self.tone(c, kind), self.edge(y - e, soft))

        vv = ((y - hz) / (1 - hz)).clamp(0, 1) * (1 - 0.5 * flat)
        if g == 3:
            for b in range(4):  # bank of clouds at the bottom
                cx, w = (b + f(18)) / 4, 0.10 + 0.08 * f(19)
                d = ((x - cx) ** 2 + (y - 1.0) ** 2).sqrt()
                img = self.blend(
                    img, self.tone(white.expand(n, 3, 1, 1), kind), self.edge(w * 1.6 - d, 0.01) * 0.9 * (f(20) < 0.5)
                )
            return img
        if g in (4, 26):
            img = lay(img, lerp(cc(0.42, 0.72, 0.36), cc(0.30, 0.60, 0.28), vv), wav(4, 0.05, 18) - 0.03)
            img = lay(img, lerp(cc(0.52, 0.82, 0.34), cc(0.27, 0.60, 0.20), vv), wav(3, 0.035, 19) + 0.04)
            p = 0.05 if g == 26 else 0.012
            for c_, k in (((1.0, 0.45, 0.62), 20), ((1.0, 0.88, 0.25), 21), ((1.0, 1.0, 1.0), 22)):
                m = self.edge(self.specks(n, p, cells=40) - 0.4, 0.08) * self.edge(y - hz - 0.08)
                img = self.blend(
                    img, self.tone(cc(*c_).expand(n, 3, 1, 1), kind), m * (1.0 if g == 26 else (f(k) < 0.3))
                )
            return img
        if g == 5:
            img = lay(
                img,
                lerp(cc(0.12, 0.50, 0.80), cc(0.25, 0.75, 0.85), ((y - hz + 0.1) * 5).clamp(0, 1)),
                hz - 0.10 + 0 * x,
            )
            e = hz + 0.05 + 0.015 * torch.sin(x * 7 + f(18) * 6.283)
            img = lay(img, white.expand(n, 3, 1, 1), e - 0.018)
            return lay(img, lerp(cc(0.97, 0.88, 0.66), cc(0.90, 0.74, 0.48), vv), e)
        if g == 6:
            img = lay(img, lerp(cc(0.15, 0.55, 0.85), cc(0.04, 0.26, 0.55), vv), wav(20, 0.006, 18))
            wv = torch.sin(y * 90 + 2.2 * torch.sin(x * 14 + f(19) * 6.283 + y * 20))
            return self.blend(
                img,
                self.tone(cc(0.75, 0.90, 1.0).expand(n, 3, 1, 1), kind),
                self.edge(wv - 0.86, 0.03) * self.edge(y - hz - 0.02) * 0.55,
            )
        if g == 8:
            img = lay(img, lerp(cc(0.86, 0.91, 0.97), cc(0.78, 0.85, 0.94), vv), wav(4, 0.05, 18) - 0.04)
            tr = (hz - 0.02) - 0.16 * self.tri(x, 6.0, f(20))
            img = torch.where(f(21) < 0.35, lay(img, cc(0.30, 0.48, 0.44).expand(n, 3, 1, 1), tr), img)
            img = lay(img, lerp(cc(0.97, 0.98, 1.0), cc(0.86, 0.92, 0.98), vv), wav(3, 0.03, 19) + 0.03)
            return self.blend(img, white, self.specks(n, 0.03, cells=48) * 0.9 * (f(22) < 0.7))
        if g == 9:
            img = lay(img, lerp(cc(0.90, 0.66, 0.38), cc(0.85, 0.58, 0.30), vv), wav(5, 0.06, 18) - 0.03)
            img = lay(img, lerp(cc(0.96, 0.78, 0.48), cc(0.88, 0.62, 0.32), vv), wav(3, 0.05, 19) + 0.06)
            return img
        if g == 10:
            for fr, am, dy, c_, k in (
                (9.0, 0.34, -0.02, (0.42, 0.66, 0.52), 18),
                (6.0, 0.42, 0.03, (0.24, 0.52, 0.36), 19),
                (4.5, 0.46, 0.08, (0.12, 0.38, 0.24), 20),
            ):
                xx = x * fr + f(k)
                cell = torch.floor(xx)
                hh = torch.frac(torch.sin(cell * 12.99 + f(21) * 50) * 43758.5).abs()
                t = self.tri(x, fr, f(k))
                saw = torch.frac(t * 3.0) * 0.10
                img = lay(
                    img, cc(*c_).expand(n, 3, 1, 1), (hz + dy) - am * (0.55 + 0.45 * hh) * (t - saw * (1 - flat)), 0.005
                )
            return lay(img, lerp(cc(0.42, 0.62, 0.26), cc(0.28, 0.44, 0.18), vv), wav(4, 0.02, 22) + 0.09)
        if g == 11:
            for fr, am, dy, c_, k in (
                (2.1, 0.36, 0.02, (0.56, 0.64, 0.80), 18),
                (2.9, 0.27, 0.06, (0.40, 0.48, 0.66), 19),
            ):
                xx = x * fr + f(k)
                hh = torch.frac(torch.sin(torch.floor(xx) * 12.99 + f(21) * 50) * 43758.5).abs()
                t = self.tri(x, fr, f(k))
                top = (hz + dy) - am * (0.65 + 0.35 * hh) * t
                img = lay(img, cc(*c_).expand(n, 3, 1, 1), top)
                snow = self.edge(y - top) * self.edge(
                    0.66
                    + 0.05 * torch.sin(x * 60)
                    - (y - (hz + dy) + am * (0.65 + 0.35 * hh)) / (am * (0.65 + 0.35 * hh)) * 1.9,
                    0.02,
                )
                img = self.blend(img, self.tone(white.expand(n, 3, 1, 1), kind), snow)
            return lay(img, lerp(cc(0.46, 0.74, 0.34), cc(0.26, 0.54, 0.22), vv), wav(4, 0.02, 20) + 0.06)
        if g == 12:
            for cells, lo, am, c_, k in (
                (9, 0.10, 0.26, (0.58, 0.66, 0.76), 18),
                (7, 0.05, 0.24, (0.36, 0.42, 0.54), 19),
            ):
                xx = x * cells + f(k)
                hh = torch.frac(torch.sin(torch.floor(xx) * 12.99 + f(20 + (k - 18)) * 50) * 43758.5).abs()
                top = hz + 0.08 - lo - am * hh
                gap = self.edge(0.46 - (torch.frac(xx) - 0.5).abs(), 0.02)
                b = self.edge(y - top) * gap
                img = self.blend(img, self.tone(cc(*c_).expand(n, 3, 1, 1), kind), b)
                win = (
                    self.edge(0.22 - (torch.frac(xx * 4) - 0.5).abs(), 0.06)
                    * self.edge(0.22 - (torch.frac(y * 34) - 0.5).abs(), 0.06)
                    * self.edge(y - top - 0.015)
                )
                lit = torch.where((kind == 2).view(n, 1, 1, 1), cc(1.0, 0.86, 0.45), cc(0.80, 0.90, 0.98))
                img = self.blend(img, lit, b * win * 0.75 * self.edge(0.40 - (torch.frac(xx) - 0.5).abs(), 0.02))
            return lay(img, lerp(cc(0.55, 0.56, 0.58), cc(0.40, 0.41, 0.43), vv), hz + 0.08 + 0 * x)
        if g == 15:
            img = lay(img, lerp(cc(0.52, 0.80, 0.36), cc(0.32, 0.62, 0.24), vv), hz + 0 * x)
            u = x - 0.5 - (f(18) - 0.5) * 0.2 * (1 - vv)
            w = 0.06 + 0.62 * ((y - hz) / (1 - hz)).clamp(0, 1)
            road = self.edge(w - u.abs(), 0.005) * self.edge(y - hz)
            img = self.blend(img, self.tone(cc(0.38, 0.39, 0.42).expand(n, 3, 1, 1), kind), road)
            dash = (
                self.edge(0.045 * w - u.abs(), 0.003)
                * self.edge((torch.frac(7 * (y - hz) / (y - hz + 0.25).clamp(min=0.05) * 1.6) - 0.5), 0.05)
                * self.edge(y - hz - 0.01)
            )
            return self.blend(img, self.tone(white.expand(n, 3, 1, 1), kind), dash)
        raise ValueError(g)

    # ---------------------------------------------------------------- sprites
    def paste(self, img, q, k, atlas, on):
        """Draw the k-th sprite of the pictures listed in `on`."""
        sh, a, n = q["shadow"][on, k], q["aff"][on, k], on.numel()

        def v(t):
            return t.view(-1, 1, 1, 1)

        # contact shadow
        d = ((self.x - v(sh[:, 0])) / v(sh[:, 2].clamp(min=0.02))) ** 2 + (
            (self.y - v(sh[:, 1])) / v(sh[:, 2].clamp(min=0.02) * 0.24)
        ) ** 2
        base = img[on] * (1 - torch.exp(-d * 1.1) * v(sh[:, 3]))
        cx, cy, s, co, si, fl = a.unbind(1)
        # output [-1,1] -> sprite [-1,1]
        th = torch.stack(
            [
                torch.stack([fl * co / s, fl * si / s, -fl * (co * (2 * cx - 1) + si * (2 * cy - 1)) / s], 1),
                torch.stack([-si / s, co / s, -(-si * (2 * cx - 1) + co * (2 * cy - 1)) / s], 1),
            ],
            1,
        )
        lay = F.grid_sample(
            atlas[q["spr"][on, k]].float() / 255,
            F.affine_grid(th, (n, 4, S, S), align_corners=False),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        al = lay[:, 3:]
        rgb = torch.einsum("nij,njhw->nihw", q["mats"][on, k], lay[:, :3]).clamp(min=0)
        rgb = torch.minimum(rgb, al)
        night = ((q["sky"][on] == 2) & (q["ground"][on] >= 3)).float().view(-1, 1, 1, 1)
        img[on] = base * (1 - al) + rgb * (1 - 0.12 * night)

    @torch.no_grad()
    def draw(self, x, plan):
        """pack()ed recipes, the array already on the device -> pictures in [-1,1], in drawing order.

        Reads nothing back.
        """
        q = unpack(x, plan)
        img = self.background(q, plan)
        for k, big, a, b in plan["jobs"]:
            self.paste(img, q, k, self.full if big else self.half, x[a:b].long())
        return img.clamp_(0, 1) * 2 - 1

    @torch.no_grad()
    def __call__(self, q):
        """q: collate()d recipes as numpy arrays. Returns pictures in [-1,1], in the order given."""
        o = order(q["ground"])
        x, plan = pack({k: v[o] for k, v in q.items()})
        return self.draw(torch.from_numpy(x).to(self.dev), plan)[torch.from_numpy(np.argsort(o)).to(self.dev)]
