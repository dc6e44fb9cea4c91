# mypy: disable-error-code="assignment,untyped-decorator"
# ruff: noqa: N803, RUF005 (a kernel's sizes and constants are written in capitals; it cannot unpack tuples)
"""Where the elements of an image tensor lie: channels_last or NCHW, on the host and inside a kernel.

A tile is BLOCK_R pixels x BLOCK_C channels. Where channels lie innermost the tensor is a matrix [N * H * W, C], and a
tile may span images; positions count pixels. Else the tensor is [N, C, H * W], a tile lies in one image, and positions
count tiles, UNIT an image.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor


def dense(x: Tensor) -> Tensor:
    """x itself if channels_last or NCHW, else a copy in NCHW."""
    return x if channels_last(x) or x.is_contiguous() else x.contiguous()


def channels_last(x: Tensor) -> bool:
    """Whether channels lie innermost; true also where the order does not matter (one channel, one pixel)."""
    return x.is_contiguous(memory_format=torch.channels_last)


def like(tensor: Tensor, x: Tensor) -> Tensor:
    """`tensor` in the layout of x, which is dense: itself or a copy."""
    return tensor.contiguous(memory_format=torch.channels_last if channels_last(x) else torch.contiguous_format)


def device_of(x: Tensor) -> AbstractContextManager[None]:
    """Kernels inside are launched on the device of x, whichever device is the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@triton.jit
def tile(
    position: tl.tensor,
    end: tl.tensor,
    channel: tl.tensor,
    C: tl.tensor,
    PIXELS: tl.tensor,
    UNIT: tl.tensor,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The element at which a tile begins (int64), offsets from there [BLOCK_R, BLOCK_C], and which of them exist."""
    row = tl.arange(0, BLOCK_R)
    if CHANNELS_LAST:
        start = position * C
        offset = row[:, None] * C + channel[None, :]
        exists = row < end - position
    else:
        image = position // UNIT
        pixel = (position - image * UNIT).to(tl.int32) * BLOCK_R + row
        start = image * C * PIXELS
        offset = channel[None, :] * PIXELS + pixel[:, None]
        exists = (pixel < PIXELS) & (position < end)
    return start, offset, exists[:, None] & (channel < C)[None, :]


@triton.jit
def load_tiles(
    pointer: tl.tensor,
    position: tl.tensor,
    end: tl.tensor,
    channel: tl.tensor,
    C: tl.tensor,
    PIXELS: tl.tensor,
    UNIT: tl.tensor,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    AHEAD: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """AHEAD tiles from `position` on, 0 where there is nothing: all loads are under way before the first is used."""
    tiles = ()
    for j in tl.static_range(AHEAD):
        step = j * BLOCK_R if CHANNELS_LAST else j
        start, offset, mask = tile(position + step, end, channel, C, PIXELS, UNIT, CHANNELS_LAST, BLOCK_R)
        tiles = tiles + (tl.load(pointer + start + offset, mask=mask, other=0.0),)
    return tiles
