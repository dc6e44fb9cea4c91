# mypy: disable-error-code="untyped-decorator"
# ruff: noqa: N803 (sizes and constants of a kernel are written in capitals)
"""Segments of a batch: runs of consecutive images that share their statistics, and reductions over them.

Segment g holds images offsets[g] .. offsets[g + 1] - 1; `offsets` is int32 [G + 1] on the images' device, does not
fall, begins with 0 and ends with N. A segment may be empty. Nothing here reads offsets on the host.

Kernels reduce in two stages, without atomics: each program sums one chunk of one segment into a row of `partials`, and
`sum_chunks` adds the rows of each segment in their order. Chunks begin at their segment's first row, and their length
depends on nothing but the tensor's shape and G, so the sums of a segment are the same whatever travels beside it.
"""

from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# At most, where the tensor is large: whole waves on 132 multiprocessors, some on any other number. Not the device's own
# count, since sums shall not depend on the device.
PROGRAMS = 1056
TILE = 2048  # elements: one 16-byte load of half-precision numbers for each of the 256 threads of 8 warps
TILE_CHANNELS = 64
TILE_PIXELS = 512
WARPS = 8
TILES_AHEAD = (
    2  # tiles loaded before the first is used: a load does not move over a store, so unrolling alone is no use
)
SUM_CHUNKS, SUM_COLUMNS = 64, 32


def segment_of(offsets: Tensor, images: int) -> Tensor:
    """The segment of each of `images` images, int64 [N], on the device of `offsets`."""
    image = torch.arange(images, device=offsets.device, dtype=offsets.dtype)
    return (image[:, None] >= offsets[None, 1:]).sum(1)


def per_segment(rows: Tensor, offsets: Tensor) -> Tensor:
    """Sums of rows [N, ...] over the images of each segment: [G, ...] in the rows' type, 0 for an empty segment.

    The order of summation counts from the segment's first row, so a sum does not depend on the other segments.
    Differentiable with respect to `rows`.
    """
    sums: Tensor = _PerSegment.apply(rows, offsets)
    return sums


