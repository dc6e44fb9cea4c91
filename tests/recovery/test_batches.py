"""Which images are optimised together."""

import pytest

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.schema import Recover
from delt_hpc.errors import UserError
from delt_hpc.recovery.batches import block_size, of_classes, plan

ROUNDS = {"iterations": 80, "round_iterations": 10}


@pytest.mark.parametrize(
    ("classes", "ipc", "batch_size"), [(10, 50, 100), (7, 10, 30), (3, 1, 2), (2, 25, 10), (5, 7, 7)]
)
def test_every_image_is_in_exactly_one_batch(classes: int, ipc: int, batch_size: int) -> None:
    batches = plan(classes, ipc, Recover(batch_size=batch_size, **ROUNDS))
    images = [(entry.class_index, entry.number) for batch in batches for entry in batch.entries]
    assert sorted(images) == [(c, n) for c in range(classes) for n in range(ipc)]
    assert len({batch.id for batch in batches}) == len(batches)
    assert all(len(batch.entries) <= batch_size for batch in batches)


def test_batches_hold_whole_classes() -> None:
    assert [(b.first, b.last) for b in plan(5, 50, Recover(**ROUNDS))] == [(0, 1), (2, 3), (4, 4)]


def test_active_images_are_a_prefix() -> None:
    for batch in plan(4, 11, Recover(**ROUNDS)):
        rounds = [entry.round for entry in batch.entries]
        assert rounds == sorted(rounds)
        assert [batch.active(r) for r in range(8)] == [sum(x <= r for x in rounds) for r in range(8)]


def test_an_ipc_above_the_batch_size_cuts_a_class_into_equal_parts_that_run_all_rounds() -> None:
    first, second, third = plan(1, 25, Recover(batch_size=10, **ROUNDS))
    assert [len(b.entries) for b in (first, second, third)] == [9, 8, 8]
    assert sorted(entry.number for entry in second.entries) == [1, 4, 7, 10, 13, 16, 19, 22]
    for part in (first, second, third):
        assert {entry.round for entry in part.entries} == set(range(8))
    assert [b.id for b in (first, second, third)] == ["00000-00000.p0", "00000-00000.p1", "00000-00000.p2"]


def test_the_round_of_an_image_does_not_depend_on_the_batch_borders() -> None:
    def rounds(batch_size: int) -> dict[tuple[int, int], int]:
        batches = plan(12, 10, Recover(batch_size=batch_size, **ROUNDS))
        return {(e.class_index, e.number): e.round for b in batches for e in b.entries}

    assert rounds(100) == rounds(10) == rounds(35)


def test_mixed_batches_hold_one_image_of_each_class() -> None:
    recover = Recover(batching="mixed", batch_size=4, iterations=10, round_iterations=None)
    batches = plan(6, 3, recover)
    assert [(b.first, b.last, b.part) for b in batches] == [
        (0, 3, 0),
        (0, 3, 1),
        (0, 3, 2),
        (4, 5, 0),
        (4, 5, 1),
        (4, 5, 2),
    ]
    assert [(e.class_index, e.number) for e in batches[1].entries] == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert block_size(3, recover) == 4


def test_a_class_range_picks_its_batches_and_may_not_cut_one() -> None:
    batches = plan(10, 50, Recover(**ROUNDS))
    assert [b.id for b in of_classes(batches, ClassRange(2, 5))] == ["00002-00003", "00004-00005"]
    with pytest.raises(UserError, match=r"(?s)cut the batch of classes 00002-00003.*batches span 2"):
        of_classes(batches, ClassRange(3, 5))


def test_batches_of_a_range_are_those_of_the_whole() -> None:
    batches = plan(9, 10, Recover(batch_size=30, **ROUNDS))
    assert [b for low in (0, 3, 6) for b in of_classes(batches, ClassRange(low, low + 2))] == batches
