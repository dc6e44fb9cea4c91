# mypy: disable-error-code="untyped-decorator"
# ruff: noqa: N803, N806 (a kernel's sizes and constants are written in capitals)
"""Kernels of `bn_stats` and their launches: one pass over the activations forward, one backward, for both layouts.

A program works through one chunk of one segment, for one block of channels, and writes the chunk's sums to a row of
`partials`, which `sum_chunks` reduces.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from delt_kernels.layout import channels_last, device_of, like, load_tiles, tile
from delt_kernels.relu_bitmask import load_signs, pack, sign_tile, unpack
from delt_kernels.segments import Tiles, chunk_of, sum_chunks


@triton.jit(do_not_specialize=["C", "PIXELS", "UNIT", "CHUNK", "G"])  # ALIGN tells what matters
def bn_stats_forward(
    x_ptr: tl.tensor,  # [N, H, W, C] or [N, C, H, W], as are residual and y
    residual_ptr: tl.tensor,
    y_ptr: tl.tensor,
    signs_ptr: tl.tensor,  # uint8 [N, H, W, C / 8]
    scale_ptr: tl.tensor,  # [C]
    shift_ptr: tl.tensor,  # [C]
    mean_ptr: tl.tensor,  # [C]
    partials_ptr: tl.tensor,  # float32 [chunks, 2, C]
    offsets_ptr: tl.tensor,  # int32 [G + 1]
    C: tl.tensor,
    PIXELS: tl.tensor,
    UNIT: tl.tensor,
    CHUNK: tl.tensor,
    G: tl.tensor,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    SIGNS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GP: tl.constexpr,
    AHEAD: tl.constexpr,
) -> None:
    if CHANNELS_LAST:  # the compiler learns that rows begin at multiples of ALIGN
        C = C // ALIGN * ALIGN
    else:
        PIXELS = PIXELS // ALIGN * ALIGN
    STEP: tl.constexpr = BLOCK_R if CHANNELS_LAST else 1
    chunk = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    scale = tl.load(scale_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
    shift = tl.load(shift_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
    mean = tl.load(mean_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
    _, position, end = chunk_of(offsets_ptr, chunk, G, UNIT, CHUNK, GP)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    while position < end:
        xs = load_tiles(x_ptr, position, end, channel, C, PIXELS, UNIT, CHANNELS_LAST, BLOCK_R, AHEAD)
        if RESIDUAL:
            residuals = load_tiles(residual_ptr, position, end, channel, C, PIXELS, UNIT, CHANNELS_LAST, BLOCK_R, AHEAD)
        for j in tl.static_range(AHEAD):
            start, offset, mask = tile(position + j * STEP, end, channel, C, PIXELS, UNIT, CHANNELS_LAST, BLOCK_R)
            d = tl.where(mask, xs[j].to(tl.float32) - mean, 0.0)
            total += d
            squares += d * d
            z = d * scale + shift
            if RESIDUAL:
                z += residuals[j].to(tl.float32)
            if SIGNS:
                bytes_start, bytes_offset, bytes_mask = sign_tile(position + j * STEP, end, C, BLOCK_R, BLOCK_C)
                packed = pack(z > 0.0, BLOCK_R, BLOCK_C)
                tl.store(signs_ptr + bytes_start + bytes_offset, packed, mask=bytes_mask)
            if RELU:
                z = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
            tl.store(y_ptr + start + offset, z.to(y_ptr.dtype.element_ty), mask=mask)
        position += AHEAD * STEP
    row_ptr = partials_ptr + chunk.to(tl.int64) * (2 * C) + channel
    tl.store(row_ptr, tl.sum(total, 0), mask=channel < C)
    tl.store(row_ptr + C, tl.sum(squares, 0), mask=channel < C)


@triton.jit(do_not_specialize=["C", "PIXELS", "UNIT", "CHUNK", "G"])  # ALIGN tells what matters
def bn_stats_backward(
    gradient_ptr: tl.tensor,  # with respect to y; all in the layout of x
    again_ptr: tl.tensor,  # with respect to y handed out a second time
    x_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    signs_ptr: tl.tensor,  # uint8 [N, H, W, C / 8]
    gradient_x_ptr: tl.tensor,
    gradient_residual_ptr: tl.tensor,
    scale_ptr: tl.tensor,  # [C]
    shift_ptr: tl.tensor,  # [C]
    mean_ptr: tl.tensor,  # [C]
    gradient_sums_ptr: tl.tensor,  # [G, 2, C]
    offsets_ptr: tl.tensor,  # int32 [G + 1]
    C: tl.tensor,
    PIXELS: tl.tensor,
    UNIT: tl.tensor,
    CHUNK: tl.tensor,
    G: tl.tensor,
    AGAIN: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    SIGNS: tl.constexpr,
    GRADIENT_RESIDUAL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GP: tl.constexpr,
    AHEAD: tl.constexpr,
) -> None:
    if CHANNELS_LAST:
        C = C // ALIGN * ALIGN
    else:
        PIXELS = PIXELS // ALIGN * ALIGN
    STEP: tl.constexpr = BLOCK_R if CHANNELS_LAST else 1
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    scale = tl.load(scale_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
    shift = tl.load(shift_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
    mean = tl.load(mean_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
    segment, position, end = chunk_of(offsets_ptr, tl.program_id(0), G, UNIT, CHUNK, GP)
    row_ptr = gradient_sums_ptr + segment.to(tl.int64) * (2 * C) + channel
    used = (channel < C) & (segment < G)
    linear = tl.load(row_ptr, mask=used, other=0.0).to(tl.float32)[None, :]
    quadratic = 2.0 * tl.load(row_ptr + C, mask=used, other=0.0).to(tl.float32)[None, :]
    while position < end:
        gradients = load_tiles(gradient_ptr, position, end, channel, C, PIXELS, UNIT, CHANNELS_LAST, BLOCK_R, AHEAD)
        xs = load_tiles(x_ptr, position, end, channel, C, PIXELS, UNIT, CHANNELS_LAST, BLOCK_R, AHEAD)
        if AGAIN:
            agains = load_tiles(again_ptr, position, end, channel, C, PIXELS, UNIT, CHANNELS_LAST, BLOCK_R, AHEAD)
        if RESIDUAL:
            residuals = load_tiles(residual_ptr, position, end, channel, C, PIXELS, UNIT, CHANNELS_LAST, BLOCK_R, AHEAD)
        if SIGNS:
            signs = load_signs(signs_ptr, position, end, C, BLOCK_R, BLOCK_C, AHEAD)
        for j in tl.static_range(AHEAD):
            start, offset, mask = tile(position + j * STEP, end, channel, C, PIXELS, UNIT, CHANNELS_LAST, BLOCK_R)
            gradient = gradients[j].to(tl.float32)
            if AGAIN:
                gradient += agains[j].to(tl.float32)
            d = xs[j].to(tl.float32) - mean
            if SIGNS:
                gradient = tl.where(unpack(signs[j], BLOCK_R, BLOCK_C), gradient, 0.0)
            elif RELU:
                z = d * scale + shift
                if RESIDUAL:
                    z += residuals[j].to(tl.float32)
                gradient = tl.where(z > 0.0, gradient, 0.0)
            gradient_x = gradient * scale + (linear + quadratic * d)
            tl.store(gradient_x_ptr + start + offset, gradient_x.to(gradient_x_ptr.dtype.element_ty), mask=mask)
            if GRADIENT_RESIDUAL:
                stored = gradient.to(gradient_residual_ptr.dtype.element_ty)
                tl.store(gradient_residual_ptr + start + offset, stored, mask=mask)
        position += AHEAD * STEP


def launch_forward(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    offsets: Tensor,
    residual: Tensor | None,
    relu: bool,
    signs: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(y, sums); x is dense, `signs` is written."""
    tiles, sizes, constants = _geometry(x, offsets)
    y = torch.empty_like(x)
    partials = x.new_empty((tiles.grid[0], 2, x.shape[1]), dtype=torch.float32)
    with device_of(x):
        bn_stats_forward[tiles.grid](
            x,
            x if residual is None else like(residual, x),
            y,
            x if signs is None else signs,
            *_contiguous(scale, shift, mean),
            partials,
            *_contiguous(offsets),
            **sizes,
            RESIDUAL=residual is not None,
            RELU=relu,
            SIGNS=signs is not None,
            **constants,
        )
        return y, sum_chunks(partials, offsets, tiles.unit, tiles.chunk)


