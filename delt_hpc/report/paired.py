"""Means with confidence intervals over seeds, and paired differences between two series of trainings.

Trainings with the same seed share the student's first weights, the order of images and every other random draw, so
their difference varies less over seeds than either accuracy does.
"""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scipy.special import stdtrit  # type: ignore[import-untyped]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """The mean of n values with its confidence interval by Student's t distribution.

    Attributes:
        low, high: the ends of the interval; None for a single value, which says nothing about its spread.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half_width(self) -> float | None:
        return None if self.high is None else self.high - self.mean

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero: for a difference, whether the two are distinguishable."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def interval(values: Iterable[float], confidence: float = CONFIDENCE) -> Interval:
    """mean ± t s / sqrt(n): s is the sample standard deviation, t the quantile of n - 1 degrees of freedom.

    Args:
        values: at least one.
        confidence: probability that such an interval contains the mean of the population.
    """
    sample = list(values)
    mean, n = statistics.fmean(sample), len(sample)
    if n == 1:
        return Interval(mean, None, None, 1)
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * statistics.stdev(sample) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def paired(of: Mapping[int, float], base: Mapping[int, float], confidence: float = CONFIDENCE) -> Interval | None:
    """The mean difference `of` - `base` over the seeds that both have; None if they share none.

    Args:
        of, base: value by seed.
    """
    shared = sorted(of.keys() & base.keys())
    return interval((of[seed] - base[seed] for seed in shared), confidence) if shared else None


def verdict(difference: Interval) -> str:
    """A difference of accuracies in words: `+2.7 points, 95 % interval 1.9 to 3.5 over 3 seeds: better`.

    The other verdicts are `worse` and `not distinguishable`. A single seed gives no interval and no verdict.
    """
    mean = _minus(f"{difference.mean:+.1f}")
    if difference.low is None or difference.high is None:
        return f"{mean} points for one seed: no interval"
    judged = ("better" if difference.mean > 0 else "worse") if difference.excludes_zero else "not distinguishable"
    ends = _minus(f"{difference.low:.1f} to {difference.high:.1f}")
    return f"{mean} points, {CONFIDENCE:.0%} interval {ends} over {difference.n} seeds: {judged}".replace("%", " %")


def _minus(text: str) -> str:
    return text.replace("-", "−")
