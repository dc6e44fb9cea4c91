"""The augmentation of one iteration: the same crop, mirroring and roll for all active images of a batch."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from delt_hpc.data.random_crop import Window, draw_window
from delt_hpc.keyed_random import Key, uniforms


class View(NamedTuple):
    """The parameters of one augmentation.

    Attributes:
        roll: down, right; pixels.
    """

    window: Window
    mirrored: bool
    roll: tuple[int, int]


def draw_view(size: int, smallest_crop: float, mirror: bool, jitter: int, *key: Key) -> View:
    """Draw the parameters of an augmentation; a pure function of its arguments.

    Args:
        size: height and width of the images, pixels.
        smallest_crop: smallest area of the crop, as a share of the image's area; the largest is 1.
        mirror: mirror with probability one half.
        jitter: rolls are uniform in 0..jitter pixels.
        key: of the random draws: seed, stage, batch, iteration.
    """
    stream = uniforms(*key)
    window = draw_window(stream, size, size, (smallest_crop, 1.0))
    mirrored = next(stream) < 0.5 and mirror
    return View(window, mirrored, (int(next(stream) * (jitter + 1)), int(next(stream) * (jitter + 1))))


def augment(images: Tensor, view: View) -> Tensor:
    """Crop and resize (bilinear, antialias), mirror, roll: [B, 3, S, S] to the same shape; differentiable."""
    size = [images.shape[-2], images.shape[-1]]
    augmented: Tensor = tv.resized_crop(images, *view.window, size=size, antialias=True)
    if view.mirrored:
        augmented = augmented.flip(-1)
    if any(view.roll):
        augmented = torch.roll(augmented, view.roll, dims=(-2, -1))
    return augmented
