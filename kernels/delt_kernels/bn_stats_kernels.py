# mypy: disable-error-code="untyped-decorator"
# ruff: noqa: N803, N806 (a kernel's sizes and constants are written in capitals)
"""Kernels of `bn_stats` and their launches: one pass over the activations forward, one backward, for both layouts.

A program processes one chunk of one segment for one block of channels, and writes the chunk's sums to a row of
`partials`, which `sum_chunks` reduces.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from delt_kernels.layout import channels_last, device_of, like, load_grad_sums, load_tiles, load_vector, tile
from delt_kernels.relu_bitmask import bits_tile, load_bits, pack, unpack
from delt_kernels.segments import Tiles, chunk_of, sum_chunks

# Specialising on sizes would compile a kernel per layer; ALIGN carries the one property that decides the code.
SIZES = ["C", "PIXELS", "IMAGE_ROWS", "CHUNK_ROWS", "G"]


@triton.jit(do_not_specialize=SIZES)
def bn_stats_forward(
    x_ptr: tl.tensor,  # [N, H, W, C] or [N, C, H, W], as are residual and y
    residual_ptr: tl.tensor,
    y_ptr: tl.tensor,
    bits_ptr: tl.tensor,  # uint8 [N, H, W, C / 8]
    scale_ptr: tl.tensor,  # [C]
    shift_ptr: tl.tensor,  # [C]
    mean_ptr: tl.tensor,  # [C]
    partials_ptr: tl.tensor,  # float32 [chunks, 2, C]
    offsets_ptr: tl.tensor,  # int32 [G + 1]
    C: tl.tensor,
    PIXELS: tl.tensor,
    IMAGE_ROWS: tl.tensor,
    CHUNK_ROWS: tl.tensor,
    G: tl.tensor,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GP: tl.constexpr,
    PREFETCH: tl.constexpr,
) -> None:
    if CHANNELS_LAST:  # tells the compiler that C is a multiple of ALIGN
        C = C // ALIGN * ALIGN
    else:
        PIXELS = PIXELS // ALIGN * ALIGN
    STEP: tl.constexpr = BLOCK_R if CHANNELS_LAST else 1
    chunk = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    scale = load_vector(scale_ptr, channel, C)[None, :]
    shift = load_vector(shift_ptr, channel, C)[None, :]
    mean = load_vector(mean_ptr, channel, C)[None, :]
    _, row, end = chunk_of(offsets_ptr, chunk, G, IMAGE_ROWS, CHUNK_ROWS, GP)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    while row < end:
        xs = load_tiles(x_ptr, row, end, channel, C, PIXELS, IMAGE_ROWS, CHANNELS_LAST, BLOCK_R, PREFETCH)
        if RESIDUAL:
            residuals = load_tiles(
                residual_ptr, row, end, channel, C, PIXELS, IMAGE_ROWS, CHANNELS_LAST, BLOCK_R, PREFETCH
            )
        for j in tl.static_range(PREFETCH):
            start, offset, mask = tile(row + j * STEP, end, channel, C, PIXELS, IMAGE_ROWS, CHANNELS_LAST, BLOCK_R)
            d = tl.where(mask, xs[j].to(tl.float32) - mean, 0.0)
            total += d
            squares += d * d
            z = d * scale + shift
            if RESIDUAL:
                z += residuals[j].to(tl.float32)
            if BITS:
                byte_start, byte_offset, byte_mask = bits_tile(row + j * STEP, end, C, BLOCK_R, BLOCK_C)
                tl.store(bits_ptr + byte_start + byte_offset, pack(z > 0.0, BLOCK_R, BLOCK_C), mask=byte_mask)
            if RELU:
                z = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
            tl.store(y_ptr + start + offset, z.to(y_ptr.dtype.element_ty), mask=mask)
        row += PREFETCH * STEP
    row_ptr = partials_ptr + chunk.to(tl.int64) * (2 * C) + channel
    tl.store(row_ptr, tl.sum(total, 0), mask=channel < C)
    tl.store(row_ptr + C, tl.sum(squares, 0), mask=channel < C)


@triton.jit(do_not_specialize=SIZES)
def bn_stats_backward(
    grad_y_ptr: tl.tensor,  # in the layout of x, as are all image tensors
    grad_y2_ptr: tl.tensor,
    x_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    bits_ptr: tl.tensor,  # uint8 [N, H, W, C / 8]
    grad_x_ptr: tl.tensor,
    grad_residual_ptr: tl.tensor,
    scale_ptr: tl.tensor,  # [C]
    shift_ptr: tl.tensor,  # [C]
    mean_ptr: tl.tensor,  # [C]
    grad_sums_ptr: tl.tensor,  # [G, 2, C]
    offsets_ptr: tl.tensor,  # int32 [G + 1]
    C: tl.tensor,
    PIXELS: tl.tensor,
    IMAGE_ROWS: tl.tensor,
    CHUNK_ROWS: tl.tensor,
    G: tl.tensor,
    GRAD_Y2: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    BITS: tl.constexpr,
    GRAD_RESIDUAL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GP: tl.constexpr,
    PREFETCH: tl.constexpr,
) -> None:
    if CHANNELS_LAST:
        C = C // ALIGN * ALIGN
    else:
        PIXELS = PIXELS // ALIGN * ALIGN
    STEP: tl.constexpr = BLOCK_R if CHANNELS_LAST else 1
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    scale = load_vector(scale_ptr, channel, C)[None, :]
    shift = load_vector(shift_ptr, channel, C)[None, :]
    mean = load_vector(mean_ptr, channel, C)[None, :]
    segment, row, end = chunk_of(offsets_ptr, tl.program_id(0), G, IMAGE_ROWS, CHUNK_ROWS, GP)
    linear, quadratic = load_grad_sums(grad_sums_ptr, segment, channel, C, G)
    linear, quadratic = linear[None, :], quadratic[None, :]
    while row < end:
        grads = load_tiles(grad_y_ptr, row, end, channel, C, PIXELS, IMAGE_ROWS, CHANNELS_LAST, BLOCK_R, PREFETCH)
        xs = load_tiles(x_ptr, row, end, channel, C, PIXELS, IMAGE_ROWS, CHANNELS_LAST, BLOCK_R, PREFETCH)
        if GRAD_Y2:
            grads2 = load_tiles(grad_y2_ptr, row, end, channel, C, PIXELS, IMAGE_ROWS, CHANNELS_LAST, BLOCK_R, PREFETCH)
        if RESIDUAL:
            residuals = load_tiles(
                residual_ptr, row, end, channel, C, PIXELS, IMAGE_ROWS, CHANNELS_LAST, BLOCK_R, PREFETCH
            )
        if BITS:
            bits = load_bits(bits_ptr, row, end, C, BLOCK_R, BLOCK_C, PREFETCH)
        for j in tl.static_range(PREFETCH):
            start, offset, mask = tile(row + j * STEP, end, channel, C, PIXELS, IMAGE_ROWS, CHANNELS_LAST, BLOCK_R)
            grad_z = grads[j].to(tl.float32)
            if GRAD_Y2:
                grad_z += grads2[j].to(tl.float32)
            d = xs[j].to(tl.float32) - mean
            if BITS:
                grad_z = tl.where(unpack(bits[j], BLOCK_R, BLOCK_C), grad_z, 0.0)
            elif RELU:
                z = d * scale + shift
                if RESIDUAL:
                    z += residuals[j].to(tl.float32)
                grad_z = tl.where(z > 0.0, grad_z, 0.0)
            grad_x = grad_z * scale + (linear + quadratic * d)
            tl.store(grad_x_ptr + start + offset, grad_x.to(grad_x_ptr.dtype.element_ty), mask=mask)
            if GRAD_RESIDUAL:
                grad_residual = grad_z.to(grad_residual_ptr.dtype.element_ty)
                tl.store(grad_residual_ptr + start + offset, grad_residual, mask=mask)
        row += PREFETCH * STEP


def launch_forward(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    offsets: Tensor,
    residual: Tensor | None,
    relu: bool,
    bits: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(y, sums). x is dense; `bits` is an output, None if it is not needed."""
    tiles, sizes, constants = _launch_arguments(x, offsets)
    y = torch.empty_like(x)
    partials = x.new_empty((tiles.grid[0], 2, x.shape[1]), dtype=torch.float32)
    scale, shift, mean, offsets = _contiguous(scale, shift, mean, offsets)
    with device_of(x):
        bn_stats_forward[tiles.grid](
            x,
            x if residual is None else like(residual, x),
            y,
            x if bits is None else bits,
            scale,
            shift,
            mean,
            partials,
            offsets,
            **sizes,
            RESIDUAL=residual is not None,
            RELU=relu,
            BITS=bits is not None,
            **constants,
        )
        return y, sum_chunks(partials, offsets, tiles.image_rows, tiles.chunk_rows)


