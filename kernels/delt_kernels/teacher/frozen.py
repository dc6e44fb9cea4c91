"""A frozen copy of a teacher, and the vectors of its BatchNorm layers."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from delt_kernels.dispatch import statistics_dtype


class FrozenBatchNorm(nn.Module):
    """The four vectors [C] of a BatchNorm2d in evaluation mode: y = (x - mean) * scale + shift.

    scale = gamma / sqrt(running_var + eps), shift = beta, mean = running_mean, variance = running_var; computed in
    float64, stored in `dtype`.
    """

    scale: Tensor
    shift: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, layer: nn.BatchNorm2d, dtype: torch.dtype) -> None:
        super().__init__()
        assert layer.running_mean is not None and layer.running_var is not None
        variance = layer.running_var.double()
        scale = (variance + layer.eps).rsqrt()
        vectors = {
            "scale": scale * layer.weight.double() if layer.affine else scale,
            "shift": layer.bias.double() if layer.affine else torch.zeros_like(variance),
            "mean": layer.running_mean,
            "variance": variance,
        }
        for name, vector in vectors.items():
            self.register_buffer(name, vector.detach().to(dtype, copy=True))


class Layer(NamedTuple):
    """A BatchNorm layer of a teacher; `weight` multiplies its distance in the loss."""

    name: str
    vectors: FrozenBatchNorm
    weight: float


def frozen_layers(network: nn.Module, first_weight: float, dtype: torch.dtype) -> list[Layer]:
    """The BatchNorm2d layers with running statistics in modules() order; all but the first have weight 1."""
    layers = [
        (name, layer)
        for name, layer in network.named_modules()
        if isinstance(layer, nn.BatchNorm2d) and layer.track_running_stats
    ]
    return [
        Layer(name, FrozenBatchNorm(layer, dtype), 1.0 if i else first_weight) for i, (name, layer) in enumerate(layers)
    ]


def frozen_copy(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy without gradients: weights in `dtype`, BatchNorm layers in the type of its statistics."""
    frozen = copy.deepcopy(network).requires_grad_(False)
    for module in frozen.modules():
        target = statistics_dtype(dtype) if isinstance(module, _BatchNorm) else dtype
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(target)
    return frozen
