"""Channel means and standard deviations of a data set that is not registered."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from torchvision.transforms.v2 import functional as tv

from delt_hpc.config.schema import Data, OnBad
from delt_hpc.data.catalog.specs import SPECS, Colour
from delt_hpc.data.index import Index
from delt_hpc.data.transforms import BadImageError, decode
from delt_hpc.errors import UserError
from delt_hpc.keyed_random import permutation
from delt_hpc.run.progress import Reporter

MOST_IMAGES = 10_000
_LEVELS = np.arange(256) / 255


def colours(train: Index, data: Data, seed: int) -> tuple[Colour, Colour]:
    """Mean and standard deviation of red, green and blue, pixel values in 0..1.

    Measured on at most `MOST_IMAGES` images, drawn by the seed, each resized (shorter side) and centre-cropped to
    `data.size`.

    Raises:
        UserError: no size, an unreadable image, or a channel that never changes.
    """
    size = data.size or (SPECS[data.name].size if data.name in SPECS else None)
    if size is None:
        raise UserError(
            f"`{data.name}` is no registered data set, so its image size must be given",
            where="data.size",
            expected=f"pixels, e.g. 224; or data.name one of {', '.join(SPECS)}",
        )
    drawn = np.sort(permutation(len(train), seed, "measure", "colours")[:MOST_IMAGES])
    counts = _histogram([train.root / train.paths[position] for position in drawn.tolist()], size, data.on_bad)
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ _LEVELS
    std = np.sqrt((share * (_LEVELS - mean[:, None]) ** 2).sum(axis=1))
    flat = [channel for channel, spread in zip(("red", "green", "blue"), std, strict=True) if spread == 0]
    if flat:
        raise UserError(
            f"{' and '.join(flat)} is the same in every pixel of {len(drawn)} images; it cannot be normalised",
            where=str(train.root),
            expected="images of more than one colour",
            remedy="check data.root and data.train, or give data.mean and data.std",
        )
    return _colour(mean), _colour(std)


def _histogram(paths: Sequence[Path], size: int, on_bad: OnBad) -> np.ndarray:
    """How many pixels have each value, int64 [3, 256]: whole numbers, so the order of the images does not matter."""
    counts = np.zeros((3, 256), dtype=np.int64)
    with ThreadPoolExecutor() as pool, Reporter().bar("measuring colours", len(paths)) as bar:
        for found in pool.map(partial(_histogram_of, size, on_bad), paths):
            counts += found
            bar.advance()
    return counts


def _histogram_of(size: int, on_bad: OnBad, path: Path) -> np.ndarray:
    try:
        image = decode(path)
    except BadImageError as error:
        if on_bad == "skip":  # the stages that use it list it
            return np.zeros((3, 256), dtype=np.int64)
        remedy = "mend or remove the file, or leave it out with data.on_bad=skip"
        raise UserError(str(error), remedy=remedy) from None
    cropped = tv.center_crop(tv.resize(image, [size], antialias=True), [size, size])
    return np.asarray(cropped.histogram(), dtype=np.int64).reshape(3, 256)


def _colour(values: np.ndarray) -> Colour:
    red, green, blue = values.tolist()
    return red, green, blue