def launch_backward(
    grad_y: Tensor,
    grad_y2: Tensor | None,
    grad_sums: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    offsets: Tensor,
    residual: Tensor | None,
    bits: Tensor | None,
    relu: bool,
    grad_x: Tensor,
    grad_residual: Tensor | None,
) -> None:
    """Writes grad_x and, if it is not None, grad_residual. x and both are dense, in one layout."""
    tiles, sizes, constants = _launch_arguments(x, offsets)
    with device_of(x):
        bn_stats_backward[tiles.grid](
            like(grad_y, x),
            x if grad_y2 is None else like(grad_y2, x),
            x,
            x if residual is None else like(residual, x),
            x if bits is None else bits,
            grad_x,
            x if grad_residual is None else grad_residual,
            *_contiguous(scale, shift, mean, grad_sums, offsets),
            **sizes,
            GRAD_Y2=grad_y2 is not None,
            RESIDUAL=residual is not None,
            RELU=relu,
            BITS=bits is not None,
            GRAD_RESIDUAL=grad_residual is not None,
            **constants,
        )


def _launch_arguments(x: Tensor, offsets: Tensor) -> tuple[Tiles, dict[str, int], dict[str, Any]]:
    """Tiles, sizes and constants that follow from the shape and layout of x."""
    _, channels, height, width = x.shape
    pixels, segments = height * width, offsets.shape[0] - 1
    tiles = Tiles.of(x, pixels, segments)
    sizes = {
        "C": channels,
        "PIXELS": pixels,
        "IMAGE_ROWS": tiles.image_rows,
        "CHUNK_ROWS": tiles.chunk_rows,
        "G": segments,
    }
    constants = {
        "CHANNELS_LAST": channels_last(x),
        "ALIGN": tiles.align,
        "BLOCK_R": tiles.block_rows,
        "BLOCK_C": tiles.block_channels,
        "GP": tiles.segments,
        "PREFETCH": tiles.prefetch,
        "num_warps": tiles.warps,
    }
    return tiles, sizes, constants


def _contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in tensors)