class _PerSegment(torch.autograd.Function):
    """A gather, whose own gradient would be a scatter with atomics: this one is a gather too."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(offsets)
        ctx.images = images = rows.shape[0]
        image = offsets[:-1, None] + torch.arange(images, device=offsets.device, dtype=offsets.dtype)  # [G, N]
        inside = (image < offsets[1:, None]).reshape(*image.shape, *[1] * (rows.dim() - 1))
        return torch.where(inside, rows[image.clamp(max=images - 1)], 0).sum(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (offsets,) = ctx.saved_tensors
        return gradient[segment_of(offsets, ctx.images)], None


@triton.jit
def chunk_of(
    offsets_ptr: tl.tensor,  # int32 [G + 1]
    chunk: tl.tensor,
    G: tl.tensor,
    UNIT: tl.tensor,
    CHUNK: tl.tensor,
    GP: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The chunk numbered `chunk`: its segment, first row and end, int64 rows; UNIT rows an image, CHUNK rows at most.

    Chunks are numbered segment by segment. GP is a power of two, at least G. A number past the last chunk gives segment
    GP and an end that is not behind the first row: nothing to do.
    """
    g = tl.arange(0, GP)
    first = tl.load(offsets_ptr + g, mask=g < G, other=0).to(tl.int64) * UNIT
    end = tl.load(offsets_ptr + g + 1, mask=g < G, other=0).to(tl.int64) * UNIT
    chunks = ((end - first + (CHUNK - 1)) // CHUNK).to(tl.int32)
    segment = tl.sum((tl.cumsum(chunks, 0) <= chunk).to(tl.int32), 0)
    before = tl.sum(tl.where(g < segment, chunks, 0), 0)
    here = g == segment
    row = tl.sum(tl.where(here, first, 0), 0) + (chunk - before).to(tl.int64) * CHUNK
    return segment, row, tl.minimum(row + CHUNK, tl.sum(tl.where(here, end, 0), 0))


@triton.jit
def finalize(
    partials_ptr: tl.tensor,  # [P, columns], one row a chunk
    sums_ptr: tl.tensor,  # [G, columns]
    offsets_ptr: tl.tensor,  # int32 [G + 1]
    columns: tl.tensor,
    G: tl.tensor,
    UNIT: tl.tensor,
    CHUNK: tl.tensor,
    GP: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Second stage: the sum of the partial sums of segment program_id(0), in the order of its chunks."""
    segment = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    g = tl.arange(0, GP)
    first = tl.load(offsets_ptr + g, mask=g < G, other=0).to(tl.int64) * UNIT
    end = tl.load(offsets_ptr + g + 1, mask=g < G, other=0).to(tl.int64) * UNIT
    chunks = ((end - first + (CHUNK - 1)) // CHUNK).to(tl.int32)
    chunk = tl.sum(tl.where(g < segment, chunks, 0), 0)
    last = chunk + tl.sum(tl.where(g == segment, chunks, 0), 0)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    while chunk < last:  # not range(chunk, last), whose bounds the interpreter of Triton 3.6 cannot take
        row = chunk + tl.arange(0, BLOCK_P)
        mask = (row < last)[:, None] & (column < columns)[None, :]
        total += tl.load(partials_ptr + row[:, None].to(tl.int64) * columns + column[None, :], mask=mask, other=0.0)
        chunk += BLOCK_P
    tl.store(sums_ptr + segment.to(tl.int64) * columns + column, tl.sum(total, 0), mask=column < columns)


def sum_chunks(partials: Tensor, offsets: Tensor, unit: int, chunk: int) -> Tensor:
    """Sums over the chunks of each segment: partials float32 [P, ...] -> [G, ...].

    Args:
        unit: rows an image, as given to `chunk_of`.
        chunk: rows a chunk, at most.
    """
    segments = offsets.shape[0] - 1
    sums = partials.new_empty((segments, *partials.shape[1:]))
    columns = partials.shape[1:].numel()
    finalize[(segments, triton.cdiv(columns, SUM_COLUMNS))](
        partials,
        sums,
        offsets,
        columns,
        segments,
        unit,
        chunk,
        GP=next_power_of_two(segments),
        BLOCK_P=SUM_CHUNKS,
        BLOCK_C=SUM_COLUMNS,
    )
    return sums


def next_power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`; 1 for 0."""
    return 1 << max(0, number - 1).bit_length()


@dataclass(frozen=True)
class Tiles:
    """How a kernel walks over a tensor: the one place where launch shapes are chosen.

    A program works through one chunk of one segment and one block of channels, `ahead` tiles of block_rows x
    block_channels at a time: all are loaded before the first is used, since no load moves over a store. Rows are
    counted in units: pixels where channels lie innermost, else tiles of pixels.

    Attributes:
        unit: units an image.
        align: a power of two that divides the innermost length.
        chunk: units a chunk, at most.
        grid: chunks (enough for any offsets), blocks of channels.
        segments: the number of segments, rounded up to a power of two.
    """

    unit: int
    align: int
    block_rows: int
    block_channels: int
    ahead: int
    chunk: int
    grid: tuple[int, int]
    segments: int
    warps: int = WARPS

    @classmethod
    def channels_last(cls, images: int, channels: int, pixels: int, segments: int) -> "Tiles":
        """For a tensor [images * pixels, channels]; a unit is a pixel."""
        block_channels = min(TILE_CHANNELS, next_power_of_two(channels))
        block_rows = TILE // block_channels
        return cls._of(images, channels, segments, pixels, gcd(channels, 16), block_rows, block_channels, block_rows)

    @classmethod
    def planes(cls, images: int, channels: int, pixels: int, segments: int) -> "Tiles":
        """For a tensor [images, channels, pixels]; a unit is a tile of `block_rows` pixels of one image."""
        block_rows = min(TILE_PIXELS, next_power_of_two(pixels))
        block_channels = min(TILE // block_rows, next_power_of_two(channels))
        unit = triton.cdiv(pixels, block_rows)
        return cls._of(images, channels, segments, unit, gcd(pixels, 16), block_rows, block_channels, 1)

    @classmethod
    def _of(
        cls,
        images: int,
        channels: int,
        segments: int,
        unit: int,
        align: int,
        block_rows: int,
        block_channels: int,
        tile: int,  # units a tile
    ) -> "Tiles":
        ahead = 2 if align >= 4 else 1  # narrow accesses take a register each for their addresses
        blocks = triton.cdiv(channels, block_channels)
        step = ahead * tile
        wanted = max(1, PROGRAMS // blocks - (segments - 1))  # each segment but one may end in a chunk of its own
        chunk = max(1, triton.cdiv(images * unit, wanted * step)) * step
        grid = (images * unit + segments * (chunk - 1)) // chunk, blocks
        return cls(unit, align, block_rows, block_channels, ahead, chunk, grid, next_power_of_two(segments))
