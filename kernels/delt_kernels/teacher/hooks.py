"""Statistics read by hooks, with nothing fused: for a teacher that torch.fx cannot follow."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from delt_kernels.segments import per_segment
from delt_kernels.teacher.frozen import Layer

Reading = tuple[float, Tensor, Tensor, int]
"""What one call of a BatchNorm layer leaves: weight, variance [C], sums [G, 2, C], pixels (height x width)."""


class WatchedTeacher(nn.Module):
    """images [N, 3, H, W], offsets int32 [G+1] -> logits, a reading for each call of a BatchNorm layer."""

    def __init__(self, teacher: nn.Module, layers: list[Layer]) -> None:
        super().__init__()
        self.teacher = teacher
        self.numbers = nn.ModuleList(layer.numbers for layer in layers)
        self._layers = layers

    def forward(self, images: Tensor, offsets: Tensor) -> tuple[Tensor, list[Reading]]:
        readings: list[Reading] = []

        def read(layer: Layer, _: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0]
            sums = channel_sums(x, layer.numbers.mean, offsets)
            readings.append((layer.weight, layer.numbers.variance, sums, pixels_of(x)))

        hooks = [
            self.teacher.get_submodule(layer.name).register_forward_pre_hook(partial(read, layer))
            for layer in self._layers
        ]
        try:
            return self.teacher(images), readings
        finally:
            for hook in hooks:
                hook.remove()


def channel_sums(x: Tensor, mean: Tensor, offsets: Tensor) -> Tensor:
    """x [N, C, H, W], mean [C], offsets [G+1] -> sums [G, 2, C]: per segment sum(x - mean), sum((x - mean)^2)."""
    d = x.to(mean.dtype) - mean[:, None, None]
    return per_segment(torch.stack([d.sum((2, 3)), (d * d).sum((2, 3))], dim=1), offsets)


def pixels_of(x: Tensor) -> int:
    return x.shape[2] * x.shape[3]
