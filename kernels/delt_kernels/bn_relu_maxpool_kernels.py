# mypy: disable-error-code="assignment,misc,unreachable,untyped-decorator"
# ruff: noqa: N803, N806, RUF005 (a kernel's sizes and constants are written in capitals; it cannot unpack tuples)
"""Kernels of `stem_stats` and their launches: one pass over the activations forward, one backward, for both layouts.

A program works through one chunk of one segment's pooled pixels, for one block of channels. Pooled pixel (y, x) owns
the input pixels (2y, 2x) .. (2y + 1, 2x + 1), as far as there are such: each input pixel has one owner, which counts it
in the sums and writes its gradient.

Where channels lie innermost, a tile is pixels x channels, may span images, and positions count pooled pixels. Else it
is channels x pixels, lies in one image, and positions count tiles, UNIT an image.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from delt_kernels.layout import channels_last, device_of, like
from delt_kernels.segments import Tiles, chunk_of, sum_chunks

NO_TAP = tl.constexpr(9)  # of a window without a positive pixel; the others are numbered 0 .. 8, row by row


@triton.jit
def _axes(CHANNELS_LAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Numbers of a tile's pixels and of its channels, each along its own axis of the tile."""
    pixel, channel = tl.arange(0, BLOCK_R), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    return (pixel[:, None], channel[None, :]) if CHANNELS_LAST else (pixel[None, :], channel[:, None])


