"""Build the training data: sprites, concepts, aliases, tokenizer, MiniLM targets.

Inputs (see README.md for the package versions), given by --src:
  lobehub-fluent-emoji-3d-*/assets/*.webp      Fluent emoji, 3D renders (MIT)
  iconify-json-fluent-emoji-flat-*/            Fluent emoji, flat vectors (MIT)
  iconify-json-noto-*/                         Noto emoji, vectors (Apache-2.0)
  emojibase-data-*/en/data.json                labels and tags (MIT)
  wordnet/data.noun, index.noun, cntlist.rev   WordNet 3.0 (WordNet licence)
  words                                        a word list (Debian wamerican)
  minilm/                                      all-MiniLM-L6-v2 (Apache-2.0), only to compute targets

Outputs, in --out: sprites.bin + sprites.json, concepts.json, tokenizer/, aux.npz
Stages are separate, so that one can be redone alone:  --stage sprites|words|tokenizer|aux|all
"""

import argparse
import collections
import glob
import io
import json
import os
import re

import numpy as np

from sprite_tables import COLOURS, DROP, FACE_DUP, NAMES, NO_FLIP, STYLES


def sprite_files(src):
    """Yield (style, key) -> loader for the three sets, keyed by code point string without fe0f."""

    def norm(h):
        return "-".join(p for p in h.lower().split("-") if p != "fe0f")

    out = {}
    for f in glob.glob(f"{src}/lobehub-fluent-emoji-3d-*/assets/*.webp"):
        out["3d", norm(os.path.basename(f)[:-5])] = ("file", f)
    for style, pat in (("flat", "iconify-json-fluent-emoji-flat-*"), ("noto", "iconify-json-noto-*")):
        d = glob.glob(f"{src}/{pat}/")[0]
        icons = json.load(open(d + "icons.json"))
        w, h = icons.get("width", 16), icons.get("height", 16)
        for cp, name in json.load(open(d + "chars.json")).items():
            if name in icons["icons"]:
                ic = icons["icons"][name]
                iw, ih = ic.get("width", w), ic.get("height", h)
                out.setdefault(
                    (style, norm(cp)),
                    (
                        "svg",
                        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                        f'viewBox="0 0 {iw} {ih}" width="256" height="256">{ic["body"]}</svg>',
                    ),
                )
    return out


def dominant(rgb, a):
    """Dominant saturated colour of a sprite: (mean rgb of the main hue, share of the ink that has it)."""
    m = a > 128
    if m.sum() < 50:
        return [0.5, 0.5, 0.5], 0.0
    p = rgb[m].astype(np.float32) / 255
    mx, mn = p.max(1), p.min(1)
    sat = (mx - mn) / np.maximum(mx, 1e-3)
    c = (mx - mn) + 1e-6
    r, g, b = p.T
    h = np.where(mx == r, ((g - b) / c) % 6, np.where(mx == g, (b - r) / c + 2, (r - g) / c + 4)) / 6
    w = (sat > 0.25) & (mx > 0.2)
    if w.mean() < 0.08:
        return p.mean(0).tolist(), 0.0
    hist, _ = np.histogram(h[w], bins=24, range=(0, 1))
    sm = hist + np.roll(hist, 1) + np.roll(hist, -1)
    k = int(sm.argmax())
    d = np.abs((h - (k + 0.5) / 24 + 0.5) % 1 - 0.5)
    near = w & (d < 0.07)
    return p[near].mean(0).tolist(), float(near.mean())


