"""Schedule arithmetic against tables computed by hand."""

import math

import pytest

from delt_hpc.config.schema import Recover
from delt_hpc.recovery.batches import plan
from delt_hpc.recovery.schedule import Schedule, active_images, entry_rounds, image_iterations

PUBLISHED = {"iterations": 4000, "round_iterations": 500, "batch_size": 100}


def actives(ipc: int, classes: int = 10, **changes: object) -> list[int]:
    recover = Recover(**PUBLISHED | changes)
    batch = plan(classes, ipc, recover)[0]
    return [batch.active(r) for r in range(recover.rounds)]


def test_ipc_50_fills_as_published() -> None:
    assert actives(50) == [14, 28, 40, 52, 64, 76, 88, 100]
    assert active_images(50, 8) == [7, 14, 20, 26, 32, 38, 44, 50]
    assert image_iterations(50, 8, 500) / (50 * 4000) == pytest.approx(0.5775)


def test_ipc_10_saves_36_25_percent() -> None:
    assert actives(10) == [20, 40, 50, 60, 70, 80, 90, 100]
    assert 1 - image_iterations(10, 8, 500) / (10 * 4000) == pytest.approx(0.3625)


def test_ipc_1_is_there_from_the_first_round_on() -> None:
    assert entry_rounds(1, 8) == [0]
    assert active_images(1, 8) == [1] * 8
    assert actives(1, classes=100) == [100] * 8


def test_an_ipc_that_divides_nothing() -> None:
    assert entry_rounds(11, 8) == [0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7]
    assert active_images(11, 8) == [2, 4, 6, 7, 8, 9, 10, 11]
    assert actives(11, classes=9) == [18, 36, 54, 63, 72, 81, 90, 99]


def test_fewer_images_than_rounds_leave_later_rounds_without_entries() -> None:
    assert active_images(3, 8) == [1, 2, 3, 3, 3, 3, 3, 3]


def test_learning_rate_is_one_cosine_over_the_run() -> None:
    schedule = Schedule.of(Recover(**PUBLISHED))
    assert schedule.lr(0) == 0.25
    assert schedule.lr(1000) == pytest.approx(0.25 * (1 + math.sqrt(0.5)) / 2)
    assert schedule.lr(2000) == pytest.approx(0.125)
    assert 0 < schedule.lr(3999) < 1e-6


def test_learning_rate_restarts_each_round_with_per_round() -> None:
    schedule = Schedule.of(Recover(**PUBLISHED, lr_schedule="per_round"))
    assert [schedule.lr(t) for t in (0, 500, 3500)] == [0.25] * 3
    assert schedule.lr(750) == pytest.approx(0.125)


@pytest.mark.parametrize(
    ("crop_schedule", "quarter", "half", "last"),
    [
        ("cosine", 0.08 + 0.92 * 0.8535533905932737, 0.54, 0.08),
        ("linear", 0.77, 0.54, 0.08),
        ("step", 1.0, 1.0, 1.0),
        ("constant", 0.08, 0.08, 0.08),
    ],
)
def test_smallest_crop(crop_schedule: str, quarter: float, half: float, last: float) -> None:
    schedule = Schedule.of(Recover(**PUBLISHED, crop_schedule=crop_schedule))
    assert schedule.smallest_crop(0) == (0.08 if crop_schedule == "constant" else 1.0)
    assert schedule.smallest_crop(1000) == pytest.approx(quarter)
    assert schedule.smallest_crop(2000) == pytest.approx(half)
    assert schedule.smallest_crop(3999) == pytest.approx(last, abs=3e-4)


def test_crops_stay_smallest_after_the_milestone() -> None:
    for crop_schedule in ("cosine", "linear", "step"):
        schedule = Schedule.of(Recover(**PUBLISHED, crop_schedule=crop_schedule, milestone=0.5))
        assert schedule.smallest_crop(1999) > 0.08
        assert [schedule.smallest_crop(t) for t in (2000, 3000, 3999)] == pytest.approx([0.08] * 3)
