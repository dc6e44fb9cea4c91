"""A ResNet's stem: BatchNorm of a frozen layer, ReLU and max pooling, with the statistics of its input, per segment.

    d = x - mean        z = max(d * scale + shift, 0)        pooled = the greatest z of each 3 x 3 window
    sums[g] = (sum d, sum d^2) over the images and pixels of segment g

Windows lie 2 apart, the first centred on pixel (0, 0), and what hangs over the border does not count (He et al. 2016;
MaxPool2d(3, stride=2, padding=1)). With u = dL/dsums of the segment,

    gz = sum of the pooled gradients of the windows whose greatest z this is, if positive; of equals the first counts
    gx = gz * scale + u[0] + 2 u[1] d

scale, shift and mean are frozen: they get no gradient (see bn_stats.py for what they are).

Shapes: x [N, C, H, W]; pooled [N, C, ceil(H / 2), ceil(W / 2)]; scale, shift, mean [C]; offsets int32 [G + 1]
(segments.py); sums [G, 2, C]. x is float32, float16, bfloat16 or float64; pooled has its type and layout. Sums and
arithmetic are float32, float64 for float64. Kernels read x where it lies if channels_last or NCHW, else a copy in NCHW.
They keep the tap that won, uint8 for each pooled pixel: 0 .. 8 row by row, 9 where no z is positive.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from delt_kernels.bn_relu_maxpool_kernels import launch_backward, launch_forward
from delt_kernels.dispatch import Backend, runs_kernels, statistics_dtype, uses_triton
from delt_kernels.layout import channels_last, dense
from delt_kernels.segments import per_segment, segment_of

_WINDOW = (3, 3), (2, 2), (1, 1)  # size, stride, padding
_NO_TAP = 9


def stem_stats(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, offsets: Tensor, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """max_pool(relu((x - mean) * scale + shift)) and the sums of x - mean: (pooled, sums [G, 2, C]).

    Differentiable with respect to x. Shapes, types and formula: see the module.

    Raises:
        ValueError: shapes, types or devices do not fit.
    """
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} {list(x.shape)}; expected a float tensor [N, C, H, W]")
    for name, tensor in {"scale": scale, "shift": shift, "mean": mean}.items():
        if tensor.shape != x.shape[1:2] or not tensor.is_floating_point():
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}; expected float [{x.shape[1]}]")
    if offsets.dtype != torch.int32 or offsets.dim() != 1 or offsets.shape[0] < 2:
        raise ValueError(f"offsets is {offsets.dtype} {list(offsets.shape)}; expected int32 [segments + 1]")
    for tensor in (scale, shift, mean, offsets):
        if tensor.device != x.device:
            raise ValueError(f"x is on {x.device}, another argument on {tensor.device}; expected one device")
    if uses_triton(backend, x):
        pooled, sums, _ = _stem_stats(x, scale, shift, mean, offsets)
        return pooled, sums
    return stem_stats_torch(x, scale, shift, mean, offsets)


def stem_stats_torch(x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The torch backend. It sums over the pixels of each image first, which Inductor fuses with the rest."""
    z, sums = _activations(x, scale, shift, mean, offsets)
    return F.max_pool2d(z, *_WINDOW).to(x.dtype), sums


def _activations(x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """z [N, C, H, W], and the sums."""
    dtype = statistics_dtype(x.dtype)
    d = x.to(dtype) - _columns(mean, dtype)
    sums = per_segment(torch.stack([d.sum((2, 3)), (d * d).sum((2, 3))], 1), offsets)
    return (d * _columns(scale, dtype) + _columns(shift, dtype)).relu(), sums


def _columns(channels: Tensor, dtype: torch.dtype) -> Tensor:
    return channels.detach().to(dtype)[:, None, None]


def _empty_pooled(x: Tensor, dtype: torch.dtype) -> Tensor:
    """In the layout of x, which is dense."""
    images, channels, height, width = x.shape
    layout = torch.channels_last if channels_last(x) else torch.contiguous_format
    shape = images, channels, (height + 1) // 2, (width + 1) // 2
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=layout)


@torch.library.custom_op("delt::stem_stats", mutates_args=())
def _stem_stats(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(pooled, sums, taps)"""
    x = dense(x)
    pooled, taps = _empty_pooled(x, x.dtype), _empty_pooled(x, torch.uint8)
    if runs_kernels(x):
        return pooled, launch_forward(x, scale, shift, mean, offsets, pooled, taps), taps
    z, sums = _activations(x, scale, shift, mean, offsets)
    best, places = F.max_pool2d(z, *_WINDOW, return_indices=True)
    rows, columns = _first_taps(x)
    tap = (places // x.shape[3] - rows) * 3 + (places % x.shape[3] - columns)
    return pooled.copy_(best), sums, taps.copy_(torch.where(best > 0, tap, _NO_TAP))


def _first_taps(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [PH, 1] and columns [PW] of each window's upper left pixel, -1 over the border."""
    height, width = ((size + 1) // 2 for size in x.shape[2:])
    starts = 2 * torch.arange(max(height, width), device=x.device) - 1
    return starts[:height, None], starts[:width]


@_stem_stats.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = dense(x)
    sums = x.new_empty((offsets.shape[0] - 1, 2, x.shape[1]), dtype=statistics_dtype(x.dtype))
    return _empty_pooled(x, x.dtype), sums, _empty_pooled(x, torch.uint8)


@torch.library.custom_op("delt::stem_stats_backward", mutates_args=())
def _stem_stats_backward(
    gradient: Tensor,
    gradient_sums: Tensor,
    x: Tensor,
    taps: Tensor,
    scale: Tensor,
    mean: Tensor,
    offsets: Tensor,
) -> Tensor:
    """The gradient with respect to x."""
    x = dense(x)
    gradient_x = torch.empty_like(x)
    if runs_kernels(x):
        launch_backward(gradient, gradient_sums, x, taps, scale, mean, offsets, gradient_x)
        return gradient_x
    dtype = statistics_dtype(x.dtype)
    d = x.to(dtype) - _columns(mean, dtype)
    won, tap = taps != _NO_TAP, taps.to(torch.int64)
    rows, columns = _first_taps(x)
    places = torch.where(won, (rows + tap // 3) * x.shape[3] + columns + tap % 3, 0)
    passed_on = torch.where(won, gradient.to(dtype), 0)
    gz = torch.ops.aten.max_pool2d_with_indices_backward(passed_on, d, *_WINDOW, (1, 1), False, places)
    u = gradient_sums[segment_of(offsets, x.shape[0]), :, :, None, None]
    return gradient_x.copy_(gz * _columns(scale, dtype) + (u[:, 0] + 2 * u[:, 1] * d))


@_stem_stats_backward.register_fake
def _(
    gradient: Tensor,
    gradient_sums: Tensor,
    x: Tensor,
    taps: Tensor,
    scale: Tensor,
    mean: Tensor,
    offsets: Tensor,
) -> Tensor:
    return torch.empty_like(dense(x))


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, scale, _, mean, offsets = inputs
    _, _, taps = output
    ctx.save_for_backward(x, taps, scale, mean, offsets)
    ctx.mark_non_differentiable(taps)


def _gradient(ctx: Any, gradient: Tensor, gradient_sums: Tensor, _: object) -> tuple[Tensor | None, ...]:
    return _stem_stats_backward(gradient, gradient_sums, *ctx.saved_tensors), None, None, None, None


_stem_stats.register_autograd(_gradient, setup_context=_save)
