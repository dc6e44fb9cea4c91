# mypy: disable-error-code="assignment,untyped-decorator"
# ruff: noqa: N803, RUF005 (a kernel's sizes and constants are written in capitals; it cannot unpack tuples)
"""Memory layout of image tensors, channels_last or NCHW: on the host, and tiles of them inside a kernel.

A tile holds BLOCK_R pixels x BLOCK_C channels. In channels_last the tensor is a matrix [N * H * W, C]: a row is a
pixel, and a tile may span several images. In NCHW the tensor is [N, C, H * W]: a row is a tile of pixels of one image.
IMAGE_ROWS is the number of rows of an image.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor


def dense(x: Tensor) -> Tensor:
    """x itself if it is channels_last or NCHW, otherwise a copy in NCHW."""
    return x if channels_last(x) or x.is_contiguous() else x.contiguous()


def channels_last(x: Tensor) -> bool:
    """Whether x is channels_last; also true where both layouts are the same (one channel, or one pixel)."""
    return x.is_contiguous(memory_format=torch.channels_last)


def like(tensor: Tensor, x: Tensor) -> Tensor:
    """`tensor` in the layout of x, which is dense: itself or a copy."""
    return tensor.contiguous(memory_format=torch.channels_last if channels_last(x) else torch.contiguous_format)


def device_of(x: Tensor) -> AbstractContextManager[None]:
    """Makes the device of x the current one, since Triton launches kernels there."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@triton.jit
def tile(
    row: tl.tensor,
    end: tl.tensor,
    channel: tl.tensor,
    C: tl.tensor,
    PIXELS: tl.tensor,
    IMAGE_ROWS: tl.tensor,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Index of the tile's first element (int64), offsets from it [BLOCK_R, BLOCK_C], and a mask of the valid ones."""
    i = tl.arange(0, BLOCK_R)
    if CHANNELS_LAST:
        start = row * C
        offset = i[:, None] * C + channel[None, :]
        valid = i < end - row
    else:
        image = row // IMAGE_ROWS
        pixel = (row - image * IMAGE_ROWS).to(tl.int32) * BLOCK_R + i
        start = image * C * PIXELS
        offset = channel[None, :] * PIXELS + pixel[:, None]
        valid = (pixel < PIXELS) & (row < end)
    return start, offset, valid[:, None] & (channel < C)[None, :]


@triton.jit
def load_tiles(
    pointer: tl.tensor,
    row: tl.tensor,
    end: tl.tensor,
    channel: tl.tensor,
    C: tl.tensor,
    PIXELS: tl.tensor,
    IMAGE_ROWS: tl.tensor,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PREFETCH: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """PREFETCH tiles starting at `row`, 0 outside the mask. All loads are issued before the first tile is used."""
    tiles = ()
    for j in tl.static_range(PREFETCH):
        step = j * BLOCK_R if CHANNELS_LAST else j
        start, offset, mask = tile(row + step, end, channel, C, PIXELS, IMAGE_ROWS, CHANNELS_LAST, BLOCK_R)
        tiles = tiles + (tl.load(pointer + start + offset, mask=mask, other=0.0),)
    return tiles


@triton.jit
def load_vector(pointer: tl.tensor, channel: tl.tensor, C: tl.tensor) -> tl.tensor:
    """Float32 values of a vector [C] at `channel`, in the shape of `channel`."""
    return tl.load(pointer + channel, mask=channel < C, other=0.0).to(tl.float32)


@triton.jit
def load_grad_sums(
    pointer: tl.tensor,  # [G, 2, C]
    segment: tl.tensor,
    channel: tl.tensor,
    C: tl.tensor,
    G: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:
    """u[0] and 2 u[1], u the gradient of a segment's sums: the gradient of x contains u[0] + 2 u[1] d."""
    pointer += segment.to(tl.int64) * (2 * C) + channel
    mask = (channel < C) & (segment < G)
    linear = tl.load(pointer, mask=mask, other=0.0).to(tl.float32)
    return linear, 2.0 * tl.load(pointer + C, mask=mask, other=0.0).to(tl.float32)
