"""Epochs of training: the order of their images and the division into batches."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
from torch import Tensor

from delt_hpc.keyed_random import Key, permutation


class TrainingBatch(NamedTuple):
    """A batch of an epoch: normalised images float32 [B, 3, S, S] and their positions in the index, int64 [B].

    `step` is the number of the batch in its epoch. Numbers are missing where all files of a batch were skipped.
    """

    epoch: int
    step: int
    images: Tensor
    positions: np.ndarray


def shuffled_batches(positions: np.ndarray, batch_size: int, *key: Key) -> Iterator[np.ndarray]:
    """Every position once, in batches, shuffled by the key.

    The last batch may be smaller. A single left-over image joins the batch before it, because BatchNorm cannot be
    trained on one image.
    """
    order = positions[permutation(len(positions), *key)]
    yield from np.split(order, range(batch_size, batch_size * steps(len(order), batch_size), batch_size))


class Requested(NamedTuple):
    """A batch to be loaded: positions int64 [B]."""

    epoch: int
    step: int
    positions: np.ndarray


def requested_batches(
    positions: np.ndarray, batch_size: int, epochs: range, first_step: int, *key: Key
) -> Iterator[Requested]:
    """All batches of the epochs, shuffled by (key, epoch); the first epoch begins at its batch `first_step`."""
    for epoch in epochs:
        batches = enumerate(shuffled_batches(positions, batch_size, *key, "order", epoch))
        start = first_step if epoch == epochs.start else 0
        yield from (Requested(epoch, step, batch) for step, batch in islice(batches, start, None))


def steps(images: int, batch_size: int) -> int:
    """Number of batches in an epoch."""
    return max(1, -(-(images - 1) // batch_size))
