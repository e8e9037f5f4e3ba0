"""The stream of recipe batches, and what every trainer prints and saves: log lines and contact sheets."""

import time

import numpy as np
import torch
from PIL import Image, ImageDraw

from packing import order, pack
from recipes import RecipeMaker, collate

T0 = time.time()


def log(s):
    """Print with the seconds since the start."""
    print(f"[{time.time() - T0:7.1f}] {s}", flush=True)


class Tok:
    """Plain tokenizers wrapper: fixed length 77, padded with the end token (as CLIPTokenizer does)."""

    def __init__(self, path):
        from tokenizers import Tokenizer

        self.t = Tokenizer.from_file(f"{path}/tokenizer.json")
        self.eos = self.t.token_to_id("<|endoftext|>")

    def __call__(self, texts, n=77):
        """Return the token ids of texts, [texts, n]."""
        out = np.full((len(texts), n), self.eos, np.int64)
        for i, e in enumerate(self.t.encode_batch(list(texts))):
            ids = e.ids if len(e.ids) <= n else e.ids[: n - 1] + [self.eos]
            out[i, : len(ids)] = ids
        return out


class Stream(torch.utils.data.IterableDataset):
    """Endless batches of recipes: (collated recipes, int16 token ids or None, four captions)."""

    def __init__(self, data, batch, seed, tokens):
        self.data, self.batch, self.seed, self.tokens = data, batch, seed, tokens

    def __iter__(self):
        w = torch.utils.data.get_worker_info()
        rm = RecipeMaker(self.data, seed=self.seed * 1000 + (w.id if w else 0))
        tok = Tok(f"{self.data}/tokenizer") if self.tokens else None
        while True:
            rs = [rm.sample() for _ in range(self.batch)]
            caps = [r["caption"] for r in rs]
            yield collate(rs), (tok(caps).astype(np.int16) if tok else None), caps[:4]


class PackedStream(Stream):
    """The same, ready for Compositor.draw: (float32 array, plan, int16 token ids), in drawing order."""

    def __iter__(self):
        w = torch.utils.data.get_worker_info()
        rm, tok = RecipeMaker(self.data, seed=self.seed * 1000 + (w.id if w else 0)), Tok(f"{self.data}/tokenizer")
        while True:
            rs = [rm.sample() for _ in range(self.batch)]
            rs = [rs[i] for i in order(np.array([r["ground"] for r in rs]))]
            yield *pack(collate(rs)), tok([r["caption"] for r in rs]).astype(np.int16)


def _same(x):
    return x


def batches(data, batch, workers, seed, tokens=True, packed=False):
    """Start the workers and return an iterator of batches."""
    kw = dict(num_workers=workers, prefetch_factor=4, persistent_workers=True) if workers else {}
    return iter(
        torch.utils.data.DataLoader(
            (PackedStream if packed else Stream)(data, batch, seed, tokens), batch_size=None, collate_fn=_same, **kw
        )
    )


def to_pil(t):
    """Turn a [3,h,w] tensor in -1..1 into a picture."""
    return Image.fromarray(((t.float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def save_grid(img, captions, path, cols=8, cell=256, pad=26):
    """Save pictures as a sheet, with their captions above them."""
    n = len(captions)
    rows = (n + cols - 1) // cols
    if not any(captions):
        pad = 0
    out = Image.new("RGB", (cols * cell, rows * (cell + pad)), "white")
    d = ImageDraw.Draw(out)
    for i in range(n):
        im = img[i] if isinstance(img[i], Image.Image) else to_pil(img[i])
        if cell != im.width:
            im = im.resize((cell, cell), Image.LANCZOS)
        x, y = i % cols * cell, i // cols * (cell + pad)
        k = cell // 6
        out.paste(im, (x, y + pad))
        if pad:
            d.text((x + 2, y + 1), captions[i][:k], fill="black")
            d.text((x + 2, y + 12), captions[i][k : 2 * k], fill="black")
    out.save(path)


def sheet(rows, path, cell=192):
    """A PNG with one row of pictures a list."""
    out = Image.new("RGB", (max(map(len, rows)) * cell, len(rows) * cell))
    for j, r in enumerate(rows):
        for i, im in enumerate(r):
            out.paste(im.resize((cell, cell), Image.LANCZOS), (i * cell, j * cell))
    out.save(path)
