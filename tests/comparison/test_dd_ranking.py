"""DD-Ranking's scores against values worked out by hand."""

import math

import pytest

from delt_hpc.comparison.dd_ranking import augmentation_robust_score, label_robust_score


def test_the_label_robust_score() -> None:
    """Improvement 84 - 80 = 4 points, loss 90 - 50 = 40 points: a = 0.02 - 0.2 = -0.18; e^-0.18 = 0.83527."""
    score = label_robust_score(84.0, 50.0, 80.0, 90.0)
    assert score == pytest.approx((0.83527 - 0.36788) / (2.71828 - 0.36788), abs=1e-5)
    assert score == pytest.approx(0.19886, abs=1e-5)


def test_the_augmentation_robust_score() -> None:
    """Gains of 6 and -2 points: b = 0.02; e^0.02 = 1.02020."""
    assert augmentation_robust_score(6.0, -2.0) == pytest.approx((1.02020 - 0.36788) / 2.35040, abs=1e-5)


def test_the_ends_of_the_scale() -> None:
    assert label_robust_score(100.0, 100.0, 0.0, 0.0) == pytest.approx(1.0)
    assert label_robust_score(0.0, 0.0, 100.0, 100.0) == pytest.approx(0.0)
    neutral = (1 - math.exp(-1)) / (math.e - math.exp(-1))
    assert label_robust_score(70.0, 50.0, 70.0, 50.0) == pytest.approx(neutral) == pytest.approx(0.26894, abs=1e-5)
