"""What scenes are made of, in words and numbers: tables for `recipes.py`."""

import numpy as np

K = 3  # sprites per picture at most
R = 24  # free random numbers per background

PALETTE = {  # colour word -> sRGB
    "red": (0.88, 0.13, 0.13),
    "orange": (0.98, 0.55, 0.10),
    "yellow": (0.99, 0.84, 0.15),
    "green": (0.22, 0.66, 0.25),
    "blue": (0.16, 0.42, 0.88),
    "purple": (0.55, 0.25, 0.78),
    "pink": (0.97, 0.52, 0.72),
    "brown": (0.50, 0.30, 0.16),
    "black": (0.08, 0.08, 0.10),
    "white": (0.97, 0.97, 0.97),
    "gray": (0.55, 0.56, 0.58),
    "light blue": (0.55, 0.80, 0.97),
    "teal": (0.10, 0.60, 0.60),
    "turquoise": (0.25, 0.80, 0.78),
    "cream": (0.98, 0.94, 0.82),
    "dark blue": (0.07, 0.12, 0.38),
    "light green": (0.62, 0.88, 0.55),
    "lavender": (0.80, 0.74, 0.95),
    "gold": (0.92, 0.72, 0.20),
    "beige": (0.93, 0.86, 0.74),
}
BG_COLOURS = list(PALETTE)
OBJ_COLOURS = [
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
    "gray",
    "light blue",
    "gold",
    "teal",
]
SYN = {
    "gray": ["gray", "grey"],
    "purple": ["purple", "violet"],
    "gold": ["golden", "gold"],
    "light blue": ["light blue", "sky blue"],
    "dark blue": ["dark blue", "navy blue"],
}

