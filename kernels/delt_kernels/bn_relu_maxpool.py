"""BatchNorm of a frozen layer, ReLU and max pooling (a ResNet's stem), and the statistics of its input, per segment.

    d = x - mean        z = max(d * scale + shift, 0)        pooled = the maximum of z in each 3 x 3 window
    sums[g] = (sum d, sum d^2) over the images and pixels of segment g

Windows have stride 2, the first is centred on pixel (0, 0), and padding does not count (He et al. 2016;
MaxPool2d(3, stride=2, padding=1)). With u = dL/dsums of the segment,

    grad_z = the sum of grad_pooled over the windows whose maximum this z is, if positive; the first of equals counts
    grad_x = grad_z * scale + u[0] + 2 u[1] d

scale, shift and mean are frozen: they get no gradient (bn_stats.py says what they are).

Shapes: x [N, C, H, W]; pooled [N, C, ceil(H / 2), ceil(W / 2)]; scale, shift, mean [C]; offsets int32 [G + 1]
(segments.py); sums [G, 2, C]. x is float32, float16, bfloat16 or float64; pooled has its type and layout. Sums and
arithmetic are float32, float64 for float64. Kernels read channels_last and NCHW in place; other strides are copied to
NCHW. Forward saves each window's tap (uint8): the place of its maximum, 0 .. 8 row by row, or 9 if no z is positive.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from delt_kernels.batch_norm import channel_sums, check, deviations, empty_sums, input_gradient, per_channel
from delt_kernels.bn_relu_maxpool_kernels import launch_backward, launch_forward
from delt_kernels.dispatch import Backend, runs_kernels, uses_triton
from delt_kernels.layout import channels_last, dense

_WINDOW = (3, 3), (2, 2), (1, 1)  # size, stride, padding
_NO_TAP = 9


def bn_relu_maxpool(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, offsets: Tensor, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """max_pool(relu((x - mean) * scale + shift)) and the sums of x - mean: (pooled, sums [G, 2, C]).

    Differentiable with respect to x. Shapes, types and formula: see the module.

    Raises:
        ValueError: shapes, types or devices do not fit.
    """
    check(x, scale, shift, mean, offsets, None)
    if uses_triton(backend, x):
        pooled, sums, _ = _bn_relu_maxpool(x, scale, shift, mean, offsets)
        return pooled, sums
    return bn_relu_maxpool_torch(x, scale, shift, mean, offsets)


def bn_relu_maxpool_torch(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """The torch backend."""
    z, sums = _activations(x, scale, shift, mean, offsets)
    return F.max_pool2d(z, *_WINDOW).to(x.dtype), sums


def _activations(x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """z [N, C, H, W] and the sums, in the type of statistics."""
    d = deviations(x, mean)
    return (d * per_channel(scale, d.dtype) + per_channel(shift, d.dtype)).relu(), channel_sums(d, offsets)


def _empty_pooled(x: Tensor, dtype: torch.dtype) -> Tensor:
    """In the layout of x, which is dense."""
    images, channels, height, width = x.shape
    layout = torch.channels_last if channels_last(x) else torch.contiguous_format
    shape = images, channels, (height + 1) // 2, (width + 1) // 2
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=layout)


@torch.library.custom_op("delt::bn_relu_maxpool", mutates_args=())
def _bn_relu_maxpool(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(pooled, sums, taps)"""
    x = dense(x)
    pooled, taps = _empty_pooled(x, x.dtype), _empty_pooled(x, torch.uint8)
    if runs_kernels(x):
        return pooled, launch_forward(x, scale, shift, mean, offsets, pooled, taps), taps
    z, sums = _activations(x, scale, shift, mean, offsets)
    best, indices = F.max_pool2d(z, *_WINDOW, return_indices=True)
    rows, columns = _window_starts(x)
    tap = (indices // x.shape[3] - rows) * 3 + (indices % x.shape[3] - columns)
    return pooled.copy_(best), sums, taps.copy_(torch.where(best > 0, tap, _NO_TAP))


def _window_starts(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [PH, 1] and columns [PW] of each window's upper left pixel, -1 in the padding."""
    height, width = ((size + 1) // 2 for size in x.shape[2:])
    starts = 2 * torch.arange(max(height, width), device=x.device) - 1
    return starts[:height, None], starts[:width]


@_bn_relu_maxpool.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = dense(x)
    return _empty_pooled(x, x.dtype), empty_sums(x, offsets), _empty_pooled(x, torch.uint8)


@torch.library.custom_op("delt::bn_relu_maxpool_backward", mutates_args=())
def _bn_relu_maxpool_backward(
    grad_pooled: Tensor, grad_sums: Tensor, x: Tensor, taps: Tensor, scale: Tensor, mean: Tensor, offsets: Tensor
) -> Tensor:
    """grad_x"""
    x = dense(x)
    grad_x = torch.empty_like(x)
    if runs_kernels(x):
        launch_backward(grad_pooled, grad_sums, x, taps, scale, mean, offsets, grad_x)
        return grad_x
    d = deviations(x, mean)
    positive, tap = taps != _NO_TAP, taps.to(torch.int64)
    rows, columns = _window_starts(x)
    indices = torch.where(positive, (rows + tap // 3) * x.shape[3] + columns + tap % 3, 0)
    grad_best = torch.where(positive, grad_pooled.to(d.dtype), 0)
    grad_z = torch.ops.aten.max_pool2d_with_indices_backward(grad_best, d, *_WINDOW, (1, 1), False, indices)
    return grad_x.copy_(input_gradient(grad_z, grad_sums, d, scale, offsets))


@_bn_relu_maxpool_backward.register_fake
def _(
    grad_pooled: Tensor, grad_sums: Tensor, x: Tensor, taps: Tensor, scale: Tensor, mean: Tensor, offsets: Tensor
) -> Tensor:
    return torch.empty_like(dense(x))


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, scale, _, mean, offsets = inputs
    _, _, taps = output
    ctx.save_for_backward(x, taps, scale, mean, offsets)
    ctx.mark_non_differentiable(taps)


def _gradient(ctx: Any, grad_pooled: Tensor, grad_sums: Tensor, _: object) -> tuple[Tensor | None, ...]:
    return _bn_relu_maxpool_backward(grad_pooled, grad_sums, *ctx.saved_tensors), None, None, None, None


_bn_relu_maxpool.register_autograd(_gradient, setup_context=_save)
