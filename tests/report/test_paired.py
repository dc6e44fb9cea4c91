"""Intervals over seeds against values computed by hand, with Student's t from printed tables."""

import math

import pytest

from delt_hpc.report.paired import Interval, interval, paired, verdict


def test_three_values() -> None:
    """s = 1 and t(2; 0.975) = 4.303: the half width is 4.303 / sqrt(3)."""
    found = interval([80.0, 81.0, 82.0])
    assert (found.mean, found.n) == (81.0, 3)
    assert found.half_width == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)
    assert found.low == pytest.approx(81.0 - 2.484, abs=1e-3)


def test_two_values_at_another_confidence() -> None:
    """s = sqrt(2) and t(1; 0.95) = 6.314: the half width is 6.314."""
    assert interval([4.0, 6.0], 0.90).half_width == pytest.approx(6.314, abs=1e-3)


def test_one_value_has_no_interval() -> None:
    assert interval([3.0]) == Interval(3.0, None, None, 1)
    assert not interval([3.0]).excludes_zero


def test_differences_are_paired_by_seed() -> None:
    """The accuracies vary by ten points, their differences (1, 2, 3) by one: the interval is that of the latter."""
    difference = paired({1: 81.0, 2: 92.0, 3: 73.0, 5: 0.0}, {3: 70.0, 2: 90.0, 1: 80.0, 4: 0.0})
    assert difference is not None
    assert (difference.mean, difference.n) == (2.0, 3)
    assert difference.half_width == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)
    assert not difference.excludes_zero


def test_without_a_shared_seed_there_is_no_difference() -> None:
    assert paired({1: 2.0}, {2: 2.0}) is None


@pytest.mark.parametrize(
    ("difference", "text"),
    [
        (Interval(2.7, -1.9, 7.3, 3), "+2.7 points, 95 % interval −1.9 to 7.3 over 3 seeds: not distinguishable"),
        (Interval(2.7, 1.9, 3.5, 3), "+2.7 points, 95 % interval 1.9 to 3.5 over 3 seeds: better"),
        (Interval(-2.7, -3.5, -1.9, 5), "−2.7 points, 95 % interval −3.5 to −1.9 over 5 seeds: worse"),
        (Interval(-0.5, None, None, 1), "−0.5 points for one seed: no interval"),
    ],
)
def test_the_verdict(difference: Interval, text: str) -> None:
    assert verdict(difference) == text
