"""Sixteen prompts whose (object, ground, sky, style) combination never occurred in training.

python sample_heldout.py MODEL DATA OUT.png
"""

import random
import sys

import torch
from diffusers import StableDiffusionPipeline

from recipes import RecipeMaker, article
from scene_tables import GROUNDS, STYLE_W
from stream import save_grid

OBJECTS = (
    "dog cat horse lion pig rabbit elephant fox panda penguin automobile rocket airplane sailboat house castle "
    "cactus rose sunflower banana strawberry pineapple hamburger cookie guitar violin drum robot ghost snowman "
    "crown balloon umbrella key bell trophy bicycle tractor turtle frog owl chicken"
).split() + ["deciduous tree", "ice cream", "teddy bear"]
PLACE = {
    "grass": "on grass",
    "beach": "on the beach",
    "snow": "in the snow",
    "desert": "in the desert",
    "forest": "in the forest",
    "mountains": "in the mountains",
    "city": "in the city",
    "table": "on a table",
    "space": "in space",
    "underwater": "underwater",
}
TIME = {"day": "", "sunset": " at sunset", "night": " at night"}
STYLE = {"3d": "", "flat": ", flat design", "noto": ", cartoon"}


def main(model, data, out):
    """Find held-out combinations, draw them and save the sheet."""
    torch.set_num_threads(2)
    rm = RecipeMaker(data)
    at = {c["label"]: i for i, c in enumerate(rm.concepts) if not c["tone"]}
    combos = [
        (o, g, s, st)
        for o in OBJECTS
        for g in PLACE
        for s in (TIME if GROUNDS[g][2] else ("day",))
        for st in STYLE_W
        if o in at and rm.held_out(at[o], g, s, st)
    ]
    random.Random(4).shuffle(combos)
    pick = list({c[0]: c for c in combos}.values())[:16]
    prompts = [
        article(rm.concepts[at[o]]["names"][0], random.Random(9)) + f" {PLACE[g]}{TIME[s]}{STYLE[st]}"
        for o, g, s, st in pick
    ]
    pipe = StableDiffusionPipeline.from_pretrained(model)
    imgs = [
        pipe(
            x,
            num_inference_steps=20,
            guidance_scale=5,
            height=256,
            width=256,
            generator=torch.Generator().manual_seed(50 + i),
        ).images[0]
        for i, x in enumerate(prompts)
    ]
    save_grid(imgs, prompts, out, cols=8, cell=256)


if __name__ == "__main__":
    main(*sys.argv[1:])
