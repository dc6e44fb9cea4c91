"""PIL's bilinear resizing in DALI; pixels differ by at most 1/255.

Both shrink with a triangle filter as wide as the reduction. Where the filter extends beyond the image, PIL ignores the
part outside and DALI repeats the edge, which differs by up to 17/255 in the outermost rows and columns. So images are
padded with zeros before they are shrunk, and these rows and columns are divided by the fraction of the filter inside.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from nvidia.dali import fn, types

Arguments = tuple[np.ndarray, ...]


class Axis(NamedTuple):
    """How one axis of an image is sampled; coordinates in pixels of the image.

    Attributes:
        pad: number of zeros needed at both ends.
        low, high: the interval to sample.
        gain: factors for the resized pixels, float32 [size].
    """

    pad: int
    low: float
    high: float
    gain: np.ndarray


@lru_cache(maxsize=4096)
def axis(length: int, resized: int, first: int, size: int) -> Axis:
    """Sampling of the pixels first..first+size-1 of an axis resized from `length` to `resized` pixels."""
    step = length / resized
    low, high = first * step, (first + size) * step
    gain = np.ones(size, dtype=np.float32)
    if step <= 1:
        return Axis(0, low, high, gain)
    taps = np.arange(-math.ceil(step), math.ceil(2 * step)) + 0.5
    weights = np.maximum(0, 1 - np.abs(taps - step / 2) / step)
    edge = weights.sum() / weights[(taps > 0) & (taps < length)].sum()
    if first == 0:
        gain[0] = edge
    if first + size == resized:
        gain[-1] = edge
    return Axis(math.ceil(step) + 1, low, high, gain)


def edge_arguments(rows: Axis, columns: Axis, height: int, width: int) -> Arguments:
    """`resize_to_edge`'s arguments for an image of height x width pixels."""
    return (
        np.asarray((-rows.pad, -columns.pad), dtype=np.int32),
        np.asarray((height + 2 * rows.pad, width + 2 * columns.pad), dtype=np.int32),
        np.asarray((rows.low + rows.pad, columns.low + columns.pad), dtype=np.float32),
        np.asarray((rows.high + rows.pad, columns.high + columns.pad), dtype=np.float32),
        rows.gain[:, None, None],
        columns.gain[None, :, None],
    )


def resize_to_edge(
    image: Any, device: str, size: int, start: Any, shape: Any, low: Any, high: Any, rows: Any, columns: Any
) -> Any:
    """size x size pixels of a resized image, possibly with its edges: uint8 [size, size, 3]. See `edge_arguments`."""
    image = fn.slice(image, start, shape, axes=(0, 1), out_of_bounds_policy="pad", fill_values=0)
    image = _resize(image, size, low, high, types.FLOAT)
    if device == "gpu":
        rows, columns = rows.gpu(), columns.gpu()
    return fn.cast(image * (rows * columns), dtype=types.UINT8)


def inner_arguments(rows: Axis, columns: Axis) -> Arguments:
    """`resize_inner`'s arguments."""
    return np.asarray((rows.low, columns.low), dtype=np.float32), np.asarray(
        (rows.high, columns.high), dtype=np.float32
    )


def resize_inner(image: Any, size: int, low: Any, high: Any) -> Any:
    """size x size pixels of a resized image, without its edges: uint8 [size, size, 3]. See `inner_arguments`."""
    return _resize(image, size, low, high, types.UINT8)


def _resize(image: Any, size: int, low: Any, high: Any, dtype: Any) -> Any:
    return fn.resize(
        image,
        size=(size, size),
        roi_start=low,
        roi_end=high,
        dtype=dtype,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )
