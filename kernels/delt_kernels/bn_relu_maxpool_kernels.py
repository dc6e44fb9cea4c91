# mypy: disable-error-code="assignment,misc,unreachable,untyped-decorator"
# ruff: noqa: N803, N806, RUF005 (a kernel's sizes and constants are written in capitals; it cannot unpack tuples)
"""Kernels of `bn_relu_maxpool` and their launches: one pass over the activations forward, one backward, both layouts.

A program processes one chunk of one segment's pooled pixels, for one block of channels. Pooled pixel (y, x) owns the
input pixels (2y, 2x) .. (2y + 1, 2x + 1) that exist. Each input pixel has one owner, which adds it to the sums and
writes its gradient.

Rows are those of `layout`, but of pooled pixels. A tile is [pixels, channels] in channels_last and [channels, pixels]
in NCHW, so that neighbouring threads access neighbouring memory.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from delt_kernels.layout import channels_last, device_of, like, load_grad_sums, load_vector
from delt_kernels.segments import LENGTHS, Tiles, chunk_of, sum_chunks

NO_TAP = tl.constexpr(9)  # of a window without a positive element; the others are numbered 0 .. 8, row by row


@triton.jit
def _axes(CHANNELS_LAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Indices of a tile's pixels and of its channels, each along its own axis of the tile."""
    pixel, channel = tl.arange(0, BLOCK_R), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    return (pixel[:, None], channel[None, :]) if CHANNELS_LAST else (pixel[None, :], channel[:, None])


@triton.jit
def _pooled_pixels(
    row: tl.tensor,
    end: tl.tensor,
    pixel: tl.tensor,
    POOLED: tl.constexpr,
    IMAGE_ROWS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Image and index in it of each pooled pixel of a tile, and a mask of the valid ones."""
    rows = row + (pixel if CHANNELS_LAST else pixel * 0)
    image = rows // IMAGE_ROWS
    pooled = rows - image * IMAGE_ROWS
    if not CHANNELS_LAST:
        pooled = pooled * BLOCK_R + pixel
    return image, pooled, (pooled < POOLED) & (rows < end)


@triton.jit
def _offset(
    image: tl.tensor,
    pixel: tl.tensor,
    channel: tl.tensor,
    C: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
) -> tl.tensor:
    """Offset of an element in a tensor with PIXELS pixels per image."""
    return (image * PIXELS + pixel) * C + channel if CHANNELS_LAST else (image * C + channel) * PIXELS + pixel


@triton.jit(do_not_specialize=LENGTHS)
def bn_relu_maxpool_forward(
    x_ptr: tl.tensor,  # [N, H, W, C] or [N, C, H, W]
    pooled_ptr: tl.tensor,  # [N, PH, PW, C] or [N, C, PH, PW], as are the taps
    taps_ptr: tl.tensor,  # uint8
    scale_ptr: tl.tensor,  # [C]
    shift_ptr: tl.tensor,  # [C]
    mean_ptr: tl.tensor,  # [C]
    partials_ptr: tl.tensor,  # float32 [chunks, 2, C]
    offsets_ptr: tl.tensor,  # int32 [G + 1]
    G: tl.tensor,
    CHUNK_ROWS: tl.tensor,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    IMAGE_ROWS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GP: tl.constexpr,
) -> None:
    PH: tl.constexpr = (H + 1) // 2
    PW: tl.constexpr = (W + 1) // 2
    STEP: tl.constexpr = BLOCK_R if CHANNELS_LAST else 1
    pixel, channel = _axes(CHANNELS_LAST, BLOCK_R, BLOCK_C)
    scale = load_vector(scale_ptr, channel, C)
    shift = load_vector(shift_ptr, channel, C)
    mean = load_vector(mean_ptr, channel, C)
    chunk = tl.program_id(0)
    _, row, end = chunk_of(offsets_ptr, chunk, G, IMAGE_ROWS, CHUNK_ROWS, GP)
    first = row // IMAGE_ROWS  # the chunk's first image; offsets from there fit into int32
    x_ptr += first * (C * H * W)
    pooled_ptr += first * (C * PH * PW)
    taps_ptr += first * (C * PH * PW)
    row, end = (row - first * IMAGE_ROWS).to(tl.int32), (end - first * IMAGE_ROWS).to(tl.int32)

    ROWS: tl.constexpr = BLOCK_R if CHANNELS_LAST else BLOCK_C
    COLUMNS: tl.constexpr = BLOCK_C if CHANNELS_LAST else BLOCK_R
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    squares = tl.zeros((ROWS, COLUMNS), tl.float32)
    while row < end:
        image, pooled, valid = _pooled_pixels(row, end, pixel, PH * PW, IMAGE_ROWS, CHANNELS_LAST, BLOCK_R)
        valid = valid & (channel < C)
        best = tl.zeros((ROWS, COLUMNS), tl.float32)  # ReLU: z is at least 0, so padding never wins
        tap = tl.full((ROWS, COLUMNS), NO_TAP, tl.int32)
        for t in tl.static_range(9):
            y, x = pooled // PW * 2 + (t // 3 - 1), pooled % PW * 2 + (t % 3 - 1)
            inside = valid & (y >= 0) & (y < H) & (x >= 0) & (x < W)
            offset = _offset(image, y * W + x, channel, C, H * W, CHANNELS_LAST)
            d = tl.where(inside, tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32) - mean, 0.0)
            if t // 3 > 0 and t % 3 > 0:  # an owned pixel
                total += d
                squares += d * d
            z = tl.where(inside, d * scale + shift, 0.0)
            tap = tl.where(z > best, t, tap)
            best = tl.maximum(z, best)
        offset = _offset(image, pooled, channel, C, PH * PW, CHANNELS_LAST)
        tl.store(pooled_ptr + offset, best.to(pooled_ptr.dtype.element_ty), mask=valid)
        tl.store(taps_ptr + offset, tap.to(tl.uint8), mask=valid)
        row += STEP
    row_ptr = partials_ptr + chunk.to(tl.int64) * (2 * C) + channel
    axis: tl.constexpr = 0 if CHANNELS_LAST else 1
    tl.store(row_ptr, tl.sum(total, axis, keep_dims=True), mask=channel < C)
    tl.store(row_ptr + C, tl.sum(squares, axis, keep_dims=True), mask=channel < C)


@triton.jit(do_not_specialize=LENGTHS)
def bn_relu_maxpool_backward(
    grad_pooled_ptr: tl.tensor,
    taps_ptr: tl.tensor,  # uint8
    x_ptr: tl.tensor,
    grad_x_ptr: tl.tensor,
    scale_ptr: tl.tensor,  # [C]
    mean_ptr: tl.tensor,  # [C]
    grad_sums_ptr: tl.tensor,  # [G, 2, C]
    offsets_ptr: tl.tensor,  # int32 [G + 1]
    G: tl.tensor,
    CHUNK_ROWS: tl.tensor,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    IMAGE_ROWS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GP: tl.constexpr,
) -> None:
    PH: tl.constexpr = (H + 1) // 2
    PW: tl.constexpr = (W + 1) // 2
    STEP: tl.constexpr = BLOCK_R if CHANNELS_LAST else 1
    pixel, channel = _axes(CHANNELS_LAST, BLOCK_R, BLOCK_C)
    scale = load_vector(scale_ptr, channel, C)
    mean = load_vector(mean_ptr, channel, C)
    segment, row, end = chunk_of(offsets_ptr, tl.program_id(0), G, IMAGE_ROWS, CHUNK_ROWS, GP)
    linear, quadratic = load_grad_sums(grad_sums_ptr, segment, channel, C, G)
    first = row // IMAGE_ROWS
    grad_pooled_ptr += first * (C * PH * PW)
    taps_ptr += first * (C * PH * PW)
    x_ptr += first * (C * H * W)
    grad_x_ptr += first * (C * H * W)
    row, end = (row - first * IMAGE_ROWS).to(tl.int32), (end - first * IMAGE_ROWS).to(tl.int32)

    while row < end:
        image, pooled, valid = _pooled_pixels(row, end, pixel, PH * PW, IMAGE_ROWS, CHANNELS_LAST, BLOCK_R)
        valid = valid & (channel < C)
        grads = ()  # of the windows that contain an owned pixel: this one, right, below, below right
        taps = ()
        for w in tl.static_range(4):
            y, x = pooled // PW + w // 2, pooled % PW + w % 2
            inside = valid & (y < PH) & (x < PW)
            offset = _offset(image, y * PW + x, channel, C, PH * PW, CHANNELS_LAST)
            grads = grads + (tl.load(grad_pooled_ptr + offset, mask=inside, other=0.0).to(tl.float32),)
            taps = taps + (tl.load(taps_ptr + offset, mask=inside, other=NO_TAP).to(tl.int32),)
        xs = ()
        for p in tl.static_range(4):
            y, x = pooled // PW * 2 + p // 2, pooled % PW * 2 + p % 2
            inside = valid & (y < H) & (x < W)
            offset = _offset(image, y * W + x, channel, C, H * W, CHANNELS_LAST)
            xs = xs + (tl.load(x_ptr + offset, mask=inside, other=0.0),)
        for p in tl.static_range(4):
            grad_z = tl.zeros_like(grads[0])
            for w in tl.static_range(4):
                if w // 2 <= p // 2 and w % 2 <= p % 2:
                    tap = (p // 2 + 1 - w // 2 * 2) * 3 + (p % 2 + 1 - w % 2 * 2)  # of pixel p in window w
                    grad_z += tl.where(taps[w] == tap, grads[w], 0.0)
            grad_x = grad_z * scale + (linear + quadratic * (xs[p].to(tl.float32) - mean))
            y, x = pooled // PW * 2 + p // 2, pooled % PW * 2 + p % 2
            inside = valid & (y < H) & (x < W)
            offset = _offset(image, y * W + x, channel, C, H * W, CHANNELS_LAST)
            tl.store(grad_x_ptr + offset, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside)
        row += STEP


def launch_forward(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, offsets: Tensor, pooled: Tensor, taps: Tensor
) -> Tensor:
    """Writes `pooled` and `taps` and returns the sums. x and both are dense, in one layout."""
    tiles, constants = _launch_arguments(x, offsets)
    partials = x.new_empty((tiles.grid[0], 2, x.shape[1]), dtype=torch.float32)
    offsets = offsets.contiguous()
    with device_of(x):
        bn_relu_maxpool_forward[tiles.grid](
            x,
            pooled,
            taps,
            scale.contiguous(),
            shift.contiguous(),
            mean.contiguous(),
            partials,
            offsets,
            offsets.shape[0] - 1,
            tiles.chunk_rows,
            **constants,
        )
        return sum_chunks(partials, offsets, tiles.image_rows, tiles.chunk_rows)


def launch_backward(
    grad_pooled: Tensor,
    grad_sums: Tensor,
    x: Tensor,
    taps: Tensor,
    scale: Tensor,
    mean: Tensor,
    offsets: Tensor,
    grad_x: Tensor,
) -> None:
    """Writes grad_x. x, grad_x and taps are dense, in one layout."""
    tiles, constants = _launch_arguments(x, offsets)
    with device_of(x):
        bn_relu_maxpool_backward[tiles.grid](
            like(grad_pooled, x),
            taps,
            x,
            grad_x,
            scale.contiguous(),
            mean.contiguous(),
            grad_sums.contiguous(),
            offsets.contiguous(),
            offsets.shape[0] - 1,
            tiles.chunk_rows,
            **constants,
        )


def _launch_arguments(x: Tensor, offsets: Tensor) -> tuple[Tiles, dict[str, Any]]:
    """Tiles over the pooled pixels, and the kernels' constants."""
    _, channels, height, width = x.shape
    tiles = Tiles.of(x, -(-height // 2) * -(-width // 2), offsets.shape[0] - 1)
    return tiles, {
        "C": channels,
        "H": height,
        "W": width,
        "IMAGE_ROWS": tiles.image_rows,
        "CHANNELS_LAST": channels_last(x),
        "BLOCK_R": tiles.block_rows,
        "BLOCK_C": tiles.block_channels,
        "GP": tiles.segments,
        "num_warps": tiles.warps,
    }