@triton.jit
def _pooled(
    position: tl.tensor,
    end: tl.tensor,
    pixel: tl.tensor,
    POOLED: tl.constexpr,
    UNIT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Image and place in it of each pooled pixel of a tile, and which of them exist."""
    unit = position + (pixel if CHANNELS_LAST else pixel * 0)
    image = unit // UNIT
    place = unit - image * UNIT
    if not CHANNELS_LAST:
        place = place * BLOCK_R + pixel
    return image, place, (place < POOLED) & (unit < end)


@triton.jit
def _element(
    image: tl.tensor,
    pixel: tl.tensor,
    channel: tl.tensor,
    C: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
) -> tl.tensor:
    """Where an element lies in a tensor of PIXELS pixels an image."""
    return (image * PIXELS + pixel) * C + channel if CHANNELS_LAST else (image * C + channel) * PIXELS + pixel


@triton.jit
def stem_forward(
    x_ptr: tl.tensor,  # [N, H, W, C] or [N, C, H, W]
    pooled_ptr: tl.tensor,  # [N, PH, PW, C] or [N, C, PH, PW], as are the taps
    taps_ptr: tl.tensor,  # uint8
    scale_ptr: tl.tensor,  # [C]
    shift_ptr: tl.tensor,  # [C]
    mean_ptr: tl.tensor,  # [C]
    partials_ptr: tl.tensor,  # float32 [chunks, 2, C]
    offsets_ptr: tl.tensor,  # int32 [G + 1]
    G: tl.tensor,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    UNIT: tl.constexpr,
    CHUNK: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GP: tl.constexpr,
) -> None:
    PH: tl.constexpr = (H + 1) // 2
    PW: tl.constexpr = (W + 1) // 2
    STEP: tl.constexpr = BLOCK_R if CHANNELS_LAST else 1
    pixel, channel = _axes(CHANNELS_LAST, BLOCK_R, BLOCK_C)
    scale = tl.load(scale_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    mean = tl.load(mean_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    chunk = tl.program_id(0)
    _, position, end = chunk_of(offsets_ptr, chunk, G, UNIT, CHUNK, GP)
    first = position // UNIT  # image; the offsets within a chunk are small numbers, those before it need not be
    x_ptr += first * (C * H * W)
    pooled_ptr += first * (C * PH * PW)
    taps_ptr += first * (C * PH * PW)
    position, end = (position - first * UNIT).to(tl.int32), (end - first * UNIT).to(tl.int32)

    ROWS: tl.constexpr = BLOCK_R if CHANNELS_LAST else BLOCK_C
    COLUMNS: tl.constexpr = BLOCK_C if CHANNELS_LAST else BLOCK_R
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    squares = tl.zeros((ROWS, COLUMNS), tl.float32)
    while position < end:
        image, place, exists = _pooled(position, end, pixel, PH * PW, UNIT, CHANNELS_LAST, BLOCK_R)
        exists = exists & (channel < C)
        best = tl.zeros((ROWS, COLUMNS), tl.float32)  # after the ReLU, so the padding never counts
        tap = tl.full((ROWS, COLUMNS), NO_TAP, tl.int32)
        for t in tl.static_range(9):
            y, x = place // PW * 2 + (t // 3 - 1), place % PW * 2 + (t % 3 - 1)
            inside = exists & (y >= 0) & (y < H) & (x >= 0) & (x < W)
            element = _element(image, y * W + x, channel, C, H * W, CHANNELS_LAST)
            d = tl.where(inside, tl.load(x_ptr + element, mask=inside, other=0.0).to(tl.float32) - mean, 0.0)
            if t // 3 > 0 and t % 3 > 0:  # owned
                total += d
                squares += d * d
            z = tl.where(inside, d * scale + shift, 0.0)
            tap = tl.where(z > best, t, tap)
            best = tl.maximum(z, best)
        element = _element(image, place, channel, C, PH * PW, CHANNELS_LAST)
        tl.store(pooled_ptr + element, best.to(pooled_ptr.dtype.element_ty), mask=exists)
        tl.store(taps_ptr + element, tap.to(tl.uint8), mask=exists)
        position += STEP
    row_ptr = partials_ptr + chunk.to(tl.int64) * (2 * C) + channel
    axis: tl.constexpr = 0 if CHANNELS_LAST else 1
    tl.store(row_ptr, tl.sum(total, axis, keep_dims=True), mask=channel < C)
    tl.store(row_ptr + C, tl.sum(squares, axis, keep_dims=True), mask=channel < C)


@triton.jit
def stem_backward(
    gradient_ptr: tl.tensor,  # with respect to the pooled pixels
    taps_ptr: tl.tensor,  # uint8
    x_ptr: tl.tensor,
    gradient_x_ptr: tl.tensor,  # as x
    scale_ptr: tl.tensor,  # [C]
    mean_ptr: tl.tensor,  # [C]
    gradient_sums_ptr: tl.tensor,  # [G, 2, C]
    offsets_ptr: tl.tensor,  # int32 [G + 1]
    G: tl.tensor,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    UNIT: tl.constexpr,
    CHUNK: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GP: tl.constexpr,
) -> None:
    PH: tl.constexpr = (H + 1) // 2
    PW: tl.constexpr = (W + 1) // 2
    STEP: tl.constexpr = BLOCK_R if CHANNELS_LAST else 1
    pixel, channel = _axes(CHANNELS_LAST, BLOCK_R, BLOCK_C)
    scale = tl.load(scale_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    mean = tl.load(mean_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    segment, position, end = chunk_of(offsets_ptr, tl.program_id(0), G, UNIT, CHUNK, GP)
    row_ptr = gradient_sums_ptr + segment.to(tl.int64) * (2 * C) + channel
    used = (channel < C) & (segment < G)
    linear = tl.load(row_ptr, mask=used, other=0.0).to(tl.float32)
    quadratic = 2.0 * tl.load(row_ptr + C, mask=used, other=0.0).to(tl.float32)
    first = position // UNIT
    gradient_ptr += first * (C * PH * PW)
    taps_ptr += first * (C * PH * PW)
    x_ptr += first * (C * H * W)
    gradient_x_ptr += first * (C * H * W)
    position, end = (position - first * UNIT).to(tl.int32), (end - first * UNIT).to(tl.int32)

    while position < end:
        image, place, exists = _pooled(position, end, pixel, PH * PW, UNIT, CHANNELS_LAST, BLOCK_R)
        exists = exists & (channel < C)
        gradients = ()  # of the windows that reach an owned pixel: this one, right, below, below right
        taps = ()
        for w in tl.static_range(4):
            y, x = place // PW + w // 2, place % PW + w % 2
            inside = exists & (y < PH) & (x < PW)
            element = _element(image, y * PW + x, channel, C, PH * PW, CHANNELS_LAST)
            gradients = gradients + (tl.load(gradient_ptr + element, mask=inside, other=0.0).to(tl.float32),)
            taps = taps + (tl.load(taps_ptr + element, mask=inside, other=NO_TAP).to(tl.int32),)
        xs = ()
        for p in tl.static_range(4):
            y, x = place // PW * 2 + p // 2, place % PW * 2 + p % 2
            inside = exists & (y < H) & (x < W)
            element = _element(image, y * W + x, channel, C, H * W, CHANNELS_LAST)
            xs = xs + (tl.load(x_ptr + element, mask=inside, other=0.0),)
        for p in tl.static_range(4):
            gz = tl.zeros_like(gradients[0])
            for w in tl.static_range(4):
                if w // 2 <= p // 2 and w % 2 <= p % 2:  # the owned pixel's place in the window
                    tap = (p // 2 + 1 - w // 2 * 2) * 3 + (p % 2 + 1 - w % 2 * 2)
                    gz += tl.where(taps[w] == tap, gradients[w], 0.0)
            gradient_x = gz * scale + (linear + quadratic * (xs[p].to(tl.float32) - mean))
            y, x = place // PW * 2 + p // 2, place % PW * 2 + p % 2
            inside = exists & (y < H) & (x < W)
            element = _element(image, y * W + x, channel, C, H * W, CHANNELS_LAST)
            tl.store(gradient_x_ptr + element, gradient_x.to(gradient_x_ptr.dtype.element_ty), mask=inside)
        position += STEP


def launch_forward(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, offsets: Tensor, pooled: Tensor, taps: Tensor
) -> Tensor:
    """The sums; `pooled` and `taps` are written. All three tensors of pixels are dense, in one layout."""
    tiles, constants = _geometry(x, offsets)
    partials = x.new_empty((tiles.grid[0], 2, x.shape[1]), dtype=torch.float32)
    offsets = offsets.contiguous()
    with device_of(x):
        stem_forward[tiles.grid](
            x,
            pooled,
            taps,
            scale.contiguous(),
            shift.contiguous(),
            mean.contiguous(),
            partials,
            offsets,
            offsets.shape[0] - 1,
            **constants,
        )
        return sum_chunks(partials, offsets, tiles.unit, tiles.chunk)


def launch_backward(
    gradient: Tensor,
    gradient_sums: Tensor,
    x: Tensor,
    taps: Tensor,
    scale: Tensor,
    mean: Tensor,
    offsets: Tensor,
    gradient_x: Tensor,
) -> None:
    """`gradient_x` is written; x, it and `taps` are dense, in one layout."""
    tiles, constants = _geometry(x, offsets)
    with device_of(x):
        stem_backward[tiles.grid](
            like(gradient, x),
            taps,
            x,
            gradient_x,
            scale.contiguous(),
            mean.contiguous(),
            gradient_sums.contiguous(),
            offsets.contiguous(),
            offsets.shape[0] - 1,
            **constants,
        )


def _geometry(x: Tensor, offsets: Tensor) -> tuple[Tiles, dict[str, Any]]:
    """Tiles over the pooled pixels, and the kernels' constants."""
    images, channels, height, width = x.shape
    innermost = channels_last(x)
    choose = Tiles.channels_last if innermost else Tiles.planes
    tiles = choose(images, channels, -(-height // 2) * -(-width // 2), offsets.shape[0] - 1)
    return tiles, {
        "C": channels,
        "H": height,
        "W": width,
        "UNIT": tiles.unit,
        "CHUNK": tiles.chunk,
        "CHANNELS_LAST": innermost,
        "BLOCK_R": tiles.block_rows,
        "BLOCK_C": tiles.block_channels,
        "GP": tiles.segments,
        "num_warps": tiles.warps,
    }
