"""The augmentation of one iteration: the same crop, mirroring and roll for every active image of a batch."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from delt_hpc.data.random_crop import Window, draw_window
from delt_hpc.keyed_random import Key, uniforms


class View(NamedTuple):
    """How the images of a batch are looked at in one iteration."""

    window: Window
    mirrored: bool
    roll: tuple[int, int]  # down, right; pixels


def draw_view(size: int, smallest_crop: float, mirror: bool, jitter: int, *key: Key) -> View:
    """A pure function of the key (seed, stage, batch, iteration).

    Args:
        smallest_crop: least area of the crop, share of the image's; the most is 1.
        mirror: mirror with probability one half.
        jitter: rolls are uniform in 0..jitter.
    """
    stream = uniforms(*key)
    window = draw_window(stream, size, size, (smallest_crop, 1.0))
    mirrored = next(stream) < 0.5 and mirror
    return View(window, mirrored, (int(next(stream) * (jitter + 1)), int(next(stream) * (jitter + 1))))


def look(images: Tensor, view: View) -> Tensor:
    """images [B, 3, S, S] -> the same shape: crop and resize (bilinear, antialias), mirror, roll; differentiable."""
    size = [images.shape[-2], images.shape[-1]]
    seen: Tensor = tv.resized_crop(images, *view.window, size=size, antialias=True)
    if view.mirrored:
        seen = seen.flip(-1)
    if any(view.roll):
        seen = torch.roll(seen, view.roll, dims=(-2, -1))
    return seen
