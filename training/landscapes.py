"""The backgrounds with a sky: the sky by time of day and weather, and the ground below it."""

import torch

from canvas import Canvas, S, col, const, lerp


class Landscapes(Canvas):
    """Draws the grounds that begin with a sky."""

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

    def draw(self, g, q, n, sky):
        """Draw n landscapes of ground g over their skies."""
        x, y = self.x, self.y
        r = q["rnd"]

        def f(c):
            return r[:, c].view(n, 1, 1, 1)

        hz = q["horizon"].view(n, 1, 1, 1)
        kind = q["sky"]
        flat = q["flat"].view(n, 1, 1, 1)

        def cc(*v):
            return col(*v, like=r)

        white = cc(1.0, 1.0, 1.0)
        img = sky
        if g == 20:  # rainbow
            d = ((x - 0.5 - (f(18) - 0.5) * 0.2) ** 2 + (y - hz - 0.12) ** 2).sqrt()
            t = (d - 0.30) / 0.16
            bow = torch.cat([0.5 + 0.6 * torch.cos((1 - t) * 4.6 - k) for k in (0.0, 2.094, -2.094)], 1).clamp(0, 1)
            img = self.blend(img, bow, self.edge(t, 0.03) * self.edge(1 - t, 0.03) * 0.85)
            gr = lerp(cc(0.48, 0.80, 0.34), cc(0.27, 0.60, 0.22), (y - hz) * 2)
            return self.blend(img, gr, self.edge(y - hz - 0.12 - 0.03 * torch.sin(x * 5 + f(19) * 6)))

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
