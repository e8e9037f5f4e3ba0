"""Make the sample sheet from the delivered files, on the CPU, and mark the prompts whose combination was held out.

python sample.py MODEL DATA OUT.png [--cfg 5]
"""

import argparse
import time
import warnings

import torch
from diffusers import StableDiffusionPipeline

from stream import save_grid

warnings.filterwarnings("ignore")
# prompt, and (object label, ground, sky, style) when it is a combination to look up
PROMPTS = [
    ("a red apple on the beach", ("red apple", "beach", "day", "3d")),
    ("a dog", None),
    ("a cat on a wooden table", ("cat", "table", "day", "3d")),
    ("a puppy in the snow", ("dog face", "snow", "day", "3d")),
    ("a blue car on the road at sunset", ("automobile", "road", "sunset", "3d")),
    ("an astronaut on the moon", ("astronaut", "moon", "day", "3d")),
    ("a sailboat on the sea at night", ("sailboat", "sea", "night", "3d")),
    ("a rocket in space", ("rocket", "space", "day", "3d")),
    ("three bananas on a white background", None),
    ("a green dragon in the forest", ("dragon", "forest", "day", "3d")),
    ("a purple flower in a meadow", ("blossom", "grass", "day", "3d")),
    ("a cat and a dog", None),
    ("a robot in the city at night", ("robot", "city", "night", "3d")),
    ("an owl in the forest at night", ("owl", "forest", "night", "3d")),
    ("a slice of pizza, flat vector", None),
    ("a cartoon drawing of a lion in the desert", ("lion", "desert", "day", "noto")),
    ("a fish underwater", ("fish", "underwater", "day", "3d")),
    ("a house in the snow at night", ("house", "snow", "night", "3d")),
    ("a pink elephant on grass", ("elephant", "grass", "day", "3d")),
    ("a cup of coffee on a table", ("hot beverage", "table", "day", "3d")),
    ("a unicorn with a rainbow", ("unicorn", "rainbow", "day", "3d")),
    ("two penguins in the snow", ("penguin", "snow", "day", "3d")),
    ("a golden crown on a purple background", ("crown", "plain", "day", "3d")),
    ("a yellow duck on the water", ("duck", "sea", "day", "3d")),
    ("a hot air balloon in the sky", None),
    ("a castle in the mountains at sunset", ("castle", "mountains", "sunset", "3d")),
    ("a teddy bear in a room", ("teddy bear", "room", "day", "3d")),
    ("a strawberry and a lemon", None),
    ("a wizard on a stage", ("mage", "stage", "day", "3d")),
    ("a red car", None),
    ("a blue butterfly in a field of flowers", ("butterfly", "flowers", "day", "3d")),
    ("an octopus at the bottom of the sea", ("octopus", "underwater", "day", "3d")),
    ("a birthday cake with confetti", ("birthday cake", "confetti", "day", "3d")),
    ("a ghost in the forest at night", ("ghost", "forest", "night", "3d")),
    ("a cactus in the desert", ("cactus", "desert", "day", "3d")),
    ("a hamburger on a table", ("hamburger", "table", "day", "3d")),
    ("a flat icon of a tree on a hill", ("deciduous tree", "grass", "day", "flat")),
    ("a cartoon of a frog in the rain", ("frog", "rain", "day", "noto")),
    ("a snowman at night", None),
    ("a dolphin in the ocean at sunset", ("dolphin", "sea", "sunset", "3d")),
    ("a happy face", None),
    ("a red heart on a pink background", None),
    ("a guitar on stage", ("guitar", "stage", "day", "3d")),
    ("a train in the mountains", ("locomotive", "mountains", "day", "3d")),
    ("a sunflower on grass", ("sunflower", "grass", "day", "3d")),
    ("a poodle", None),
    ("a woman in the city", ("woman", "city", "day", "3d")),
    ("a mushroom in the forest", ("mushroom", "forest", "day", "3d")),
]


def main():
    """Draw every prompt at 20 and at 10 steps and save the sheet."""
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("data")
    p.add_argument("out")
    p.add_argument("--cfg", type=float, default=5.0)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    from recipes import RecipeMaker

    rm = RecipeMaker(a.data)
    at = {c["label"]: i for i, c in enumerate(rm.concepts) if not c["tone"]}
    pipe = StableDiffusionPipeline.from_pretrained(a.model, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    sheet, caps = {20: [], 10: []}, []
    for i, (text, combo) in enumerate(PROMPTS):
        held = bool(combo) and combo[0] in at and rm.held_out(at[combo[0]], *combo[1:])
        caps.append(f"{i + 1}{'*' if held else ''} {text}")
        for n in (20, 10):
            t = time.time()
            sheet[n].append(
                pipe(
                    text,
                    num_inference_steps=n,
                    guidance_scale=a.cfg,
                    height=256,
                    width=256,
                    generator=torch.Generator().manual_seed(a.seed + i),
                ).images[0]
            )
            if i < 2:
                print(n, "steps", round(time.time() - t, 2), "s")
        print(caps[-1], flush=True)
    save_grid(sheet[20] + sheet[10], [c + " (20)" for c in caps] + [c + " (10)" for c in caps], a.out, cols=8, cell=256)


if __name__ == "__main__":
    main()
