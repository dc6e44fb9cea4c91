# mypy: disable-error-code="untyped-decorator"
# ruff: noqa: N803 (sizes and constants of a kernel are written in capitals)
"""Kernels of `crop_resize` and its gradient; crop_resize.py has the formulas.

A program computes a tile [channels, pixels] of one image. Pixels lie along the lanes, as most reads follow rows of the
source; both ways are gathers from places that neighbouring lanes share. Every image is computed by itself.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from delt_kernels.layout import device_of
from delt_kernels.segments import next_power_of_two

# A program's pixels and, at most, channels: images have three.
BLOCK_PIXELS, BLOCK_CHANNELS, WARPS = 256, 4, 4


@triton.jit
def _view(
    views_ptr: tl.tensor,  # int32 [G, 8]
    offsets_ptr: tl.tensor,  # int32 [G + 1]
    n: tl.tensor,
    G: tl.tensor,
    GP: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Top, left, height, width, mirrored, down, right of image n."""
    g = tl.arange(0, GP)
    ended = (g < G) & (tl.load(offsets_ptr + 1 + g, mask=g < G, other=0) <= n)
    view = views_ptr + 8 * tl.sum(ended.to(tl.int32), 0)
    top, left, height, width = tl.load(view), tl.load(view + 1), tl.load(view + 2), tl.load(view + 3)
    return top, left, height, width, tl.load(view + 4), tl.load(view + 5), tl.load(view + 6)


