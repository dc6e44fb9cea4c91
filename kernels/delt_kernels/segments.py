# mypy: disable-error-code="untyped-decorator"
# ruff: noqa: N803 (sizes and constants of a kernel are written in capitals)
"""Segments of a batch: runs of consecutive images that share their statistics, and sums over them.

Segment g holds images offsets[g] .. offsets[g + 1] - 1. `offsets` is int32 [G + 1] on the images' device; it is
non-decreasing, starts with 0 and ends with N. A segment may be empty. Nothing here reads offsets on the host, so
segments can change without a synchronisation or a recompilation.

Kernels sum in two stages, without atomics: each program writes the sums of one chunk of one segment to a row of
`partials`, and `sum_chunks` adds the rows of each segment in order. A chunk starts at its segment's first row, and its
length depends on the tensor's shape and G alone. A segment's sums are therefore bitwise independent of the others.
"""

from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from delt_kernels.layout import channels_last

# Launch shapes, chosen by calculation, not yet tuned on a GPU. PROGRAMS limits the programs for a large tensor: 8 per
# multiprocessor of an H100 (132). It is a constant because sums must not depend on the device.
PROGRAMS = 1056
TILE_BYTES = 4096  # of activations: one 16-byte load for each of the 256 threads of 8 warps
TILE_CHANNELS = 64
TILE_PIXELS = 512
WARPS = 8
PREFETCH = 2  # tiles loaded before the first is used; the compiler does not move a load across a store by itself
SUM_CHUNKS, SUM_COLUMNS = 64, 32
# Arguments of kernels that depend on the number of images or segments: one compiled kernel is for all their values.
LENGTHS = ["G", "CHUNK_ROWS"]


def segment_of(offsets: Tensor, images: int) -> Tensor:
    """The segment of each of `images` images, int64 [N], on the device of `offsets`."""
    image = torch.arange(images, device=offsets.device, dtype=offsets.dtype)
    return (image[:, None] >= offsets[None, 1:]).sum(1)


def per_segment(rows: Tensor, offsets: Tensor) -> Tensor:
    """Sums of rows [N, ...] over the images of each segment: [G, ...] in the rows' type, 0 for an empty segment.

    Summation starts at the segment's first row, so a sum does not depend on the other segments. Differentiable with
    respect to `rows`.
    """
    sums: Tensor = _PerSegment.apply(rows, offsets)
    return sums


