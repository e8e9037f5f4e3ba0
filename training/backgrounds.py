"""The backgrounds of a batch. Those without a sky are drawn here, those with one in landscapes.py."""

import torch
import torch.nn.functional as F

from canvas import Canvas, S, col, lerp
from landscapes import Landscapes
from packing import SKY


class Backgrounds(Canvas):
    """Draws the backgrounds of a batch."""

    def __init__(self, device):
        super().__init__(device)
        self.landscapes = Landscapes(device)

    def draw(self, q, plan):
        """Draw the backgrounds of a batch in drawing order."""
        out = torch.empty(plan["n"], 3, S, S, device=self.dev)
        m = plan["sky"]
        sky = self.landscapes.sky(m, q["sky"][:m], q["rnd"][:m], q["horizon"][:m].view(m, 1, 1, 1)) if m else None
        for g, a, b in plan["grounds"]:
            part = {k: v[a:b] for k, v in q.items()}
            if g in SKY:
                out[a:b] = self.landscapes.draw(g, part, b - a, sky[a:b])
            else:
                out[a:b] = self.one(g, part, b - a)
        return out.clamp_(0, 1)

    def one(self, g, q, n):
        """Draw n backgrounds of ground g, which has no sky."""
        x, y, dev = self.x, self.y, self.dev
        r = q["rnd"]

        def f(c):
            return r[:, c].view(n, 1, 1, 1)

        C, D = q["c"].view(n, 3, 1, 1), q["d"].view(n, 3, 1, 1)
        C = C + (r[:, 0:3].view(n, 3, 1, 1) - 0.5) * 0.05
        hz = q["horizon"].view(n, 1, 1, 1)
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
        raise ValueError(g)
