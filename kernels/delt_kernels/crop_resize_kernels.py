# mypy: disable-error-code="untyped-decorator"
# ruff: noqa: N803 (sizes and constants of a kernel are written in capitals)
"""Kernels of `crop_resize` and its gradient; crop_resize.py has the formulas.

A program computes a tile [channels, pixels] of one image. Neighbouring threads compute neighbouring pixels, since most
reads follow rows of the source. Forward and backward are gathers, and each image is computed independently.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from delt_kernels.layout import device_of
from delt_kernels.segments import next_power_of_two

# Pixels and, at most, channels of a program; images have three channels.
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
def _taps(u: tl.tensor, length: tl.tensor, SIZE: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The near and the far pixel that pixel u of the resized crop reads, and the weight of the far one."""
    t = tl.maximum((2 * u + 1) * length - SIZE, 0)
    near = t // (2 * SIZE)
    weight = (t - near * (2 * SIZE)).to(tl.float32) / (2 * SIZE)
    return near, tl.minimum(near + 1, length - 1), weight


@triton.jit
def _modulo(number: tl.tensor, SIZE: tl.constexpr) -> tl.tensor:
    """In 0 .. SIZE - 1, also for negative numbers, where `%` has the sign of the dividend."""
    return (number % SIZE + SIZE) % SIZE


@triton.jit
def _program_tile(
    SIZE: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The program's image, pixels [1, PIXELS] and channels [CHANNELS, 1].

    program_id is (block of pixels of an image, block of channels).
    """
    blocks: tl.constexpr = tl.cdiv(SIZE * SIZE, PIXELS)
    pixel = (tl.program_id(0) % blocks) * PIXELS + tl.arange(0, PIXELS)[None, :]
    return tl.program_id(0) // blocks, pixel, tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[:, None]


@triton.jit
def crop_resize_forward(
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
    n, pixel, c = _program_tile(SIZE, PIXELS, CHANNELS)
    top, left, height, width, mirrored, down, right = _view(views_ptr, offsets_ptr, n, G, GP)
    mask = (pixel < SIZE * SIZE) & (c < C)
    y = _modulo(pixel // SIZE - down, SIZE)
    x = _modulo(pixel % SIZE - right, SIZE)
    y0, y1, wy = _taps(y, height, SIZE)
    x0, x1, wx = _taps(tl.where(mirrored != 0, SIZE - 1 - x, x), width, SIZE)
    source = images_ptr + tl.load(rows_ptr + n).to(tl.int64) * stride_row + c.to(tl.int64) * stride_c
    upper, lower = source + (top + y0) * stride_y, source + (top + y1) * stride_y
    x0, x1 = (left + x0) * stride_x, (left + x1) * stride_x
    upper0 = tl.load(upper + x0, mask=mask, other=0).to(tl.float32)
    upper1 = tl.load(upper + x1, mask=mask, other=0).to(tl.float32)
    lower0 = tl.load(lower + x0, mask=mask, other=0).to(tl.float32)
    lower1 = tl.load(lower + x1, mask=mask, other=0).to(tl.float32)
    value = (1 - wy) * ((1 - wx) * upper0 + wx * upper1) + wy * ((1 - wx) * lower0 + wx * lower1)
    out = out_ptr + (n.to(tl.int64) * (SIZE * SIZE) + pixel) * C + c
    tl.store(out, value.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _first_reader(i: tl.tensor, length: tl.tensor, SIZE: tl.constexpr) -> tl.tensor:
    """The first pixel u of the resized crop that reads pixel i: the first whose centre lies beyond i - 1."""
    return tl.where(i > 0, ((2 * i - 1) * SIZE - length) // (2 * length) + 1, 0)


@triton.jit
def _weight(u: tl.tensor, i: tl.tensor, length: tl.tensor, SIZE: tl.constexpr) -> tl.tensor:
    """The weight of pixel i of the crop in pixel u of the resized crop; 0 for u past its end."""
    near, far, weight = _taps(u, length, SIZE)
    return tl.where(u < SIZE, tl.where(near == i, 1 - weight, 0) + tl.where(far == i, weight, 0), 0)


@triton.jit
def crop_resize_backward(
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
    n, pixel, c = _program_tile(SIZE, PIXELS, CHANNELS)
    top, left, height, width, mirrored, down, right = _view(views_ptr, offsets_ptr, n, G, GP)
    i, j = pixel // SIZE - top, pixel % SIZE - left
    inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)  # pixels outside the crop are not read
    first_y, first_x = _first_reader(i, height, SIZE), _first_reader(j, width, SIZE)
    most_y, most_x = tl.cdiv(2 * SIZE, height), tl.cdiv(2 * SIZE, width)
    readers_y = tl.where(tl.max(inside.to(tl.int32)) > 0, tl.minimum(most_y, SIZE), 0)
    readers_x = tl.minimum(most_x, SIZE)
    source = gradient_ptr + n.to(tl.int64) * stride_n + c.to(tl.int64) * stride_c
    total = tl.zeros((CHANNELS, PIXELS), tl.float32)
    y = readers_y * 0
    while y < readers_y:  # not range(readers_y): the interpreter of Triton 3.6 accepts no tensors there
        weight_y = _weight(first_y + y, i, height, SIZE)
        line = source + _modulo(first_y + y + down, SIZE) * stride_y
        x = readers_x * 0
        while x < readers_x:
            u = first_x + x
            weight = weight_y * _weight(u, j, width, SIZE)
            column = _modulo(tl.where(mirrored != 0, SIZE - 1 - u, u) + right, SIZE)
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
        crop_resize_forward[grid](images, out, views, rows, offsets, c, segments, *images.stride(), **constants)
    return out


def backward(gradient: Tensor, views: Tensor, offsets: Tensor) -> Tensor:
    """gradient [N, C, S, S] -> [N, C, S, S] float32, contiguous."""
    (n, c, s, _), segments = gradient.shape, views.shape[0]
    packed = torch.empty((n, c, s, s), dtype=torch.float32, device=gradient.device)
    grid, constants = _launch_shape(n, c, s, segments)
    views, offsets = views.contiguous(), offsets.contiguous()
    with device_of(gradient):
        crop_resize_backward[grid](gradient, packed, views, offsets, c, segments, *gradient.stride(), **constants)
    return packed


def _launch_shape(n: int, c: int, size: int, segments: int) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid and the constants of both kernels."""
    channels = min(BLOCK_CHANNELS, next_power_of_two(c))
    grid = n * triton.cdiv(size * size, BLOCK_PIXELS), triton.cdiv(c, channels)
    constants = {"SIZE": size, "GP": next_power_of_two(segments), "PIXELS": BLOCK_PIXELS, "CHANNELS": channels}
    return grid, constants | {"num_warps": WARPS}
