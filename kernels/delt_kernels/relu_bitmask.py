# mypy: disable-error-code="assignment,untyped-decorator"
# ruff: noqa: N803, RUF005 (a kernel's sizes and constants are written in capitals; it cannot unpack tuples)
"""Which elements of a channels_last tensor are positive, one bit each.

uint8 [N, H, W, C / 8]; bit k of byte j belongs to channel 8 j + k.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from delt_kernels.layout import channels_last


def can_pack(x: Tensor) -> bool:
    """Whether there is a bitmask for a tensor with the shape and layout of x."""
    return channels_last(x) and x.shape[1] % 8 == 0


def empty_bits(x: Tensor) -> Tensor:
    """Uninitialised memory for the bitmask of x."""
    images, channels, height, width = x.shape
    return x.new_empty((images, height, width, channels // 8), dtype=torch.uint8)


@triton.jit
def load_bits(
    pointer: tl.tensor,
    row: tl.tensor,
    end: tl.tensor,
    C: tl.tensor,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PREFETCH: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """`layout.load_tiles` for bitmasks."""
    tiles = ()
    for j in tl.static_range(PREFETCH):
        start, offset, mask = bits_tile(row + j * BLOCK_R, end, C, BLOCK_R, BLOCK_C)
        tiles = tiles + (tl.load(pointer + start + offset, mask=mask, other=0),)
    return tiles


@triton.jit
def bits_tile(
    row: tl.tensor, end: tl.tensor, C: tl.tensor, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """`layout.tile` for bitmasks: index of the first byte (int64), offsets [BLOCK_R, BLOCK_C / 8], and their mask."""
    i = tl.arange(0, BLOCK_R)
    byte = tl.program_id(1) * (BLOCK_C // 8) + tl.arange(0, BLOCK_C // 8)
    offset = i[:, None] * (C // 8) + byte[None, :]
    return row * (C // 8), offset, (i < end - row)[:, None] & (byte < C // 8)[None, :]


@triton.jit
def pack(positive: tl.tensor, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr) -> tl.tensor:
    """bool [BLOCK_R, BLOCK_C] -> uint8 [BLOCK_R, BLOCK_C / 8]."""
    bits = tl.reshape(positive.to(tl.int32), (BLOCK_R, BLOCK_C // 8, 8))
    return tl.sum(bits << tl.arange(0, 8)[None, None, :], 2).to(tl.uint8)


@triton.jit
def unpack(packed: tl.tensor, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr) -> tl.tensor:
    """The inverse of `pack`."""
    bits = (packed.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(bits, (BLOCK_R, BLOCK_C)) != 0