# ground -> (id, phrases, sky dependent?)
GROUNDS = {
    "studio": (0, ["", "", "", "in a studio", "on a soft background"], False),
    "plain": (
        1,
        [
            "on a {c} background",
            "on a plain {c} background",
            "with a {c} background",
            "{c} background",
            "against a {c} wall",
        ],
        False,
    ),
    "gradient": (
        2,
        ["on a {c} and {d} gradient background", "with a {c} to {d} gradient", "{c} and {d} gradient background"],
        False,
    ),
    "sky": (3, ["in the sky", "in the clouds", "flying in the sky", "under a {sky}"], True),
    "grass": (
        4,
        [
            "on grass",
            "on the grass",
            "in a meadow",
            "in a green field",
            "in the garden",
            "on a lawn",
            "in the park",
            "on a green hill",
        ],
        True,
    ),
    "beach": (
        5,
        [
            "on the beach",
            "on the beach",
            "at the beach",
            "on a sandy beach",
            "on the sand by the sea",
            "by the ocean",
            "on a tropical beach",
        ],
        True,
    ),
    "sea": (
        6,
        ["on the sea", "on the water", "in the ocean", "on the ocean", "at sea", "on a lake", "in the water"],
        True,
    ),
    "underwater": (
        7,
        ["underwater", "under the sea", "under water", "deep in the sea", "at the bottom of the sea"],
        False,
    ),
    "snow": (8, ["in the snow", "on snow", "in a snowy field", "in winter", "in a snowy landscape"], True),
    "desert": (9, ["in the desert", "in a sandy desert", "on a sand dune", "among the dunes"], True),
    "forest": (10, ["in the forest", "in a forest", "in the woods", "among the trees", "in front of pine trees"], True),
    "mountains": (
        11,
        [
            "in the mountains",
            "in front of mountains",
            "in the alps",
            "with mountains in the background",
            "near a mountain",
        ],
        True,
    ),
    "city": (
        12,
        ["in the city", "in a city", "in front of skyscrapers", "downtown", "with a city skyline", "in a big city"],
        True,
    ),
    "table": (13, ["on a table", "on a wooden table", "on the table", "on a desk"], False),
    "room": (14, ["in a room", "in the living room", "on the floor", "indoors", "at home"], False),
    "road": (15, ["on the road", "on a road", "on the street", "on a highway", "driving on a road"], True),
    "space": (16, ["in space", "in outer space", "among the stars", "in the galaxy", "floating in space"], False),
    "moon": (17, ["on the moon", "on the surface of the moon", "on the lunar surface"], False),
    "dots": (
        18,
        ["on a {c} background with {d} polka dots", "{c} and {d} polka dots background", "on polka dots"],
        False,
    ),
    "stripes": (19, ["on a {c} and {d} striped background", "with {c} and {d} stripes", "on stripes"], False),
    "rainbow": (20, ["with a rainbow", "under a rainbow", "in front of a rainbow", "with a rainbow in the sky"], False),
    "rain": (21, ["in the rain", "on a rainy day", "in bad weather", "in a rainstorm"], False),
    "confetti": (22, ["with confetti", "at a party", "with colorful confetti", "surrounded by confetti"], False),
    "stage": (23, ["on a stage", "on stage", "in the spotlight", "under a spotlight"], False),
    "white": (
        24,
        ["on a white background", "on white", "isolated on white", "white background", "on a plain white background"],
        False,
    ),
    "fire": (25, ["in front of flames", "with flames", "on fire", "surrounded by fire"], False),
    "flowers": (26, ["in a field of flowers", "among flowers", "in a flower meadow", "in a flower garden"], True),
    "hearts": (27, ["with hearts", "surrounded by hearts", "on a background of hearts"], False),
}
G_WEIGHT = {
    "studio": 9,
    "white": 4,
    "plain": 5,
    "gradient": 2,
    "sky": 3,
    "grass": 5,
    "beach": 5,
    "sea": 3,
    "underwater": 2.5,
    "snow": 4,
    "desert": 2.5,
    "forest": 4,
    "mountains": 3.5,
    "city": 3.5,
    "table": 3,
    "room": 2,
    "road": 2,
    "space": 3.5,
    "moon": 1.5,
    "dots": 0.7,
    "stripes": 0.7,
    "rainbow": 1.2,
    "rain": 1.5,
    "confetti": 1,
    "stage": 1,
    "fire": 0.8,
    "flowers": 2,
    "hearts": 0.7,
}
SKIES = {
    "day": (0, ["", "", "", "on a sunny day", "in the sunshine", "under a blue sky"], 6),
    "sunset": (1, ["at sunset", "at sunset", "at sunrise", "at dusk", "in the evening"], 2),
    "night": (2, ["at night", "at night", "under the stars", "by moonlight", "in the dark"], 2),
    "cloudy": (3, ["on a cloudy day", "under a grey sky", "under clouds"], 0.8),
}
NO_GROUND = {
    "studio",
    "white",
    "plain",
    "gradient",
    "sky",
    "underwater",
    "space",
    "dots",
    "stripes",
    "confetti",
    "fire",
    "hearts",
    "rain",
}  # object may float
STYLE_W = {"3d": 0.66, "flat": 0.17, "noto": 0.17}
STYLE_TXT = {
    "3d": ["3d render", "3d icon", "3d", "3d model", "glossy 3d render", "3d illustration"],
    "flat": ["flat", "flat vector", "flat design", "flat illustration", "minimalist flat", "vector icon"],
    "noto": ["cartoon", "cartoon drawing", "cartoon style", "comic", "clip art", "cartoon illustration"],
}
G_OBJ = {0: 0.45, 1: 0.55, 3: 1.5, 4: 1.2, 5: 1.1, 6: 1.0, 7: 0.9}  # weight per emoji group
PEOPLE = {
    "man",
    "woman",
    "boy",
    "girl",
    "child",
    "baby",
    "person",
    "old man",
    "old woman",
    "older person",
}  # drawn twice as often
NUMBER = (0.67, 0.22, 0.11)  # one, two, three objects
MORE_NAMES = {"pizza": ["slice of pizza", "pizza slice"]}  # the sprite is a slice
COUNT = {2: ["two", "two", "a pair of", "2"], 3: ["three", "three", "3", "a group of", "some"]}
SIZES = {"big": (1.25, ["big", "large", "huge", "giant"]), "small": (0.55, ["small", "tiny", "little"])}
MASS = set(
    (
        "grapes cherries peanuts beans blueberries pancakes bacon salad popcorn butter salt spaghetti sushi "
        "headphones glasses sunglasses goggles jeans gloves socks shorts scissors bubbles soap fire wood skis "
        "chopsticks fireworks french fries books milk coffee beer wine corn lettuce broccoli garlic bread cheese eyes "
        "lungs clothes maracas hot springs"
    ).split()
) | {"french fries", "bowling", "tennis", "ping pong", "badminton", "milky way", "fork and knife"}
LUMA = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB = np.linalg.inv(_YIQ)
