"""BatchNorm of a frozen layer (+ residual) (+ ReLU) and the statistics of its input, per segment, in one pass.

    d = x - mean        z = d * scale + shift (+ residual)        y = z, or max(z, 0)
    sums[g] = (sum d, sum d^2) over the images and pixels of segment g

with scale = gamma / sqrt(running_var + eps), shift = beta, mean = running_mean. Sums of deviations from the running
mean give an accurate variance in float32 even where the mean is much larger than the deviation. With u[g] =
dL/dsums[g],

    grad_z = grad_y * 1[z > 0]        grad_x = grad_z * scale + u[0] + 2 u[1] d        grad_residual = grad_z

(BatchNorm: Ioffe and Szegedy 2015; its statistics as a loss: Yin et al. 2020). scale, shift and mean are frozen: they
get no gradient.

Shapes: x, residual and y [N, C, H, W]; scale, shift, mean [C]; offsets int32 [G + 1] (segments.py); sums [G, 2, C].
x is float32, float16, bfloat16 or float64, and residual any of these; y has the type and layout of x. Sums and
arithmetic are float32, float64 for float64. Kernels read channels_last and NCHW in place; other strides are copied to
NCHW.

Backward needs 1[z > 0]. Recomputing it would read the residual again, so it is saved as one bit per element where there
is a residual (channels_last, C a multiple of 8).
"""

from typing import Any

import torch
from torch import Tensor

from delt_kernels.batch_norm import channel_sums, check, deviations, empty_sums, input_gradient, per_channel
from delt_kernels.bn_stats_kernels import launch_backward, launch_forward
from delt_kernels.dispatch import Backend, runs_kernels, statistics_dtype, uses, uses_triton
from delt_kernels.layout import dense, like
from delt_kernels.relu_bitmask import can_pack, empty_bits