class _PerSegment(torch.autograd.Function):
    """A gather. Autograd's gradient of it would be a scatter with atomics; this one is a gather too."""

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
def segment_chunks(
    offsets_ptr: tl.tensor,  # int32 [G + 1]
    G: tl.tensor,
    IMAGE_ROWS: tl.tensor,
    CHUNK_ROWS: tl.tensor,
    GP: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Numbers of all segments [GP], their first rows and ends (int64), and how many chunks each has."""
    g = tl.arange(0, GP)
    first = tl.load(offsets_ptr + g, mask=g < G, other=0).to(tl.int64) * IMAGE_ROWS
    end = tl.load(offsets_ptr + g + 1, mask=g < G, other=0).to(tl.int64) * IMAGE_ROWS
    return g, first, end, ((end - first + (CHUNK_ROWS - 1)) // CHUNK_ROWS).to(tl.int32)


@triton.jit
def chunk_of(
    offsets_ptr: tl.tensor,  # int32 [G + 1]
    chunk: tl.tensor,
    G: tl.tensor,
    IMAGE_ROWS: tl.tensor,
    CHUNK_ROWS: tl.tensor,
    GP: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Segment, first row and end (int64) of a chunk; each image has IMAGE_ROWS rows, a chunk at most CHUNK_ROWS.

    Chunks are numbered segment by segment. GP is a power of two, at least G. A number past the last chunk gives segment
    GP and an empty range of rows.
    """
    g, first, end, chunks = segment_chunks(offsets_ptr, G, IMAGE_ROWS, CHUNK_ROWS, GP)
    segment = tl.sum((tl.cumsum(chunks, 0) <= chunk).to(tl.int32), 0)
    before = tl.sum(tl.where(g < segment, chunks, 0), 0)
    here = g == segment
    row = tl.sum(tl.where(here, first, 0), 0) + (chunk - before).to(tl.int64) * CHUNK_ROWS
    return segment, row, tl.minimum(row + CHUNK_ROWS, tl.sum(tl.where(here, end, 0), 0))


@triton.jit(do_not_specialize=LENGTHS)
def sum_chunks_kernel(
    partials_ptr: tl.tensor,  # [P, columns], one row per chunk
    sums_ptr: tl.tensor,  # [G, columns]
    offsets_ptr: tl.tensor,  # int32 [G + 1]
    columns: tl.tensor,
    G: tl.tensor,
    IMAGE_ROWS: tl.tensor,
    CHUNK_ROWS: tl.tensor,
    GP: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Second stage: the sum of the partial sums of segment program_id(0), in the order of its chunks."""
    segment = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    g, _, _, chunks = segment_chunks(offsets_ptr, G, IMAGE_ROWS, CHUNK_ROWS, GP)
    chunk = tl.sum(tl.where(g < segment, chunks, 0), 0)
    last = chunk + tl.sum(tl.where(g == segment, chunks, 0), 0)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    while chunk < last:  # not range(chunk, last): the interpreter of Triton 3.6 accepts no tensors there
        row = chunk + tl.arange(0, BLOCK_P)
        mask = (row < last)[:, None] & (column < columns)[None, :]
        total += tl.load(partials_ptr + row[:, None].to(tl.int64) * columns + column[None, :], mask=mask, other=0.0)
        chunk += BLOCK_P
    tl.store(sums_ptr + segment.to(tl.int64) * columns + column, tl.sum(total, 0), mask=column < columns)


def sum_chunks(partials: Tensor, offsets: Tensor, image_rows: int, chunk_rows: int) -> Tensor:
    """Sums over the chunks of each segment: partials float32 [P, ...] -> [G, ...].

    Args:
        image_rows, chunk_rows: as given to `chunk_of`.
    """
    segments = offsets.shape[0] - 1
    sums = partials.new_empty((segments, *partials.shape[1:]))
    columns = partials.shape[1:].numel()
    sum_chunks_kernel[(segments, triton.cdiv(columns, SUM_COLUMNS))](
        partials,
        sums,
        offsets,
        columns,
        segments,
        image_rows,
        chunk_rows,
        GP=next_power_of_two(segments),
        BLOCK_P=SUM_CHUNKS,
        BLOCK_C=SUM_COLUMNS,
    )
    return sums


def next_power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`; 1 for 0."""
    return 1 << max(0, number - 1).bit_length()


@dataclass(frozen=True)
class Tiles:
    """How a kernel divides a tensor into programs and tiles: the one place where launch shapes are chosen.

    A program processes one chunk of one segment and one block of channels, `prefetch` tiles of block_rows x
    block_channels at a time. Rows are pixels in channels_last, tiles of pixels in NCHW (see `layout`).

    Attributes:
        image_rows: rows of an image.
        align: a power of two that divides the length of the innermost dimension.
        chunk_rows: rows of a chunk, at most.
        grid: (chunks, blocks of channels); the chunks suffice for any offsets.
        segments: the number of segments, rounded up to a power of two.
    """

    image_rows: int
    align: int
    block_rows: int
    block_channels: int
    prefetch: int
    chunk_rows: int
    grid: tuple[int, int]
    segments: int
    warps: int = WARPS

    @classmethod
    def of(cls, x: Tensor, pixels: int, segments: int) -> "Tiles":
        """For x, which is dense, or for a tensor like it but of `pixels` pixels an image."""
        images, channels = x.shape[:2]
        choose = cls.channels_last if channels_last(x) else cls.planes
        return choose(images, channels, pixels, segments, TILE_BYTES // x.element_size())

    @classmethod
    def channels_last(cls, images: int, channels: int, pixels: int, segments: int, elements: int) -> "Tiles":
        """For a tensor [images * pixels, channels], with tiles of that many elements; a row is a pixel."""
        block_channels = min(TILE_CHANNELS, next_power_of_two(channels))
        block_rows = elements // block_channels
        return cls._of(images, channels, segments, pixels, gcd(channels, 16), block_rows, block_channels, block_rows)

    @classmethod
    def planes(cls, images: int, channels: int, pixels: int, segments: int, elements: int) -> "Tiles":
        """For a tensor [images, channels, pixels], with tiles of at most that many elements.

        A row is a tile of `block_rows` pixels of one image.
        """
        block_rows = min(TILE_PIXELS, next_power_of_two(pixels))
        block_channels = min(elements // block_rows, next_power_of_two(channels))
        image_rows = triton.cdiv(pixels, block_rows)
        return cls._of(images, channels, segments, image_rows, gcd(pixels, 16), block_rows, block_channels, 1)

    @classmethod
    def _of(
        cls,
        images: int,
        channels: int,
        segments: int,
        image_rows: int,
        align: int,
        block_rows: int,
        block_channels: int,
        tile_rows: int,
    ) -> "Tiles":
        prefetch = PREFETCH if align >= 4 else 1  # narrow accesses need too many registers for their addresses
        blocks = triton.cdiv(channels, block_channels)
        step = prefetch * tile_rows
        wanted = max(1, PROGRAMS // blocks - (segments - 1))  # all segments but one may end in a partial chunk
        chunk_rows = max(1, triton.cdiv(images * image_rows, wanted * step)) * step
        grid = (images * image_rows + segments * (chunk_rows - 1)) // chunk_rows, blocks
        return cls(
            image_rows, align, block_rows, block_channels, prefetch, chunk_rows, grid, next_power_of_two(segments)
        )
