"""Draws people as OpenPose's 18 keypoints and 17 limbs, in its colours, as ControlNet was trained on them.

Cao et al., "OpenPose: Realtime Multi-Person 2D Pose Estimation using Part Affinity Fields", 2019; the widths and the
dimmed limbs are those of ControlNet's annotator (github.com/lllyasviel/ControlNet, `annotator/openpose/util.py`).
"""

import colorsys
import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

COCO = 17
"""Keypoints of COCO: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles, each pair left first."""
# For each keypoint of OpenPose that of COCO: nose, neck, right arm, left arm, right leg, left leg, eyes, ears.
_FROM_COCO = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
_SHOULDERS = (5, 6)
LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
"""Pairs of keypoints; each is drawn in the colour of its number."""
COLOURS = [tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue / 18, 1.0, 1.0)) for hue in range(18)]
"""18 hues at equal distances, from red."""
LEAST_SCORE = 0.3
"""Keypoints that the network is less sure of are not drawn."""
HALF_WIDTH, OF_EDGE = 4.0, 512
"""Half the width of a limb and the radius of a keypoint, in pixels of a picture whose shorter edge is 512."""
LIMB_LIGHT = 0.6
"""Limbs are so much darker than keypoints."""
_CORNERS = 36

Point = tuple[float, float]


def openpose_of(keypoints: torch.Tensor) -> list[Point | None]:
    """OpenPose's keypoints of COCO's `[17, 3]`, x, y, score: the neck is the middle of the shoulders."""
    rows = [(x, y) if score >= LEAST_SCORE else None for x, y, score in keypoints.tolist()]
    left, right = (rows[index] for index in _SHOULDERS)
    neck = None if left is None or right is None else ((left[0] + right[0]) / 2, (left[1] + right[1]) / 2)
    return [neck if index is None else rows[index] for index in _FROM_COCO]


def drawn(people: Sequence[torch.Tensor], height: int, width: int) -> torch.Tensor:
    """People, each COCO's `[17, 3]` with x and y in pixels of the picture, on black: `[height, width, 3]` of u8."""
    canvas = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(canvas)
    half = max(HALF_WIDTH * min(height, width) / OF_EDGE, 1.0)
    found = [openpose_of(person) for person in people]
    for points in found:
        for (begin, end), colour in zip(LIMBS, COLOURS):
            one, other = points[begin], points[end]
            if one is not None and other is not None:
                draw.polygon(_ellipse(one, other, half), fill=tuple(int(part * LIMB_LIGHT) for part in colour))
    for points in found:
        for point, colour in zip(points, COLOURS):
            if point is not None:
                x, y = point
                draw.ellipse((x - half, y - half, x + half, y + half), fill=colour)
    return torch.from_numpy(np.array(canvas))


def _ellipse(one: Point, other: Point, half: float) -> list[Point]:
    """Corners of the ellipse from one point to another."""
    (x, y), (dx, dy) = ((one[0] + other[0]) / 2, (one[1] + other[1]) / 2), (other[0] - one[0], other[1] - one[1])
    length = math.hypot(dx, dy)
    along, across = (dx / 2, dy / 2), (-dy / length * half, dx / length * half) if length else (0.0, half)
    angles = [2 * math.pi * corner / _CORNERS for corner in range(_CORNERS)]
    return [
        (
            x + along[0] * math.cos(angle) + across[0] * math.sin(angle),
            y + along[1] * math.cos(angle) + across[1] * math.sin(angle),
        )
        for angle in angles
    ]