def stage_sprites(src, out):
    """Write the sprites and the list of concepts."""
    import resvg_py
    from PIL import Image

    data = json.load(open(glob.glob(f"{src}/emojibase-data-*/en/data.json")[0]))
    files = sprite_files(src)

    def norm(h):
        return "-".join(p for p in h.lower().split("-") if p != "fe0f")

    concepts, meta, blob = [], [], io.BytesIO()
    for e in data:
        g = e.get("group")
        if g not in (0, 1, 3, 4, 5, 6, 7) or DROP.search(e["label"]):
            continue
        label = e["label"].replace("’", "'").replace(":", "")
        variants = [(e["hexcode"], None)]
        if g == 1 and e["label"] in (
            "baby",
            "child",
            "boy",
            "girl",
            "man",
            "woman",
            "person",
            "older person",
            "old man",
            "old woman",
            "man: curly hair",
            "woman: curly hair",
            "woman dancing",
            "princess",
            "prince",
            "astronaut",
            "teacher",
            "farmer",
            "cook",
            "health worker",
            "student",
            "singer",
            "artist",
            "superhero",
            "thumbs up",
            "waving hand",
            "ear",
            "nose",
        ):
            tone = {1: "light", 3: "medium", 5: "dark"}
            variants += [(s["hexcode"], tone[s["tone"]]) for s in e.get("skins", []) if s.get("tone") in tone]
        for hexcode, tone in variants:
            sp = {}
            for style in STYLES:
                src_ = files.get((style, norm(hexcode)))
                if not src_:
                    continue
                if src_[0] == "file":
                    raw = open(src_[1], "rb").read()
                    im = Image.open(io.BytesIO(raw)).convert("RGBA")
                    if im.size != (256, 256):
                        im = im.resize((256, 256), Image.LANCZOS)
                        b = io.BytesIO()
                        im.save(b, "WEBP", quality=92)
                        raw = b.getvalue()
                else:
                    png = resvg_py.svg_to_bytes(svg_string=src_[1])
                    im = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
                    b = io.BytesIO()
                    im.save(b, "WEBP", quality=90, method=4)
                    raw = b.getvalue()
                a = np.asarray(im)
                al = a[..., 3]
                if (al > 64).sum() < 200:
                    continue
                ys, xs = np.where(al > 64)
                col, share = dominant(a[..., :3], al)
                sp[style] = len(meta)
                meta.append(
                    dict(
                        off=blob.tell(),
                        n=len(raw),
                        bbox=[int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1],
                        col=[round(c, 3) for c in col],
                        share=round(share, 3),
                    )
                )
                blob.write(raw)
            if sp:
                concepts.append(
                    dict(
                        label=label.lower() if not label.startswith("T-Rex") else "t-rex",
                        names=[n.lower() for n in NAMES.get(e["label"], [])],
                        group=g,
                        tags=e.get("tags", []),
                        tone=tone,
                        sprites=sp,
                        flip=not NO_FLIP.search(label),
                        hexcode=hexcode,
                    )
                )
    # names: "dog face" is also a dog; strip colour words that a recolouring would contradict
    for c in concepts:
        n = c["names"] or [c["label"]]
        if FACE_DUP.match(c["label"]):
            n = [c["label"], c["label"].replace(" face", ""), c["label"].replace(" face", "") + " head"]
        c["names"] = n
        words = c["label"].split()
        c["fixed_colour"] = words[0] if words[0] in COLOURS and len(words) > 1 else None
        if c["fixed_colour"] and c["label"] not in ("black bird", "polar bear"):
            c["base"] = " ".join(words[1:])
        else:
            c["base"] = None
    open(f"{out}/sprites.bin", "wb").write(blob.getvalue())
    json.dump(meta, open(f"{out}/sprites.json", "w"))
    json.dump(concepts, open(f"{out}/concepts0.json", "w"))
    print(
        "concepts",
        len(concepts),
        "sprites",
        len(meta),
        "MB",
        round(blob.tell() / 1e6, 1),
        collections.Counter(s for c in concepts for s in c["sprites"]),
    )


class MiniLM:
    """all-MiniLM-L6-v2 on the CPU: mean pooled, normalised."""

    def __init__(self, path):
        import torch
        from transformers import AutoModel, AutoTokenizer

        self.t, self.tok, self.m = torch, AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()

    def __call__(self, texts, bs=256):
        """Return the normalised embeddings of texts."""
        t, out = self.t, [None] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        with t.inference_mode():
            for i in range(0, len(order), bs):
                idx = order[i : i + bs]
                x = self.tok([texts[j] for j in idx], padding=True, truncation=True, max_length=48, return_tensors="pt")
                h = self.m(**x).last_hidden_state
                k = x["attention_mask"][..., None].float()
                e = t.nn.functional.normalize((h * k).sum(1) / k.sum(1), dim=-1).numpy()
                for j, v in zip(idx, e):
                    out[j] = v
        return np.stack(out)


def wordnet(src):
    """Nouns of WordNet: synsets {offset: (lemmas, hyponym offsets, gloss)} and lemma -> offsets."""
    syn, lem = {}, {}
    for line in open(f"{src}/wordnet/data.noun", encoding="latin1"):
        if line[0] == " ":
            continue
        head, gloss = line.split(" | ", 1)
        f = head.split()
        n = int(f[3], 16)
        ws = [f[4 + 2 * i].replace("_", " ") for i in range(n)]
        k = 4 + 2 * n
        hyp = [f[k + 1 + 4 * i + 1] for i in range(int(f[k])) if f[k + 1 + 4 * i] == "~"]
        syn[f[0]] = (ws, hyp, gloss.split(";")[0].strip())
    for line in open(f"{src}/wordnet/index.noun", encoding="latin1"):
        if line[0] == " ":
            continue
        f = line.split()
        npt = int(f[3])
        lem[f[0].replace("_", " ")] = (f[6 + npt :], int(f[5 + npt]))
    return syn, lem


