"""Channel means and standard deviations of a data set that is not registered."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from delt_hpc.config.schema import Data, OnBad
from delt_hpc.data.catalog.specs import Colour, image_size
from delt_hpc.data.index import Index
from delt_hpc.data.transforms import BadImageError, decode
from delt_hpc.errors import UserError
from delt_hpc.keyed_random import permutation
from delt_hpc.run.progress import Reporter

MAX_IMAGES = 10_000
_VALUES = np.arange(256) / 255


def colours(train: Index, data: Data, seed: int, reporter: Reporter | None = None) -> tuple[Colour, Colour]:
    """Mean and standard deviation of red, green and blue, pixel values in 0..1.

    Measured on at most `MAX_IMAGES` images, selected by the seed, each resized (shorter side) and centre-cropped to
    the data set's image size.

    Raises:
        UserError: the image size is unknown, an image is unreadable (all of them with `data.on_bad: skip`), or a
            channel has the same value everywhere.
    """
    sample = sampled_positions(len(train), seed)
    paths = [train.root / train.paths[position] for position in sample.tolist()]
    counts = _histogram(paths, image_size(data), data.on_bad, reporter or Reporter())
    if not counts.any():
        raise UserError(
            f"not one of {len(sample)} training images is readable, so colours cannot be measured",
            where=str(train.root),
        )
    mean, std = moments(counts)
    constant = [channel for channel, deviation in zip(("red", "green", "blue"), std, strict=True) if deviation == 0]
    if constant:
        raise UserError(
            f"{' and '.join(constant)} is the same in every pixel of {len(sample)} images; it cannot be normalised",
            where=str(train.root),
            expected="images with varying colours",
            remedy="check data.root and data.train, or give data.mean and data.std",
        )
    return colour(mean), colour(std)


def sampled_positions(count: int, seed: int) -> np.ndarray:
    """Positions of the images that are measured: all, or `MAX_IMAGES` selected by the seed; ascending."""
    return np.sort(permutation(count, seed, "measure", "colours")[:MAX_IMAGES])


def histogram(image: Image.Image, size: int) -> np.ndarray:
    """Number of pixels with each value, int64 [3, 256], in the centre size x size of the resized image."""
    cropped = tv.center_crop(tv.resize(image, [size], antialias=True), [size, size])
    return np.asarray(cropped.histogram(), dtype=np.int64).reshape(3, 256)


def moments(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [3] of the pixel values in 0..1 from their histogram [3, 256]."""
    frequencies = counts / counts.sum(axis=1, keepdims=True)
    mean = frequencies @ _VALUES
    return mean, np.sqrt((frequencies * (_VALUES - mean[:, None]) ** 2).sum(axis=1))


def _histogram(paths: Sequence[Path], size: int, on_bad: OnBad, reporter: Reporter) -> np.ndarray:
    """Number of pixels with each value, int64 [3, 256]. Integers, so the order of the images does not matter."""
    counts = np.zeros((3, 256), dtype=np.int64)
    with ThreadPoolExecutor() as pool, reporter.bar("measuring colours", len(paths)) as bar:
        for found in pool.map(partial(_histogram_of, size, on_bad), paths):
            counts += found
            bar.advance()
    return counts


def _histogram_of(size: int, on_bad: OnBad, path: Path) -> np.ndarray:
    try:
        image = decode(path)
    except BadImageError as error:
        if on_bad == "skip":  # listed by the stages that read it
            return np.zeros((3, 256), dtype=np.int64)
        remedy = "repair or remove it, or set data.on_bad=skip; `delt-hpc check` names all unreadable files at once"
        raise UserError(str(error), remedy=remedy) from None
    return histogram(image, size)


def colour(values: np.ndarray) -> Colour:
    red, green, blue = values.tolist()
    return red, green, blue
