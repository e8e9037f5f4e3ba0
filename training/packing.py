"""The packed form of a batch of recipes: one float32 array and a plan of what is drawn where.

pack() runs in the worker processes of the stream, unpack() on the device.
"""

import numpy as np

SKY = (3, 4, 5, 6, 8, 9, 10, 11, 12, 15, 20, 26)  # grounds that begin with a sky
FIELDS = (
    ("sky", 1),
    ("c", 3),
    ("d", 3),
    ("horizon", 1),
    ("rnd", 24),
    ("flat", 1),
    ("spr", 3),
    ("aff", 18),
    ("mats", 27),
    ("shadow", 12),
    ("ground", 1),
)
SHAPES = {"aff": (3, 6), "mats": (3, 3, 3), "shadow": (3, 4)}


def order(ground):
    """Drawing order: grounds with a sky first, then ground by ground, so that every part of a batch is one slice."""
    return np.lexsort((ground, ~np.isin(ground, SKY)))


def pack(q):
    """A collated batch already in drawing order -> (one float32 array, plan).

    All index lists are made here, on the CPU: nothing on the GPU has to be read back, so the launches can run ahead.
    Runs in the worker processes.
    """
    n = len(q["ground"])
    cut = [0, *(np.flatnonzero(np.diff(q["ground"])) + 1).tolist(), n]
    plan = dict(
        n=n,
        sky=int(np.isin(q["ground"], SKY).sum()),
        grounds=[(int(q["ground"][a]), a, b) for a, b in zip(cut, cut[1:])],
        jobs=[],
    )
    flat = [np.concatenate([np.asarray(q[k], np.float32).reshape(n, -1) for k, _ in FIELDS], 1).ravel()]
    o = flat[0].size
    for k in range(q["spr"].shape[1]):
        s = q["aff"][:, k, 2]
        for big, m in ((1, s >= 0.62), (0, (s > 0) & (s < 0.62))):
            i = np.flatnonzero(m)
            if i.size:
                plan["jobs"].append((k, big, o, o + i.size))
                flat.append(i.astype(np.float32))
                o += i.size
    return np.concatenate(flat), plan


def unpack(x, plan):
    """Undo pack() on the device."""
    n, w = plan["n"], sum(d for _, d in FIELDS)
    q = {
        k: v.reshape(n, *SHAPES.get(k, (d,) if d > 1 else ()))
        for (k, d), v in zip(FIELDS, x[: n * w].view(n, w).split([d for _, d in FIELDS], 1))
    }
    for k in ("sky", "spr", "ground"):
        q[k] = q[k].long()
    return q