def launch_backward(
    gradient: Tensor,
    again: Tensor | None,
    gradient_sums: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    offsets: Tensor,
    residual: Tensor | None,
    signs: Tensor | None,
    relu: bool,
    gradient_x: Tensor,
    gradient_residual: Tensor | None,
) -> None:
    """Writes both gradients; x and they are dense, in one layout."""
    tiles, sizes, constants = _geometry(x, offsets)
    with device_of(x):
        bn_stats_backward[tiles.grid](
            like(gradient, x),
            x if again is None else like(again, x),
            x,
            x if residual is None else like(residual, x),
            x if signs is None else signs,
            gradient_x,
            x if gradient_residual is None else gradient_residual,
            *_contiguous(scale, shift, mean, gradient_sums, offsets),
            **sizes,
            AGAIN=again is not None,
            RESIDUAL=residual is not None,
            RELU=relu,
            SIGNS=signs is not None,
            GRADIENT_RESIDUAL=gradient_residual is not None,
            **constants,
        )


def _geometry(x: Tensor, offsets: Tensor) -> tuple[Tiles, dict[str, int], dict[str, Any]]:
    """Tiles, and the kernels' arguments that follow from the shape and layout of x."""
    images, channels, height, width = x.shape
    innermost = channels_last(x)
    choose = Tiles.channels_last if innermost else Tiles.planes
    segments = offsets.shape[0] - 1
    tiles = choose(images, channels, height * width, segments)
    sizes = {"C": channels, "PIXELS": height * width, "UNIT": tiles.unit, "CHUNK": tiles.chunk, "G": segments}
    constants = {
        "CHANNELS_LAST": innermost,
        "ALIGN": tiles.align,
        "BLOCK_R": tiles.block_rows,
        "BLOCK_C": tiles.block_channels,
        "GP": tiles.segments,
        "AHEAD": tiles.ahead,
        "num_warps": tiles.warps,
    }
    return tiles, sizes, constants


def _contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in tensors)
