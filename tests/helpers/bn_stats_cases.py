"""Arguments for `bn_stats`, and the same computation by PyTorch's own operators."""

import itertools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CL, NCHW = torch.channels_last, torch.contiguous_format
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


class Case(NamedTuple):
    shape: tuple[int, int, int, int]
    split: tuple[int, ...]
    layout: torch.memory_format = CL
    dtype: torch.dtype = F32
    residual: torch.dtype | None = None
    relu: bool = True


class Arguments(NamedTuple):
    x: Tensor
    scale: Tensor
    shift: Tensor
    mean: Tensor
    offsets: Tensor
    residual: Tensor | None
    relu: bool

    def in_float64(self) -> "Arguments":
        return Arguments(*[wide(argument) for argument in self])

    def differentiable(self) -> list[Tensor]:
        return [tensor for tensor in (self.x, self.residual) if tensor is not None]


def wide(argument: Any) -> Any:
    if isinstance(argument, Tensor) and argument.is_floating_point():
        return argument.detach().double().requires_grad_(argument.requires_grad)
    return argument


def draw(case: Case, device: torch.device) -> tuple[Arguments, Tensor, Tensor]:
    """Arguments, and gradients of y and of the sums."""
    random = torch.Generator().manual_seed(sum(case.shape))
    x, residual, gradient = torch.randn(3, *case.shape, generator=random).to(device, memory_format=NCHW)
    scale, shift, mean = torch.randn(3, case.shape[1], generator=random).to(device)
    offsets = torch.tensor(case.split, dtype=torch.int32, device=device)
    x = (x * 1.5 + mean[:, None, None]).to(case.dtype).contiguous(memory_format=case.layout).requires_grad_()
    if case.residual is not None:
        residual = residual.to(case.residual).contiguous(memory_format=case.layout).requires_grad_()
    arguments = Arguments(x, scale, shift, mean, offsets, None if case.residual is None else residual, case.relu)
    gradient_sums = torch.randn(len(case.split) - 1, 2, case.shape[1], generator=random).to(device)
    return arguments, gradient.to(case.dtype), gradient_sums / max(1, case.shape[2] * case.shape[3])


def published(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, offsets: Tensor, residual: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor]:
    """PyTorch's own operators in the type of x; sums in float32, float64 for float64."""
    y = F.batch_norm(x, mean, torch.full_like(mean, 0.75), scale, shift, eps=0.25)
    if residual is not None:
        y = y + residual.to(x.dtype)
    d = (x if x.dtype == F64 else x.float()) - mean[:, None, None]
    runs = [d[a:b] for a, b in itertools.pairwise(offsets.tolist())]
    sums = [torch.stack([run.sum((0, 2, 3)), run.square().sum((0, 2, 3))]) for run in runs]
    return F.relu(y) if relu else y, torch.stack(sums)


def gradients(outputs: list[Tensor], weights: list[Tensor], arguments: Arguments) -> list[Tensor]:
    weights = [weight.to(output.dtype) for output, weight in zip(outputs, weights, strict=True)]
    return list(torch.autograd.grad(outputs, arguments.differentiable(), weights))
