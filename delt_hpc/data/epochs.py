"""Epochs of training: the order of their images and the division into batches."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor

from delt_hpc.keyed_random import Key, permutation


class TrainingBatch(NamedTuple):
    """A batch of an epoch: normalised images float32 [B, 3, S, S] and their positions in the index, int64 [B]."""

    epoch: int
    images: Tensor
    positions: np.ndarray


def shuffled_batches(positions: np.ndarray, batch_size: int, *key: Key) -> Iterator[np.ndarray]:
    """Every position once, in batches, shuffled by the key.

    The last batch may be smaller. A single left-over image joins the batch before it, because BatchNorm cannot be
    trained on one image.
    """
    order = positions[permutation(len(positions), *key)]
    yield from np.split(order, range(batch_size, batch_size * steps(len(order), batch_size), batch_size))


def steps(images: int, batch_size: int) -> int:
    """Number of batches in an epoch."""
    return max(1, -(-(images - 1) // batch_size))
