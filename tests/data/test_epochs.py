"""The order of an epoch's images and its division into batches."""

import numpy as np
import pytest

from delt_hpc.data.epochs import shuffled_batches, steps
from delt_hpc.keyed_random import permutation


@pytest.mark.parametrize("count", [1, 2, 23])
@pytest.mark.parametrize("batch_size", [1, 2, 11, 22, 23, 64])
def test_every_position_is_in_an_epoch_once(count: int, batch_size: int) -> None:
    positions = np.arange(100, 100 + count)
    batches = list(shuffled_batches(positions, batch_size, "order", 1))
    assert sorted(np.concatenate(batches).tolist()) == positions.tolist()
    lengths = [len(batch) for batch in batches]
    assert set(lengths[:-1]) <= {batch_size}
    assert lengths[-1] <= batch_size + 1
    if batch_size > 1 < count:
        assert lengths[-1] > 1
    assert np.array_equal(np.concatenate(batches), positions[permutation(count, "order", 1)])


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [
        *((9, 3, [3, 3, 3]), (10, 3, [3, 3, 4]), (11, 3, [3, 3, 3, 2]), (13, 4, [4, 4, 5])),
        *((3, 8, [3]), (8, 8, [8]), (9, 8, [9]), (10, 8, [8, 2]), (1, 8, [1]), (2, 1, [2]), (3, 1, [1, 2])),
    ],
)
def test_a_single_left_over_image_joins_the_last_batch(count: int, batch_size: int, sizes: list[int]) -> None:
    batches = list(shuffled_batches(np.arange(count), batch_size, "order"))
    assert [len(batch) for batch in batches] == sizes
    assert steps(count, batch_size) == len(sizes)
