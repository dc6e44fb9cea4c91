"""From image file to network input with PIL and torchvision: the reference for every other backend."""

import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.data.randaugment import RandAugment
from delt_hpc.data.random_crop import draw_window

Pixels = np.ndarray  # uint8 [height, width, 3]


# What PIL raises for damaged files.
BAD_IMAGE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class BadImageError(Exception):
    """A file that cannot be read as an image; the message gives its path and the reason."""


def decode(path: Path, content: bytes | None = None) -> Image.Image:
    """The image as RGB, not rotated by EXIF, as torchvision's ImageFolder reads it.

    Args:
        content: of the file, if it was read already.

    Raises:
        BadImageError: the file is missing, empty, truncated or not an image.
    """
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            return image.convert("RGB")
    except BAD_IMAGE as error:
        raise BadImageError(f"{path}: {str(error) or type(error).__name__}") from None


def evaluation(spec: DatasetSpec) -> Callable[[Image.Image], Pixels]:
    """Resize of the shorter side (antialias) and centre crop: uint8 [size, size, 3]."""
    return partial(_evaluation, spec)


class Augmentation(NamedTuple):
    """Random augmentation of training images.

    Attributes:
        crop_scale: smallest and largest area of the random crop, as fractions of the image's area.
        randaugment: whether RandAugment is applied.
        strips: columns and rows of `shuffle_patches`, which only PIL applies; 1: not at all.
    """

    crop_scale: tuple[float, float]
    randaugment: bool = False
    strips: int = 1


def training(spec: DatasetSpec, augmentation: Augmentation) -> Callable[[Image.Image, Iterator[float]], Pixels]:
    """Shuffled patches, RandomResizedCrop, mirroring (if the data set allows it), RandAugment: uint8 [size, size, 3].

    The transform takes an image and the stream of uniform numbers for its random draws.
    """
    policy = RandAugment() if augmentation.randaugment else None
    return partial(_training, spec, augmentation.crop_scale, policy, augmentation.strips)


# Module-level functions rather than closures, because they are pickled for worker processes.
def _evaluation(spec: DatasetSpec, image: Image.Image) -> Pixels:
    return np.asarray(tv.center_crop(tv.resize(image, [spec.resize], antialias=True), [spec.size, spec.size]))


def _training(
    spec: DatasetSpec,
    crop_scale: tuple[float, float],
    policy: RandAugment | None,
    strips: int,
    image: Image.Image,
    uniforms: Iterator[float],
) -> Pixels:
    if strips > 1:
        image = Image.fromarray(shuffle_patches(np.asarray(image), strips, uniforms))
    window = draw_window(uniforms, image.height, image.width, crop_scale)
    box = (window.left, window.top, window.left + window.width, window.top + window.height)
    image = image.crop(box).resize((spec.size, spec.size), Image.Resampling.BILINEAR)
    if spec.mirror and next(uniforms) < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if policy:
        image = policy(image, uniforms)
    return np.asarray(image)


def shuffle_patches(pixels: Pixels, strips: int, uniforms: Iterator[float]) -> Pixels:
    """Cut the image into columns and permute them, then the same with rows (RDED, arXiv 2312.03526).

    The last strip is wider than the others where the size is not divisible.

    Args:
        pixels: [height, width, 3], at least `strips` pixels high and wide.
        uniforms: numbers in [0, 1); `strips` of them are consumed for the columns and as many for the rows.
    """
    for axis in (1, 0):
        length = pixels.shape[axis]
        parts = np.split(pixels, [i * (length // strips) for i in range(1, strips)], axis)
        order = np.argsort([next(uniforms) for _ in range(strips)], kind="stable")
        pixels = np.concatenate([parts[i] for i in order], axis)
    return pixels


def normalise(pixels: Tensor, spec: DatasetSpec) -> Tensor:
    """uint8 [B, S, S, 3] -> float32 [B, 3, S, S] in channels_last memory format: (value / 255 - mean) / std."""
    # The vectors are as long as an image, because adding three numbers at a time is slow on a CPU.
    places = pixels.shape[1] * pixels.shape[2]
    mean, std = (torch.tensor(values, device=pixels.device).repeat(places) for values in (spec.mean, spec.std))
    flat = pixels.reshape(len(pixels), -1).float().div_(255).sub_(mean).div_(std)
    return flat.view(pixels.shape).permute(0, 3, 1, 2)


def quantise(images: Tensor, spec: DatasetSpec, *, truncate: bool = False) -> Tensor:
    """Normalised float [B, 3, S, S] -> uint8 [B, S, S, 3], rounded; `truncate` rounds down, as published."""
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (spec.mean, spec.std))
    scaled = (images.float() * std + mean).clamp(0, 1) * 255
    whole = scaled.floor() if truncate else scaled.round()
    return whole.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