def stage_words(src, out):
    """Aliases: WordNet synonyms and hyponyms of each concept, and its MiniLM neighbours among common nouns."""
    concepts = json.load(open(f"{out}/concepts0.json"))
    words = {w.strip().lower() for w in open(f"{src}/words") if "'" not in w}
    syn, lem = wordnet(src)
    enc = MiniLM(f"{src}/minilm")
    own = collections.defaultdict(list)  # names already taken
    for i, c in enumerate(concepts):
        for n in [c["label"], *c["names"]]:
            own[n].append(i)
    objs = [i for i, c in enumerate(concepts) if c["group"] in (1, 3, 4, 5, 6, 7) and not c["tone"]]
    ctext = [f"{concepts[i]['names'][0]}, " + ", ".join(concepts[i]["tags"][:4]) for i in objs]
    cemb = enc(ctext)
    nemb = enc([concepts[i]["names"][0] for i in objs])
    alias = collections.defaultdict(dict)
    # 1. WordNet: choose the sense by gloss, take synonyms and hyponyms to depth 3
    cand = []
    for k, i in enumerate(objs):
        for n in dict.fromkeys([*concepts[i]["names"][:2], concepts[i]["label"].replace(" face", "")]):
            if n in lem:
                cand += [(k, o) for o in lem[n][0][:6]]
                break
    ge = enc([", ".join(syn[o][0][:3]) + ": " + syn[o][2] for _, o in cand])
    best = {}
    for (k, o), e in zip(cand, ge):
        s = float(e @ cemb[k])
        if s > best.get(k, (0, 0))[0]:
            best[k] = (s, o)
    for k, (s, o) in best.items():
        if s < 0.3:
            continue
        front = [(o, 0)]
        seen = set()
        while front:
            q, d = front.pop()
            if q in seen or q not in syn:
                continue
            seen.add(q)
            for w in syn[q][0]:
                w = w.lower()
                if w in own or len(w) < 3 or not re.fullmatch(r"[a-z][a-z \-]+", w) or len(w.split()) > 2:
                    continue
                if all(x in words for x in w.split()):
                    alias[objs[k]][w] = max(alias[objs[k]].get(w, 0), 1.0 / (1 + d))
            if d < 3:
                front += [(x, d + 1) for x in syn[q][1]]
    # 2. MiniLM neighbours of common nouns
    nouns = [
        w
        for w, (o, tag) in lem.items()
        if tag >= 1 and re.fullmatch(r"[a-z][a-z \-]{2,}", w) and len(w.split()) <= 2 and w not in own
    ]
    ne = enc(nouns)
    sim = np.maximum(ne @ nemb.T, ne @ cemb.T)
    j = sim.argmax(1)
    for n, (w, k) in enumerate(zip(nouns, j)):
        if sim[n, k] > 0.62:
            alias[objs[k]][w] = max(alias[objs[k]].get(w, 0), float(sim[n, k]))
    # a word goes to its best concept only (at most two)
    owner = collections.defaultdict(list)
    for i, a in alias.items():
        for w, s in a.items():
            owner[w].append((s, i))
    for c in concepts:
        c["aliases"] = []
    n = 0
    for w, scored in owner.items():
        scored.sort(reverse=True)
        for s, i in scored[:2]:
            concepts[i]["aliases"].append((round(s, 2), w))
            n += 1
    for c in concepts:
        c["aliases"] = [w for s, w in sorted(c["aliases"], reverse=True)][:60]
        # tags close to the label may stand for it
    tags = sorted({t for c in concepts for t in c["tags"]})
    te = dict(zip(tags, enc(tags)))
    le = enc([c["names"][0] for c in concepts])
    for c, e in zip(concepts, le):
        c["tags"] = [t for t in c["tags"] if t not in c["names"] and re.fullmatch(r"[A-Za-z\- ]+", t)]
        c["near"] = [t.lower() for t in c["tags"] if float(te[t] @ e) > 0.5]
        c["tags"] = [t.lower() for t in c["tags"]][:8]
    json.dump(concepts, open(f"{out}/concepts.json", "w"))
    print("aliases", n)
    for name in ("dog", "car", "red apple", "tree", "house", "boat", "fish", "cup of coffee"):
        for c in concepts:
            if c["names"][0] == name or c["label"] == name:
                print(name, "|", c["aliases"][:25], c["near"][:6])
                break