def bn_stats(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    offsets: Tensor,
    residual: Tensor | None = None,
    relu: bool = False,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """act((x - mean) * scale + shift (+ residual)) and the sums of x - mean: (y [N, C, H, W], sums [G, 2, C]).

    Differentiable with respect to x and residual. Shapes, types and formula: see the module.

    Raises:
        ValueError: shapes, types or devices do not fit.
    """
    check(x, scale, shift, mean, offsets, residual)
    if uses_triton(backend, x):
        y, sums, _ = _bn_stats(x, scale, shift, mean, offsets, residual, relu)
        return y, sums
    return bn_stats_torch(x, scale, shift, mean, offsets, residual, relu)


def bn_stats_fork(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    offsets: Tensor,
    residual: Tensor | None = None,
    relu: bool = False,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """`bn_stats` for a y with two consumers: (y, the same y for the second consumer, sums).

    The backward kernel adds both gradients of y, which saves a pass over them. Both outputs share their memory and must
    not be modified in place. Under torch.compile the compiler does the addition.
    """
    check(x, scale, shift, mean, offsets, residual)
    if uses_triton(backend, x) and not torch.compiler.is_compiling() and uses("bn_stats_fork"):
        y, y2, sums = _Fork.apply(x, scale, shift, mean, offsets, residual, relu)
        return y, y2, sums
    y, sums = bn_stats(x, scale, shift, mean, offsets, residual, relu, backend=backend)
    return y, y, sums


def bn_stats_torch(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, offsets: Tensor, residual: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor]:
    """The torch backend."""
    d = deviations(x, mean)
    sums = channel_sums(d, offsets)
    z = _z(d, scale, shift, residual)
    return (z.relu() if relu else z).to(x.dtype), sums


def _z(d: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None) -> Tensor:
    z = d * per_channel(scale, d.dtype) + per_channel(shift, d.dtype)
    return z if residual is None else z + residual.to(d.dtype)


@torch.library.custom_op("delt::bn_stats", mutates_args=())
def _bn_stats(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, offsets: Tensor, residual: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, sums, bits): bits as `_bits_for` gives them."""
    x = dense(x)
    bits = _bits_for(x, residual, relu)
    if runs_kernels(x):
        kept = bits if bits.dim() == 4 else None
        return *launch_forward(x, scale, shift, mean, offsets, residual, relu, kept), bits
    y, sums = bn_stats_torch(x, scale, shift, mean, offsets, residual, relu)
    return like(y, x), sums, bits


@_bn_stats.register_fake
def _(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, offsets: Tensor, residual: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x = dense(x)
    return torch.empty_like(x), empty_sums(x, offsets), _bits_for(x, residual, relu)


def _bits_for(x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """uint8 [N, H, W, C / 8] where the backward kernel reads 1[z > 0] from memory, otherwise [0]."""
    if relu and residual is not None and runs_kernels(x) and can_pack(x) and uses("relu_bitmask"):
        return empty_bits(x)
    return x.new_empty(0, dtype=torch.uint8)


@torch.library.custom_op("delt::bn_stats_backward", mutates_args=())
def _bn_stats_backward(
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
    residual_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """(grad_x, grad_residual): grad_residual in `residual_dtype`, [0] where that is None.

    1[z > 0] comes from `bits` if given, otherwise from x and residual.
    """
    x = dense(x)
    grad_x, grad_residual = _empty_gradients(x, residual_dtype)
    wanted = None if residual_dtype is None else grad_residual
    if runs_kernels(x):
        launch_backward(
            grad_y, grad_y2, grad_sums, x, scale, shift, mean, offsets, residual, bits, relu, grad_x, wanted
        )
        return grad_x, grad_residual
    d = deviations(x, mean)
    grad_z = grad_y.to(d.dtype) if grad_y2 is None else grad_y.to(d.dtype) + grad_y2.to(d.dtype)
    if relu:
        grad_z = torch.where(_z(d, scale, shift, residual) > 0, grad_z, 0)
    grad_x.copy_(input_gradient(grad_z, grad_sums, d, scale, offsets))
    if wanted is not None:
        wanted.copy_(grad_z)
    return grad_x, grad_residual


@_bn_stats_backward.register_fake
def _(
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
    residual_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    return _empty_gradients(dense(x), residual_dtype)


def _empty_gradients(x: Tensor, residual_dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(0) if residual_dtype is None else torch.empty_like(x, dtype=residual_dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, scale, shift, mean, offsets, residual, relu = inputs
    bits = output[2] if output[2].dim() == 4 else None
    ctx.residual_dtype = None if residual is None else residual.dtype
    ctx.relu = relu
    ctx.set_materialize_grads(False)
    unread = not relu or bits is not None  # backward does not read the residual, so its memory can be freed
    ctx.save_for_backward(x, scale, shift, mean, offsets, None if unread else residual, bits)


def _gradients(
    ctx: Any, grad_y: Tensor | None, grad_y2: Tensor | None, grad_sums: Tensor | None
) -> tuple[Tensor | None, ...]:
    """For x, scale, shift, mean, offsets, residual, relu. A None among the arguments stands for a zero gradient."""
    x, scale, shift, mean, offsets, residual, bits = ctx.saved_tensors
    if grad_y is None:
        grad_y, grad_y2 = grad_y2, None
    if grad_y is None:
        grad_y = torch.zeros_like(x)
    if grad_sums is None:
        grad_sums = x.new_zeros((offsets.shape[0] - 1, 2, x.shape[1]), dtype=statistics_dtype(x.dtype))
    residual_dtype = ctx.residual_dtype if ctx.needs_input_grad[5] else None
    passed_on = not ctx.relu and grad_y2 is None  # then grad_residual is grad_y itself
    grad_x, grad_residual = _bn_stats_backward(
        grad_y, grad_y2, grad_sums, x, scale, shift, mean, offsets, residual, bits, ctx.relu,
        None if passed_on else residual_dtype,
    )  # fmt: skip
    if residual_dtype is None:
        return grad_x, None, None, None, None, None, None
    return grad_x, None, None, None, None, grad_y.to(residual_dtype) if passed_on else grad_residual, None


def _backward(ctx: Any, grad_y: Tensor | None, grad_sums: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, grad_y, None, grad_sums)


_bn_stats.register_autograd(_backward, setup_context=_save)


class _Fork(torch.autograd.Function):
    """`delt::bn_stats` that returns y twice. A registered operator cannot: its outputs must not share memory."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        output = _bn_stats(*inputs)
        _save(ctx, inputs, output)
        y, sums, _ = output
        return y, y.view_as(y), sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, *gradients)
