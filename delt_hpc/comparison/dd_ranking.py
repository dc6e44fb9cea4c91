"""LRS and ARS of DD-Ranking: what is left of an accuracy after soft labels and augmentation have had their part.

Both compare with random real images under the same protocol. They lie in 0..1: 0.269 is a method that is neither better
nor worse than random images, as the map of 0 is (1 - e^-1) / (e - e^-1).
"""

import math


def label_robust_score(distilled_soft: float, distilled_hard: float, random_soft: float, real_hard: float) -> float:
    """LRS, the map of a = 0.5 (improvement over random) - 0.5 (loss with hard labels against all real images).

    Args:
        distilled_soft, random_soft: accuracies under the same protocol, in per cent, as all here.
        distilled_hard: with hard labels.
        real_hard: of training on all real images with hard labels.
    """
    return _map(0.5 * (distilled_soft - random_soft) / 100 - 0.5 * (real_hard - distilled_hard) / 100)


def augmentation_robust_score(gain: float, gain_without: float) -> float:
    """ARS, the map of b = 0.5 (gain over random images with augmentation) + 0.5 (that without).

    Args:
        gain, gain_without: percentage points.
    """
    return _map(0.5 * gain / 100 + 0.5 * gain_without / 100)


def _map(value: float) -> float:
    """(e^x - e^-1) / (e - e^-1): -1 -> 0, 1 -> 1."""
    return (math.exp(value) - math.exp(-1)) / (math.e - math.exp(-1))
