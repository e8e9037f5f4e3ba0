"""What all drawing modules share: the pixel grid, colours, soft edges and random dots."""

import torch
import torch.nn.functional as F

S = 256


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


class Canvas:
    """The coordinates of the pixel centres, in 0..1, and drawing helpers."""

    def __init__(self, device):
        self.dev = device
        g = (torch.arange(S, device=device, dtype=torch.float32) + 0.5) / S
        self.y, self.x = torch.meshgrid(g, g, indexing="ij")
        self.y, self.x = self.y[None, None], self.x[None, None]

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
