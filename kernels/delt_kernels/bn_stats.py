"""BatchNorm of a frozen layer (+ residual) (+ ReLU) with the statistics of its input, per segment, in one pass.

    d = x - mean        z = d * scale + shift (+ residual)        y = z, or max(z, 0)
    sums[g] = (sum d, sum d^2) over the images and pixels of segment g

with scale = gamma / sqrt(running_var + eps), shift = beta, mean = running_mean. Sums of differences from the running
mean keep the variance good in float32 where the mean is far larger than the deviation. With u[g] = dL/dsums[g],

    gz = gy * 1[z > 0]        gx = gz * scale + u[0] + 2 u[1] d        g_residual = gz

(BatchNorm: Ioffe and Szegedy 2015; its statistics as a loss: Yin et al. 2020). scale, shift and mean are frozen: they
get no gradient.

Shapes: x, residual and y [N, C, H, W]; scale, shift, mean [C]; offsets int32 [G + 1] (segments.py); sums [G, 2, C].
x is float32, float16, bfloat16 or float64, and residual any of these; y has the type and layout of x. Sums and
arithmetic are float32, float64 for float64. Kernels read x where it lies if channels_last or NCHW, else a copy in NCHW.

The sign of z is kept as one bit where the residual would have to be read again for it (channels_last, C a multiple of
8), else computed again.
"""

from typing import Any

import torch
from torch import Tensor

from delt_kernels.bn_stats_kernels import launch_backward, launch_forward
from delt_kernels.dispatch import Backend, runs_kernels, statistics_dtype, uses_triton
from delt_kernels.layout import dense, like
from delt_kernels.relu_bitmask import empty_signs, packs
from delt_kernels.segments import per_segment, segment_of


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
    _check(x, scale, shift, mean, offsets, residual)
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
    """`bn_stats` for two consumers of y, each of which takes one: (y, y again, sums).

    The backward kernel adds both gradients, which saves a pass over them. Both y are one memory: neither may be changed
    in place. Under torch.compile the addition is the compiler's.
    """
    _check(x, scale, shift, mean, offsets, residual)
    if uses_triton(backend, x) and not torch.compiler.is_compiling():
        y, again, sums = _Fork.apply(x, scale, shift, mean, offsets, residual, relu)
        return y, again, sums
    y, sums = bn_stats(x, scale, shift, mean, offsets, residual, relu, backend=backend)
    return y, y, sums


def bn_stats_torch(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, offsets: Tensor, residual: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor]:
    """The torch backend. It sums over the pixels of each image first, which Inductor fuses with the rest."""
    dtype = statistics_dtype(x.dtype)
    d = x.to(dtype) - _columns(mean, dtype)
    sums = per_segment(torch.stack([d.sum((2, 3)), (d * d).sum((2, 3))], 1), offsets)
    z = d * _columns(scale, dtype) + _columns(shift, dtype)
    if residual is not None:
        z = z + residual.to(dtype)
    return (z.relu() if relu else z).to(x.dtype), sums


def _columns(channels: Tensor, dtype: torch.dtype) -> Tensor:
    return channels.detach().to(dtype)[:, None, None]


def _check(x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, offsets: Tensor, residual: Tensor | None) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} {list(x.shape)}; expected a float tensor [N, C, H, W]")
    vectors = {"scale": scale, "shift": shift, "mean": mean}
    for name, vector in vectors.items():
        if vector.shape != x.shape[1:2] or not vector.is_floating_point():
            raise ValueError(f"{name} is {vector.dtype} {list(vector.shape)}; expected float [{x.shape[1]}]")
    if offsets.dtype != torch.int32 or offsets.dim() != 1 or offsets.shape[0] < 2:
        raise ValueError(f"offsets is {offsets.dtype} {list(offsets.shape)}; expected int32 [segments + 1]")
    others = vectors | {"offsets": offsets}
    if residual is not None:
        if residual.shape != x.shape or not residual.is_floating_point():
            raise ValueError(f"residual is {residual.dtype} {list(residual.shape)}; expected float {list(x.shape)}")
        others["residual"] = residual
    for name, tensor in others.items():
        if tensor.device != x.device:
            raise ValueError(f"x is on {x.device}, {name} on {tensor.device}; expected one device")


