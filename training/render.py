"""The compositor: a batch of recipes -> [B,3,256,256] pictures in [-1,1], on the GPU (or the CPU)."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F

from backgrounds import Backgrounds
from canvas import Canvas, S
from packing import order, pack, unpack


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


class Compositor(Canvas):
    """Draws recipes on the GPU, a batch at a time."""

    def __init__(self, atlas, device):
        super().__init__(device)
        self.full, self.half = atlas
        self.backgrounds = Backgrounds(device)

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
        img = self.backgrounds.draw(q, plan)
        for k, big, a, b in plan["jobs"]:
            self.paste(img, q, k, self.full if big else self.half, x[a:b].long())
        return img.clamp_(0, 1) * 2 - 1

    @torch.no_grad()
    def __call__(self, q):
        """q: collate()d recipes as numpy arrays. Returns pictures in [-1,1], in the order given."""
        o = order(q["ground"])
        x, plan = pack({k: v[o] for k, v in q.items()})
        return self.draw(torch.from_numpy(x).to(self.dev), plan)[torch.from_numpy(np.argsort(o)).to(self.dev)]
