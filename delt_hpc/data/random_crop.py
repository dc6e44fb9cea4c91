"""Crop windows of RandomResizedCrop, drawn from a stream of uniform numbers.

The distribution is torchvision's: area uniform in `scale`, log aspect ratio uniform in log(3/4)..log(4/3) unless other
ratios are given, ten tries, then the largest centred window with an allowed ratio.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

RATIO = (3 / 4, 4 / 3)
SQUARE = (1.0, 1.0)
TRIES = 10


class Window(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


def draw_window(
    uniforms: Iterator[float],
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float] = RATIO,
) -> Window:
    """One window in an image of height x width pixels.

    Args:
        uniforms: numbers in [0, 1); each try consumes four.
        scale: smallest and largest area, as fractions of the image's area.
        ratio: smallest and largest width / height.
    """
    area = height * width
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(TRIES):
        u_area, u_ratio, u_top, u_left = (next(uniforms) for _ in range(4))
        target = area * (scale[0] + (scale[1] - scale[0]) * u_area)
        drawn = math.exp(low + (high - low) * u_ratio)
        w, h = round(math.sqrt(target * drawn)), round(math.sqrt(target / drawn))
        if 0 < w <= width and 0 < h <= height:
            return Window(int(u_top * (height - h + 1)), int(u_left * (width - w + 1)), h, w)
    aspect = width / height
    if aspect < ratio[0]:
        w, h = width, min(height, round(width / ratio[0]))
    elif aspect > ratio[1]:
        w, h = min(width, round(height * ratio[1])), height
    else:
        w, h = width, height
    return Window((height - h) // 2, (width - w) // 2, h, w)