def stage_tokenizer(src, out):
    """A CLIP-format byte-level BPE: vocab.json, merges.txt, tokenizer.json."""
    import random

    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    from recipes import RecipeMaker

    concepts = json.load(open(f"{out}/concepts.json"))
    rm = RecipeMaker(out, seed=1)
    text = [rm.sample()["caption"] for _ in range(60000)]
    for c in concepts:
        text += [n for n in c["names"]] * 40 + c["aliases"] * 8 + c["tags"] * 8
    syn, lem = wordnet(src)
    text += [w for w, (o, t) in lem.items() if t >= 1] * 2
    text += [w.strip().lower() for w in open(f"{src}/words") if "'" not in w]
    tok = Tokenizer(
        models.BPE(unk_token="<|endoftext|>", continuing_subword_prefix="", end_of_word_suffix="</w>", fuse_unk=False)
    )
    tok.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tr = trainers.BpeTrainer(
        vocab_size=8190 - 256,
        min_frequency=2,
        initial_alphabet=sorted(alphabet),
        end_of_word_suffix="</w>",
        special_tokens=[],
        show_progress=False,
    )
    tok.train_from_iterator(text, tr)
    d = json.loads(tok.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in d["merges"]]
    # CLIP order: bytes, bytes</w>, merges, specials
    toks = sorted(alphabet) + [a + "</w>" for a in sorted(alphabet)] + ["".join(m) for m in merges]
    toks = list(dict.fromkeys(toks)) + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {t: i for i, t in enumerate(toks)}
    os.makedirs(f"{out}/tokenizer", exist_ok=True)
    json.dump(vocab, open(f"{out}/tokenizer/vocab.json", "w"), ensure_ascii=False)
    with open(f"{out}/tokenizer/merges.txt", "w", encoding="utf-8") as f:
        f.write("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")
    json.dump(
        {
            "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": 77,
            "tokenizer_class": "CLIPTokenizer",
            "clean_up_tokenization_spaces": True,
        },
        open(f"{out}/tokenizer/tokenizer_config.json", "w"),
        indent=1,
    )
    json.dump(
        {
            "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
        },
        open(f"{out}/tokenizer/special_tokens_map.json", "w"),
        indent=1,
    )
    tok.model = models.BPE(
        vocab=vocab,
        merges=merges,
        unk_token="<|endoftext|>",
        continuing_subword_prefix="",
        end_of_word_suffix="</w>",
        fuse_unk=False,
    )
    tok.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    tok.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        pair="<|startoftext|> $A $B <|endoftext|>",
        special_tokens=[(t, vocab[t]) for t in ("<|startoftext|>", "<|endoftext|>")],
    )
    tok.save(f"{out}/tokenizer/tokenizer.json")
    n = [len(tok.encode(t).ids) for t in random.sample(text[:60000], 2000)]
    print(
        "vocab",
        len(vocab),
        "merges",
        len(merges),
        "caption tokens mean/max",
        np.mean(n),
        max(n),
        tok.encode("a red apple on the beach").tokens,
    )


def stage_aux(src, out):
    """Phrases with their MiniLM embedding, int8: the text encoder's helper target."""
    from recipes import RecipeMaker

    concepts = json.load(open(f"{out}/concepts.json"))
    syn, lem = wordnet(src)
    rm = RecipeMaker(out, seed=2)
    text = list(dict.fromkeys(rm.sample()["caption"] for _ in range(9000)))
    for c in concepts:
        text += c["names"] + c["aliases"] + c["tags"]
    common = sorted(
        ((t, w) for w, (o, t) in lem.items() if t >= 1 and re.fullmatch(r"[a-z][a-z \-]+", w)), reverse=True
    )[:12000]
    text += [w for _, w in common]
    text += [f"{w}: {syn[lem[w][0][0]][2]}"[:90] for _, w in common[:5000]]
    text = [t for t in dict.fromkeys(text) if t]
    e = MiniLM(f"{src}/minilm")(text)
    np.savez(
        f"{out}/aux.npz",
        emb=np.clip(np.round(e * 512), -127, 127).astype(np.int8),
        text=np.frombuffer("\n".join(text).encode(), np.uint8),
    )
    print("aux phrases", len(text))


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--src", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--stage", default="all")
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    for s in ("sprites", "words", "tokenizer", "aux"):
        if a.stage in (s, "all"):
            globals()["stage_" + s](a.src, a.out)