@triton.jit
def _taps(shown: tl.tensor, length: tl.tensor, SIZE: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Near pixel, far pixel, share of the far one, for positions of the resized crop."""
    centre = tl.maximum((2 * shown + 1) * length - SIZE, 0)
    near = centre // (2 * SIZE)
    share = (centre - near * (2 * SIZE)).to(tl.float32) / (2 * SIZE)
    return near, tl.minimum(near + 1, length - 1), share


@triton.jit
def _modulo(number: tl.tensor, SIZE: tl.constexpr) -> tl.tensor:
    """In 0..SIZE - 1 for negative numbers too."""
    return (number % SIZE + SIZE) % SIZE


@triton.jit
def _forward(
    images_ptr: tl.tensor,  # [R, C, S, S], any strides
    out_ptr: tl.tensor,  # [N, S, S, C]
    views_ptr: tl.tensor,  # int32 [G, 8]
    rows_ptr: tl.tensor,  # [N]
    offsets_ptr: tl.tensor,  # int32 [G + 1]
    C: tl.tensor,
    G: tl.tensor,
    stride_row: tl.tensor,
    stride_c: tl.tensor,
    stride_y: tl.tensor,
    stride_x: tl.tensor,
    SIZE: tl.constexpr,
    GP: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """program_id: (block of pixels of an image, block of channels); a tile is [CHANNELS, PIXELS]."""
    blocks: tl.constexpr = tl.cdiv(SIZE * SIZE, PIXELS)
    n = tl.program_id(0) // blocks
    top, left, height, width, mirrored, down, right = _view(views_ptr, offsets_ptr, n, G, GP)
    pixel = (tl.program_id(0) % blocks) * PIXELS + tl.arange(0, PIXELS)[None, :]
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    mask = (pixel < SIZE * SIZE) & (c < C)
    y = _modulo(pixel // SIZE - down, SIZE)
    x = _modulo(pixel % SIZE - right, SIZE)
    y0, y1, share_y = _taps(y, height, SIZE)
    x0, x1, share_x = _taps(tl.where(mirrored != 0, SIZE - 1 - x, x), width, SIZE)
    source = images_ptr + tl.load(rows_ptr + n).to(tl.int64) * stride_row + c.to(tl.int64) * stride_c
    upper, lower = source + (top + y0) * stride_y, source + (top + y1) * stride_y
    x0, x1 = (left + x0) * stride_x, (left + x1) * stride_x
    a = tl.load(upper + x0, mask=mask, other=0).to(tl.float32)
    b = tl.load(upper + x1, mask=mask, other=0).to(tl.float32)
    d = tl.load(lower + x0, mask=mask, other=0).to(tl.float32)
    e = tl.load(lower + x1, mask=mask, other=0).to(tl.float32)
    seen = (1 - share_y) * ((1 - share_x) * a + share_x * b) + share_y * ((1 - share_x) * d + share_x * e)
    out = out_ptr + (n.to(tl.int64) * (SIZE * SIZE) + pixel) * C + c
    tl.store(out, seen.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _first_reader(i: tl.tensor, length: tl.tensor, SIZE: tl.constexpr) -> tl.tensor:
    """The first position of the resized crop whose centre lies beyond i - 1: the first that reads pixel i."""
    return tl.where(i > 0, ((2 * i - 1) * SIZE - length) // (2 * length) + 1, 0)


@triton.jit
def _weight(shown: tl.tensor, i: tl.tensor, length: tl.tensor, SIZE: tl.constexpr) -> tl.tensor:
    """The weight of pixel i in a position of the resized crop, 0 behind its end."""
    near, far, share = _taps(shown, length, SIZE)
    return tl.where(shown < SIZE, tl.where(near == i, 1 - share, 0) + tl.where(far == i, share, 0), 0)


@triton.jit
def _backward(
    gradient_ptr: tl.tensor,  # [N, C, S, S], any strides
    packed_ptr: tl.tensor,  # [N, C, S, S] contiguous
    views_ptr: tl.tensor,  # int32 [G, 8]
    offsets_ptr: tl.tensor,  # int32 [G + 1]
    C: tl.tensor,
    G: tl.tensor,
    stride_n: tl.tensor,
    stride_c: tl.tensor,
    stride_y: tl.tensor,
    stride_x: tl.tensor,
    SIZE: tl.constexpr,
    GP: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """program_id: (block of pixels of an image, block of channels); a tile is [CHANNELS, PIXELS]."""
    blocks: tl.constexpr = tl.cdiv(SIZE * SIZE, PIXELS)
    n = tl.program_id(0) // blocks
    top, left, height, width, mirrored, down, right = _view(views_ptr, offsets_ptr, n, G, GP)
    pixel = (tl.program_id(0) % blocks) * PIXELS + tl.arange(0, PIXELS)[None, :]
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    i, j = pixel // SIZE - top, pixel % SIZE - left
    inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)  # only these are read by any position
    first_y, first_x = _first_reader(i, height, SIZE), _first_reader(j, width, SIZE)
    most_y, most_x = tl.cdiv(2 * SIZE, height), tl.cdiv(2 * SIZE, width)
    readers_y = tl.where(tl.max(inside.to(tl.int32)) > 0, tl.minimum(most_y, SIZE), 0)
    readers_x = tl.minimum(most_x, SIZE)
    source = gradient_ptr + n.to(tl.int64) * stride_n + c.to(tl.int64) * stride_c
    total = tl.zeros((CHANNELS, PIXELS), tl.float32)
    y = readers_y * 0
    while y < readers_y:  # not range(readers_y), which the interpreter of Triton 3.6 cannot take
        weight_y = _weight(first_y + y, i, height, SIZE)
        line = source + _modulo(first_y + y + down, SIZE) * stride_y
        x = readers_x * 0
        while x < readers_x:
            shown = first_x + x
            weight = weight_y * _weight(shown, j, width, SIZE)
            column = _modulo(tl.where(mirrored != 0, SIZE - 1 - shown, shown) + right, SIZE)
            total += weight * tl.load(line + column * stride_x, mask=(weight != 0) & (c < C), other=0).to(tl.float32)
            x += 1
        y += 1
    packed = packed_ptr + (n.to(tl.int64) * C + c) * (SIZE * SIZE) + pixel
    tl.store(packed, total, mask=(pixel < SIZE * SIZE) & (c < C))


def forward(images: Tensor, views: Tensor, rows: Tensor, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    """images [R, C, S, S] -> [N, C, S, S] in `dtype`, channels_last."""
    (_, c, s, _), n, segments = images.shape, rows.shape[0], views.shape[0]
    out = torch.empty((n, c, s, s), dtype=dtype, device=images.device, memory_format=torch.channels_last)
    grid, constants = _launch_shape(n, c, s, segments)
    views, rows, offsets = views.contiguous(), rows.contiguous(), offsets.contiguous()
    with device_of(images):
        _forward[grid](images, out, views, rows, offsets, c, segments, *images.stride(), **constants)
    return out


def backward(gradient: Tensor, views: Tensor, offsets: Tensor) -> Tensor:
    """gradient [N, C, S, S] -> [N, C, S, S] float32, contiguous."""
    (n, c, s, _), segments = gradient.shape, views.shape[0]
    packed = torch.empty((n, c, s, s), dtype=torch.float32, device=gradient.device)
    grid, constants = _launch_shape(n, c, s, segments)
    views, offsets = views.contiguous(), offsets.contiguous()
    with device_of(gradient):
        _backward[grid](gradient, packed, views, offsets, c, segments, *gradient.stride(), **constants)
    return packed


def _launch_shape(n: int, c: int, size: int, segments: int) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid of either kernel, and its constants."""
    channels = min(BLOCK_CHANNELS, next_power_of_two(c))
    grid = n * triton.cdiv(size * size, BLOCK_PIXELS), triton.cdiv(c, channels)
    constants = {"SIZE": size, "GP": next_power_of_two(segments), "PIXELS": BLOCK_PIXELS, "CHANNELS": channels}
    return grid, constants | {"num_warps": WARPS}
