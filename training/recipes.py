"""Recipes: random scene descriptions with a caption and every number the GPU compositor needs.

A recipe is drawn on the CPU (cheap: a few random numbers and a string); render.py turns a batch of
recipes into 256x256 pictures on the GPU. Nothing is stored: the stream of pairs is endless.
"""

import json
import math
import random

import numpy as np

from scene_tables import (
    _RGB,
    _YIQ,
    BG_COLOURS,
    COUNT,
    G_OBJ,
    G_WEIGHT,
    GROUNDS,
    LUMA,
    MASS,
    MORE_NAMES,
    NO_GROUND,
    NUMBER,
    OBJ_COLOURS,
    PALETTE,
    PEOPLE,
    SIZES,
    SKIES,
    STYLE_TXT,
    STYLE_W,
    SYN,
    K,
    R,
)


def plural(w):
    """Return the plural of a noun phrase."""
    head, *tail = w.split(" of ") if " of " in w else (w,)
    irr = {
        "mouse": "mice",
        "goose": "geese",
        "man": "men",
        "woman": "women",
        "child": "children",
        "person": "people",
        "sheep": "sheep",
        "fish": "fish",
        "deer": "deer",
        "foot": "feet",
        "tooth": "teeth",
        "wolf": "wolves",
        "leaf": "leaves",
        "knife": "knives",
        "ox": "oxen",
        "octopus": "octopuses",
    }
    ws = head.split()
    last = ws[-1]
    if last in irr:
        last = irr[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        last = last if last.endswith("s") and not last.endswith("ss") and last not in ("bus",) else last + "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return " ".join([*ws[:-1], last] + (["of " + " of ".join(tail)] if tail else []))


def article(w, rng):
    """Put an article before a noun phrase, most of the time."""
    if rng.random() < 0.1:
        return w
    first = w.split()[0]
    if first in ("two", "three", "2", "3", "some", "a", "an", "the"):
        return w
    if w in MASS or (
        w.endswith("s")
        and not w.endswith("ss")
        and " of " not in w
        and w
        not in (
            "bus",
            "cactus",
            "octopus",
            "lotus",
            "hibiscus",
            "rhinoceros",
            "santa claus",
            "abacus",
            "compass",
            "walrus",
        )
    ):
        return w
    return ("an " if w[0] in "aeiou" and not w.startswith(("uni", "ufo", "eu")) else "a ") + w


def colour_matrix(sp, target):
    """3x3 matrix that carries the sprite's dominant colour towards the target colour."""
    d, t = np.array(sp["col"]), np.array(target)
    yd, yt = _YIQ @ d, _YIQ @ t
    cd, ct = math.hypot(*yd[1:]), math.hypot(*yt[1:])
    if ct < 0.06:  # black, white, gray: drop the colour, set the brightness
        g = np.clip(yt[0] / max(yd[0], 0.12), 0.18, 2.2)
        return g * (np.outer(np.ones(3), LUMA) * 0.85 + np.eye(3) * 0.15)
    if sp["share"] < 0.12 or cd < 0.08:  # a grey sprite: tint it
        g = 1.15 / max(float(LUMA @ d), 0.35)
        return np.outer(t, LUMA) * g * 0.85 + np.eye(3) * 0.1
    a = math.atan2(yt[2], yt[1]) - math.atan2(yd[2], yd[1])
    s = float(np.clip(ct / cd, 0.45, 1.7))
    rot = np.array([[1, 0, 0], [0, s * math.cos(a), -s * math.sin(a)], [0, s * math.sin(a), s * math.cos(a)]])
    g = float(np.clip((yt[0] / max(yd[0], 0.1)) ** 0.75, 0.4, 1.9))
    return g * (_RGB @ rot @ _YIQ)


class RecipeMaker:
    """Draws random scenes and says them in words."""

    def __init__(self, data, seed=0):
        self.concepts = json.load(open(f"{data}/concepts.json"))
        self.meta = json.load(open(f"{data}/sprites.json"))
        self.rng = random.Random(seed)
        stop = set(BG_COLOURS) | set(
            "beach sea ocean forest woods snow city night sky desert mountain mountains room grass table road "
            "street rain space party stage water background style picture photo image drawing "
            "two three small big left right sunset day white".split()
        )
        for c in self.concepts:
            c["aliases"] = [a for a in c["aliases"] if a not in stop]
            c["near"] = [a for a in c["near"] if a not in stop]
            c["tags"] = [a for a in c["tags"] if a not in stop]
            c["names"] = c["names"] + [x for x in MORE_NAMES.get(c["label"], []) if x not in c["names"]]
            if c["label"] == "red apple":
                c["names"] = ["red apple", "apple"]
        w = []
        dup = {}
        for c in self.concepts:
            dup[c["names"][0]] = dup.get(c["names"][0], 0) + 1
        for c in self.concepts:
            x = G_OBJ[c["group"]]
            if c["tone"]:
                x *= 0.40
            if c["group"] == 1 and c["label"].split()[0] in ("man", "woman") and len(c["label"].split()) > 1:
                x *= 0.6
            if c["label"] in PEOPLE:
                x *= 2
            w.append(x)
        self.cum = np.cumsum(w)
        self.group = {g: [i for i, c in enumerate(self.concepts) if c["group"] == g] for g in G_OBJ}
        self.group_cum = {g: np.cumsum([w[i] for i in v]) for g, v in self.group.items()}
        self.bg_names = list(G_WEIGHT)
        self.bg_cum = np.cumsum([G_WEIGHT[b] for b in self.bg_names])
        self.dom = [self._name_colour(m) for m in self.meta]

    @staticmethod
    def _name_colour(m):
        if m["share"] < 0.45:
            return None
        c = np.array(m["col"])
        n = min(PALETTE, key=lambda k: float(((c - PALETTE[k]) ** 2).sum()))
        return n if n in OBJ_COLOURS and ((c - PALETTE[n]) ** 2).sum() < 0.06 else None

    def held_out(self, ci, ground, sky, style):
        """One in twelve (object, ground, sky, style) combinations never occurs in training."""
        if ground in ("studio", "white"):
            return False
        key = f"{self.concepts[ci]['label']}|{ground}|{sky}|{style}"
        return sum(ord(ch) * (i + 7) for i, ch in enumerate(key)) % 12 == 0

    def pick(self):
        """Draw a concept by weight."""
        return int(np.searchsorted(self.cum, self.rng.random() * self.cum[-1]))

    def pick_several(self, n):
        """Different objects for one picture; half of the time all of one group (a cat and a dog), the hard case."""
        first = self.pick()
        if self.rng.random() < 0.5:
            return [first] + [self.pick() for _ in range(n - 1)]
        g = self.concepts[first]["group"]
        cum = self.group_cum[g]
        return [first] + [self.group[g][int(np.searchsorted(cum, self.rng.random() * cum[-1]))] for _ in range(n - 1)]

    def name(self, c, colour=None):
        """A word for the concept: its label, a synonym, an alias; and its tone word."""
        r = self.rng.random
        x = r()
        if colour and c["base"]:
            n = c["base"]
        elif x < 0.11 and c["aliases"]:
            n = c["aliases"][min(int(len(c["aliases"]) * r() * r()), len(c["aliases"]) - 1)]
        elif x < 0.125 and c["near"]:
            n = self.rng.choice(c["near"])
        elif x < 0.60 or len(c["names"]) == 1:
            n = c["names"][0]
        else:
            n = self.rng.choice(c["names"])
        if not colour and c["base"] and c["fixed_colour"] and r() < 0.12:
            n = c["base"]
        if c["tone"] and r() < 0.85:
            tone = {"light": "light-skinned", "medium": "brown-skinned", "dark": "dark-skinned"}[c["tone"]]
            n = f"{tone} {n}" if r() < 0.8 else f"{n} with {c['tone']} skin"
        return n

    def sample(self, scene=None):
        """Draw a scene: what is on it, where, and its caption."""
        rng = self.rng
        r = rng.random
        # --- background
        ground = self.bg_names[int(np.searchsorted(self.bg_cum, r() * self.bg_cum[-1]))]
        gid, phrases, has_sky = GROUNDS[ground]
        sky = "day"
        if has_sky:
            sky = rng.choices(list(SKIES), [s[2] for s in SKIES.values()])[0]
        cols = rng.sample(BG_COLOURS, 2)
        if ground == "plain" and r() < 0.15:
            cols[0] = rng.choice(["white", "black"])
        # --- objects
        style = rng.choices(list(STYLE_W), list(STYLE_W.values()))[0]
        n = rng.choices((1, 2, 3), NUMBER)[0]
        same = n > 1 and r() < (0.42 if n == 2 else 0.75)
        for _ in range(20):
            cs = [self.pick()] * n if same else self.pick_several(n)
            if all(style in self.concepts[c]["sprites"] for c in cs) and not any(
                self.held_out(c, ground, sky, style) for c in cs
            ):
                break
        else:
            style = "noto"
            cs = [next(i for i in (self.pick() for _ in range(1000)) if "noto" in self.concepts[i]["sprites"])] * n
        con = [self.concepts[c] for c in cs]
        idx = [c["sprites"][style] for c in con]
        # colours
        colour = [None] * n
        said = [None] * n
        for i in range(n):
            if same and i:
                colour[i], said[i] = colour[0], said[0]
            elif con[i]["group"] in (3, 4, 5, 6, 7) and not con[i]["tone"] and r() < 0.20:
                colour[i] = said[i] = rng.choice(OBJ_COLOURS)
                if self.dom[idx[i]] == colour[i]:
                    colour[i] = None
            elif self.dom[idx[i]] and con[i]["group"] > 1 and r() < 0.22:
                said[i] = self.dom[idx[i]]
        names = [self.name(con[0], said[0])] * n if same else [self.name(c, s) for c, s in zip(con, said)]
        size = rng.choice(list(SIZES)) if n == 1 and r() < 0.10 else None
        # --- placement
        floating = ground in NO_GROUND
        horizon = 0.50 + 0.16 * r()
        if n == 1:
            if ground in ("studio", "white", "plain", "gradient", "dots", "stripes", "confetti", "fire", "hearts"):
                s = 0.62 + 0.33 * r()
                if r() < 0.7:
                    s = 0.74 + 0.16 * r()
                place = [(0.5 + 0.05 * (r() - 0.5), 0.5 + 0.05 * (r() - 0.5), s)]
            else:
                s = 0.48 + 0.30 * r()
                place = [(0.5 + 0.22 * (r() - 0.5), None, s)]
            if size:
                place = [(place[0][0], place[0][1], min(0.97, place[0][2] * SIZES[size][0]))]
            rel = None
        else:
            rel = "row"
            if n == 2 and not same and r() < 0.25:
                rel = "above"
            if rel == "above":
                s = 0.40 + 0.08 * r()
                place = [(0.5 + 0.1 * (r() - 0.5), 0.27, s), (0.5 + 0.1 * (r() - 0.5), 0.74, s)]
            else:
                s = (0.40 + 0.12 * r()) if n == 2 else (0.31 + 0.05 * r())
                xs = [0.27, 0.73] if n == 2 else [0.19, 0.5, 0.81]
                y0 = 0.5 if floating else None
                place = [(x + 0.04 * (r() - 0.5), y0 and y0 + 0.06 * (r() - 0.5), s * (0.93 + 0.14 * r())) for x in xs]
        aff = np.zeros((K, 6), np.float32)  # cx, cy, size, cos*, sin*, flip ; size 0 = absent
        mats = np.tile(np.eye(3, dtype=np.float32), (K, 1, 1))
        shadow = np.zeros((K, 4), np.float32)  # x, y, width, strength
        spr = np.zeros(K, np.int64)
        for i in range(n):
            m = self.meta[idx[i]]
            cx, cy, s = place[i]
            rot = 0.0 if r() < 0.6 else (r() - 0.5) * (0.35 if floating else 0.12)
            x0, y0, x1, y1 = [v / 256 for v in m["bbox"]]
            if cy is None:
                foot = (
                    min(0.95, horizon + 0.16 + 0.20 * r()) if not floating else 0.5 + (y1 - 0.5) * s + 0.1 * (r() - 0.5)
                )
                cy = foot - (y1 - 0.5) * s
                cy = max(cy, 0.04 - (y0 - 0.5) * s)
            flip = con[i]["flip"] and r() < 0.4
            spr[i] = idx[i]
            aff[i] = (cx, cy, s, math.cos(rot), math.sin(rot), -1 if flip else 1)
            bx = ((x0 + x1) / 2 - 0.5) * (-1 if flip else 1)
            shade = 0.0
            if ground in ("studio", "white", "plain", "gradient") and style == "3d" and r() < 0.65:
                shade = 0.25
            elif not floating and ground != "sea":
                shade = 0.35 if style == "3d" else 0.22
            shadow[i] = (cx + bx * s, cy + (y1 - 0.5) * s - 0.01, (x1 - x0) * s * 0.48, shade * (0.7 + 0.5 * r()))
            if colour[i]:
                t = np.clip(np.array(PALETTE[colour[i]]) * (0.92 + 0.16 * r()) + (r() - 0.5) * 0.04, 0, 1)
                mats[i] = colour_matrix(m, t)
        cap = self.caption(ground, phrases, sky, cols, style, names, said, n, same, rel, size, con)
        return dict(
            caption=cap,
            ground=gid,
            sky=SKIES[sky][0],
            style=style,
            c=PALETTE[cols[0]],
            d=PALETTE[cols[1]],
            horizon=horizon,
            rnd=[r() for _ in range(R)],
            spr=spr,
            aff=aff,
            mats=mats,
            shadow=shadow,
            flat={"3d": 0.0, "flat": 1.0, "noto": 0.5}[style],
        )

    def caption(self, ground, phrases, sky, cols, style, names, said, n, same, rel, size, con):
        """Say a scene in words."""
        rng = self.rng
        r = rng.random

        def sy(c):
            return rng.choice(SYN.get(c, [c]))

        obj = [f"{sy(s)} {x}" if s else x for s, x in zip(said, names)]
        if size:
            obj[0] = f"{rng.choice(SIZES[size][1])} {obj[0]}"
        if n == 1:
            o = article(obj[0], rng)
        elif same:
            o = f"{rng.choice(COUNT[n])} {plural(obj[0])}"
        elif rel == "above":
            a, b = article(obj[0], rng), article(obj[1], rng)
            o = rng.choice(
                [f"{a} above {b}", f"{a} over {b}", f"{b} under {a}", f"{b} below {a}", f"{a} on top of {b}"]
            )
        elif n == 2:
            a, b = article(obj[0], rng), article(obj[1], rng)
            o = rng.choice(
                [
                    f"{a} and {b}",
                    f"{a} and {b}",
                    f"{b} and {a}",
                    f"{a} next to {b}",
                    f"{b} beside {a}",
                    f"{a} to the left of {b}",
                    f"{b} to the right of {a}",
                    f"{a} with {b}",
                    f"{a} on the left and {b} on the right",
                ]
            )
        else:
            objects = [article(x, rng) for x in obj]
            rng.shuffle(objects)
            o = f"{objects[0]}, {objects[1]} and {objects[2]}"
        p = rng.choice(phrases)
        skyp = rng.choice(SKIES[sky][1]) if GROUNDS[ground][2] else ""
        if "{sky}" in p:
            p = {
                "day": "under a blue sky",
                "sunset": "under a sunset sky",
                "night": "under a night sky",
                "cloudy": "under a cloudy sky",
            }[sky]
            skyp = ""
        p = p.replace("{c}", sy(cols[0])).replace("{d}", sy(cols[1]))
        if ground not in ("studio",) and r() < 0.03:
            p = ""
        place = " ".join(x for x in ((p, skyp) if r() < 0.85 else (skyp, p)) if x)
        st = ""
        q = {"3d": 0.35, "flat": 0.93, "noto": 0.93}[style]
        if r() < q:
            st = rng.choice(STYLE_TXT[style])
        x = r()
        join = ", " if p.endswith("background") and r() < 0.5 else " "
        body = (o + join + place).strip(", ") if place else o
        if st:
            if x < 0.40:
                art = "an " if st[0] in "aeiou" else "a "
                noun = (
                    ""
                    if st.split()[-1]
                    in (
                        "render",
                        "icon",
                        "model",
                        "illustration",
                        "drawing",
                        "art",
                        "vector",
                        "design",
                        "style",
                        "comic",
                    )
                    else rng.choice([" picture", " drawing", " image", " illustration"])
                )
                cap = f"{art if r() < 0.6 else ''}{st}{noun} of {body}"
            elif x < 0.62:
                cap = f"{body}, {st}" + (" style" if "style" not in st and r() < 0.4 else "")
            elif x < 0.75:
                cap = f"{st}, {body}"
            elif x < 0.88 and n == 1:
                bare = obj[0]
                cap = (article(f"{st} {bare}", rng) + join + place).strip(", ")
            else:
                cap = f"{body} in {st}" + ("" if "style" in st else " style")
        else:
            cap = (
                body
                if x < 0.72
                else rng.choice(
                    [
                        "a picture of ",
                        "an image of ",
                        "a photo of ",
                        "an illustration of ",
                        "an emoji of ",
                        "a drawing of ",
                        "a cute ",
                        "a beautiful picture of ",
                    ]
                )
                + body
            )
            if cap.startswith("a cute "):
                cap = (
                    "a cute picture of " + body
                    if r() < 0.3 or n > 1
                    else (f"a cute {obj[0]}" + join + place).strip(", ")
                )
        if r() < 0.06 and n == 1 and con[0]["tags"]:
            cap += ", " + ", ".join(rng.sample(con[0]["tags"], min(len(con[0]["tags"]), rng.choice((1, 2)))))
        if r() < 0.05:
            cap += rng.choice([", high quality", ", beautiful", ", cute", ", colorful", ", detailed", ", simple"])
        return cap


def collate(rs):
    """Stack recipes into arrays."""

    def f(k, t):
        return np.stack([np.asarray(x[k], t) for x in rs])

    return dict(
        ground=f("ground", np.int64),
        sky=f("sky", np.int64),
        c=f("c", np.float32),
        d=f("d", np.float32),
        horizon=f("horizon", np.float32),
        rnd=f("rnd", np.float32),
        spr=f("spr", np.int64),
        aff=f("aff", np.float32),
        mats=f("mats", np.float32),
        shadow=f("shadow", np.float32),
        flat=f("flat", np.float32),
    )
