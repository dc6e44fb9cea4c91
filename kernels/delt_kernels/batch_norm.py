"""What `bn_stats` and `bn_relu_maxpool` share: checks of their arguments, and statistics and gradients in PyTorch.

Notation: d = x - mean; sums [G, 2, C] = (sum d, sum d^2) of each segment; u = dL/dsums.
"""

import torch
from torch import Tensor

from delt_kernels.dispatch import statistics_dtype
from delt_kernels.segments import per_segment, segment_of


def check(x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, offsets: Tensor, residual: Tensor | None) -> None:
    """
    Raises:
        ValueError: shapes, types or devices do not fit.
    """
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


def per_channel(vector: Tensor, dtype: torch.dtype) -> Tensor:
    """[C] -> [C, 1, 1], without gradient."""
    return vector.detach().to(dtype)[:, None, None]


def deviations(x: Tensor, mean: Tensor) -> Tensor:
    """d [N, C, H, W], in the type of statistics."""
    dtype = statistics_dtype(x.dtype)
    return x.to(dtype) - per_channel(mean, dtype)


def channel_sums(d: Tensor, offsets: Tensor) -> Tensor:
    """The sums of d. They go over the pixels of each image first, which Inductor fuses with what surrounds them."""
    return per_segment(torch.stack([d.sum((2, 3)), (d * d).sum((2, 3))], 1), offsets)


def empty_sums(x: Tensor, offsets: Tensor) -> Tensor:
    """Uninitialised memory for the sums of x."""
    return x.new_empty((offsets.shape[0] - 1, 2, x.shape[1]), dtype=statistics_dtype(x.dtype))


def input_gradient(grad_z: Tensor, grad_sums: Tensor, d: Tensor, scale: Tensor, offsets: Tensor) -> Tensor:
    """grad_x = grad_z scale + u[0] + 2 u[1] d, given u as `grad_sums`."""
    u = grad_sums[segment_of(offsets, d.shape[0]), :, :, None, None]
    return grad_z * per_channel(scale, d.dtype) + (u[:, 0] + 2 * u[:, 1] * d)