@torch.library.custom_op("delt::bn_stats", mutates_args=())
def _bn_stats(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, offsets: Tensor, residual: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, sums, signs): signs as `_signs_for` gives them."""
    x = dense(x)
    signs = _signs_for(x, residual, relu)
    if runs_kernels(x):
        kept = signs if signs.dim() == 4 else None
        return *launch_forward(x, scale, shift, mean, offsets, residual, relu, kept), signs
    y, sums = bn_stats_torch(x, scale, shift, mean, offsets, residual, relu)
    return like(y, x), sums, signs


@_bn_stats.register_fake
def _(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, offsets: Tensor, residual: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x = dense(x)
    sums = x.new_empty((offsets.shape[0] - 1, 2, x.shape[1]), dtype=statistics_dtype(x.dtype))
    return torch.empty_like(x), sums, _signs_for(x, residual, relu)


def _signs_for(x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """uint8 [N, H, W, C / 8] where the backward kernel is to read the signs of z, else [0]."""
    if relu and residual is not None and runs_kernels(x) and packs(x):
        return empty_signs(x)
    return x.new_empty(0, dtype=torch.uint8)


@torch.library.custom_op("delt::bn_stats_backward", mutates_args=())
def _bn_stats_backward(
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
    residual_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """(gx, g_residual): g_residual in `residual_dtype`, [0] where that is None; `again`: of y's second consumer.

    The signs of z come from `signs` if given, else from x and residual.
    """
    x = dense(x)
    gradient_x, gradient_residual = _empty_gradients(x, residual_dtype)
    wanted = None if residual_dtype is None else gradient_residual
    if runs_kernels(x):
        launch_backward(
            gradient, again, gradient_sums, x, scale, shift, mean, offsets, residual, signs, relu, gradient_x, wanted
        )
        return gradient_x, gradient_residual
    dtype = statistics_dtype(x.dtype)
    d = x.to(dtype) - _columns(mean, dtype)
    gz = gradient.to(dtype) if again is None else gradient.to(dtype) + again.to(dtype)
    if relu:
        z = d * _columns(scale, dtype) + _columns(shift, dtype)
        gz = torch.where(z > 0 if residual is None else z + residual.to(dtype) > 0, gz, 0)
    u = gradient_sums[segment_of(offsets, x.shape[0]), :, :, None, None]
    gradient_x.copy_(gz * _columns(scale, dtype) + (u[:, 0] + 2 * u[:, 1] * d))
    if wanted is not None:
        wanted.copy_(gz)
    return gradient_x, gradient_residual


@_bn_stats_backward.register_fake
def _(
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
    residual_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    return _empty_gradients(dense(x), residual_dtype)


def _empty_gradients(x: Tensor, residual_dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(0) if residual_dtype is None else torch.empty_like(x, dtype=residual_dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, scale, shift, mean, offsets, residual, relu = inputs
    signs = output[2] if output[2].dim() == 4 else None
    ctx.residual_dtype = None if residual is None else residual.dtype
    ctx.relu = relu
    ctx.set_materialize_grads(False)
    unread = not relu or signs is not None  # the residual, whose memory is then free
    ctx.save_for_backward(x, scale, shift, mean, offsets, None if unread else residual, signs)


def _gradients(
    ctx: Any, gradient: Tensor | None, again: Tensor | None, gradient_sums: Tensor | None
) -> tuple[Tensor | None, ...]:
    """For x, scale, shift, mean, offsets, residual, relu; None stands for a zero gradient."""
    x, scale, shift, mean, offsets, residual, signs = ctx.saved_tensors
    if gradient is None:
        gradient, again = again, None
    if gradient is None:
        gradient = torch.zeros_like(x)
    if gradient_sums is None:
        gradient_sums = x.new_zeros((offsets.shape[0] - 1, 2, x.shape[1]), dtype=statistics_dtype(x.dtype))
    residual_dtype = ctx.residual_dtype if ctx.needs_input_grad[5] else None
    passed_on = not ctx.relu and again is None  # then the residual's gradient is y's own
    gradient_x, gradient_residual = _bn_stats_backward(
        gradient, again, gradient_sums, x, scale, shift, mean, offsets, residual, signs, ctx.relu,
        None if passed_on else residual_dtype,
    )  # fmt: skip
    if residual_dtype is None:
        return gradient_x, None, None, None, None, None, None
    return gradient_x, None, None, None, None, gradient.to(residual_dtype) if passed_on else gradient_residual, None


def _backward(
    ctx: Any, gradient: Tensor | None, gradient_sums: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, gradient, None, gradient_sums)


_bn_stats.register_autograd(_backward, setup_context=_save)


class _Fork(torch.autograd.Function):
    """`delt::bn_stats` with y handed out twice, which a registered operator may not do: its outputs share no memory."""

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
