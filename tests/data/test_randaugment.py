"""The policy's operations against timm's, and its draws against their distribution."""

import itertools
from collections import Counter
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist

import numpy as np
import pytest
from PIL import Image
from PIL.Image import Resampling
from sklearn.datasets import load_sample_image

from delt_hpc.data import randaugment
from delt_hpc.data.randaugment import LAYERS, NAMES, OPERATIONS, RandAugment, Step, draw_step
from delt_hpc.keyed_random import uniforms

# one per cent quantiles
CHI_SQUARE = {1: 6.63, 2: 9.21, 14: 29.14}
KOLMOGOROV = 1.63
MAGNITUDES = (0.0, 1.3, 3.7, 5.0, 6.0, 7.49, 9.99, 10.0)


@cache
def photo() -> Image.Image:
    return Image.fromarray(load_sample_image("flower.jpg")).resize((97, 64))


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 45, 3), dtype=np.uint8))


def chi_square(observed: Sequence[int], expected: Sequence[float]) -> float:
    """Pearson's statistic divided by its quantile: below 1 unless the draws are wrong."""
    pairs = zip(observed, expected, strict=True)
    return sum((count - mean) ** 2 / mean for count, mean in pairs) / CHI_SQUARE[len(observed) - 1]


def halves(yes: int, total: int) -> float:
    return chi_square((yes, total - yes), (total / 2, total / 2))


def steps_of(name: str, magnitude: float) -> list[Step]:
    operation = OPERATIONS[name]
    argument = operation.argument(magnitude / 10)
    signs = (1, -1) if operation.signed else (1,)
    kinds = (Resampling.BILINEAR, Resampling.BICUBIC)
    return [Step(name, sign * argument, kind) for sign, kind in itertools.product(signs, kinds)]


@pytest.mark.parametrize("name", NAMES)
def test_every_operation_is_timms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm.data.auto_augment")
    for magnitude in MAGNITUDES:
        for step in steps_of(name, magnitude):
            if name == "Posterize" and not step.argument:
                continue  # newer Pillow refuses it; tested below
            negative = step.argument < 0
            monkeypatch.setattr(
                timm, "_randomly_negate", lambda value, negative=negative: -value if negative else value
            )
            theirs = timm.AugmentOp(name, prob=1.0, magnitude=magnitude)
            theirs.kwargs["resample"] = step.resampling
            for image in (photo(), noise()):
                ours = OPERATIONS[name].apply(image, step)
                assert np.array_equal(np.asarray(ours), np.asarray(theirs(image))), (magnitude, step)


def test_posterizing_to_no_bits_is_black() -> None:
    black = OPERATIONS["Posterize"].apply(photo(), Step("Posterize", 0, Resampling.BILINEAR))
    assert black.getextrema() == ((0, 0),) * 3


def test_the_policy_is_timms() -> None:
    timm = pytest.importorskip("timm.data.auto_augment")
    policy = timm.rand_augment_transform("rand-m6-n2-mstd1.0")
    assert policy.num_layers == LAYERS
    assert policy.choice_weights is None
    assert tuple(operation.name for operation in policy.ops) == NAMES
    for operation in policy.ops:
        assert operation.prob == randaugment.PROBABILITY
        assert (operation.magnitude, operation.magnitude_std) == (randaugment.MAGNITUDE, randaugment.DEVIATION)
        assert operation.kwargs["fillcolor"] == randaugment.FILL
        assert set(operation.kwargs["resample"]) == {Resampling.BILINEAR, Resampling.BICUBIC}


def test_operations_are_drawn_evenly_and_half_of_them_applied() -> None:
    stream = uniforms("test", "frequencies")
    drawn = [draw_step(stream) for _ in range(12_000)]
    applied = [step for step in drawn if step]
    assert halves(len(applied), len(drawn)) < 1
    counts = Counter(step.name for step in applied)
    assert chi_square([counts[name] for name in NAMES], [len(applied) / len(NAMES)] * len(NAMES)) < 1
    signed = [step for step in applied if OPERATIONS[step.name].signed]
    assert halves(sum(step.argument > 0 for step in signed), len(signed)) < 1
    assert halves(sum(step.resampling == Resampling.BICUBIC for step in applied), len(applied)) < 1


def test_magnitudes_are_normal() -> None:
    stream = uniforms("test", "magnitudes")
    drawn = [draw_step(stream) for _ in range(12_000)]
    levels = sorted((step.argument - 0.1) / 1.8 for step in drawn if step and step.name in ("Color", "Brightness"))
    expected = NormalDist(0.6, 0.1)
    farthest = max(abs(expected.cdf(level) - (i + 0.5) / len(levels)) for i, level in enumerate(levels))
    assert farthest < KOLMOGOROV / len(levels) ** 0.5


@pytest.mark.parametrize(("angle", "factor"), [(0.0, 1.9), (0.5, 0.1)])
def test_magnitudes_are_clamped(angle: float, factor: float) -> None:
    farthest = 1 - 2.0**-53
    step = draw_step(iter([NAMES.index("Color") / len(NAMES) + 0.01, 0.0, farthest, angle, 0.0, 0.0]))
    assert step is not None
    assert step.name == "Color"
    assert step.argument == pytest.approx(factor)


def test_layers_are_drawn_independently() -> None:
    policy, stream = RandAugment(), uniforms("test", "layers")
    counts = Counter(len(policy.draw(stream)) for _ in range(2000))
    assert chi_square([counts[n] for n in range(LAYERS + 1)], [500, 1000, 500]) < 1


def test_an_image_is_a_function_of_the_stream() -> None:
    policy = RandAugment()
    images = [np.asarray(policy(photo(), uniforms("test", i))) for i in range(12)]
    again = [np.asarray(policy(photo(), uniforms("test", i))) for i in range(12)]
    assert all(np.array_equal(first, second) for first, second in zip(images, again, strict=True))
    assert len({image.tobytes() for image in images}) > 6


def test_every_image_consumes_the_same_count_of_numbers() -> None:
    for key in range(20):
        stream, other = uniforms("test", key), uniforms("test", key)
        RandAugment()(photo(), stream)
        assert next(stream) == next(itertools.islice(other, 6 * LAYERS, None))


def test_the_smallest_images_are_accepted() -> None:
    for name in NAMES:
        for size in ((1, 1), (1, 9), (9, 1), (2, 2)):
            for step in steps_of(name, 6.0):
                image = OPERATIONS[name].apply(Image.new("RGB", size, (200, 10, 90)), step)
                assert (image.mode, image.size) == ("RGB", size)
