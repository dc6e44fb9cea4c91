"""Windows have the distribution of torchvision's RandomResizedCrop and stay inside the image."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]
from torchvision.transforms import RandomResizedCrop

from delt_hpc.data.random_crop import RATIO, Window, draw_window
from delt_hpc.keyed_random import uniforms

DRAWS = 2500
SIZES = [(64, 64), (48, 120), (130, 100)]
SCALES = [(0.08, 1.0), (0.25, 1.0), (0.5, 0.5), (1.0, 1.0)]


def ours(height: int, width: int, scale: tuple[float, float]) -> np.ndarray:
    stream = uniforms("crop", height, width)
    return np.array([draw_window(stream, height, width, scale) for _ in range(DRAWS)])


def torchvisions(height: int, width: int, scale: tuple[float, float]) -> np.ndarray:
    image = torch.empty(3, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return np.array([RandomResizedCrop.get_params(image, list(scale), list(RATIO)) for _ in range(DRAWS)])


def statistics_of(windows: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
    """The compared statistics; positions are relative to the range in which the window can move."""
    top, left, h, w = windows.T
    return {
        "area": h * w / (height * width),
        "ratio": w / h,
        "top": top[h < height] / (height - h[h < height]),
        "left": left[w < width] / (width - w[w < width]),
        "height": h,
        "width": w,
    }


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_windows_are_distributed_as_torchvision_s(height: int, width: int, scale: tuple[float, float]) -> None:
    reference = statistics_of(torchvisions(height, width, scale), height, width)
    for name, values in statistics_of(ours(height, width, scale), height, width).items():
        if len(values) and len(reference[name]):
            assert stats.ks_2samp(values, reference[name]).pvalue > 0.001, name
        assert abs(len(values) - len(reference[name])) < 5 * math.sqrt(DRAWS), name


def test_the_comparison_detects_another_scale() -> None:
    area = statistics_of(ours(64, 64, (0.08, 1.0)), 64, 64)["area"]
    other = statistics_of(torchvisions(64, 64, (0.14, 1.0)), 64, 64)["area"]
    assert stats.ks_2samp(area, other).pvalue < 0.001


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.001, 0.01), (1.0, 1.0)])
def test_a_window_is_always_inside(scale: tuple[float, float]) -> None:
    stream = uniforms("inside")
    for height, width in itertools.product((1, 2, 3, 8, 31, 224), repeat=2):
        for _ in range(40):
            top, left, h, w = draw_window(stream, height, width, scale)
            assert 0 <= top <= top + h <= height
            assert 0 <= left <= left + w <= width
            assert h > 0
            assert w > 0


@pytest.mark.parametrize("number", [0.0, 1 - 2.0**-53])
@pytest.mark.parametrize("size", [1, 7, 32, 224, 4097])
def test_the_extreme_numbers_stay_inside(number: float, size: int) -> None:
    top, left, h, w = draw_window(itertools.repeat(number), size, size, (0.08, 1.0))
    assert 0 <= top <= size - h
    assert 0 <= left <= size - w


def test_every_position_can_be_drawn() -> None:
    stream = uniforms("places")
    windows = [draw_window(stream, 8, 8, (0.25, 0.25)) for _ in range(2000)]
    assert {w.height for w in windows} == {w.width for w in windows} == {3, 4, 5}
    assert {(w.top, w.left) for w in windows if (w.height, w.width) == (4, 4)} == set(
        itertools.product(range(5), repeat=2)
    )


@pytest.mark.parametrize(
    ("height", "width", "window"),
    [
        (64, 64, Window(0, 0, 64, 64)),
        (10, 100, Window(0, 43, 10, 13)),
        (100, 10, Window(43, 0, 13, 10)),
        (30, 40, Window(0, 0, 30, 40)),
    ],
)
def test_if_no_try_fits_the_largest_allowed_window_is_centred(height: int, width: int, window: Window) -> None:
    """Every try has the whole area and ratio 3/4, too high for all but the last image, whose own ratio 4/3 fits."""
    tries = itertools.cycle([0.5, 0.0 if width != 40 else 1 - 2.0**-53, 0.5, 0.5])
    assert draw_window(tries, height, width, (1.0, 1.0)) == window


def test_each_try_consumes_four_numbers() -> None:
    def counted(numbers: Iterator[float]) -> Iterator[float]:
        for number in numbers:
            taken.append(number)
            yield number

    taken: list[float] = []
    draw_window(counted(itertools.repeat(0.5)), 64, 64, (0.25, 1.0))
    assert len(taken) == 4
    taken.clear()
    draw_window(counted(itertools.repeat(0.0)), 10, 100, (1.0, 1.0))
    assert len(taken) == 4 * 10
