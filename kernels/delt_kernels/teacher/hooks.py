"""Statistics collected by hooks, without fused operators: for a teacher that torch.fx cannot trace."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from delt_kernels.batch_norm import channel_sums, deviations
from delt_kernels.teacher.frozen import Layer

LayerStats = tuple[float, Tensor, Tensor, int]
"""Of one call of a BatchNorm layer: weight, running variance [C], sums [G, 2, C], pixels (height x width)."""


class HookedTeacher(nn.Module):
    """images [N, 3, H, W], offsets int32 [G + 1] -> logits, LayerStats of each call of a BatchNorm layer."""

    def __init__(self, teacher: nn.Module, layers: list[Layer]) -> None:
        super().__init__()
        self.teacher = teacher
        self.batch_norms = nn.ModuleList(layer.vectors for layer in layers)
        self._layers = layers

    def forward(self, images: Tensor, offsets: Tensor) -> tuple[Tensor, list[LayerStats]]:
        bn_stats: list[LayerStats] = []

        def collect(layer: Layer, _: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0]
            sums = input_sums(x, layer.vectors.mean, offsets)
            bn_stats.append((layer.weight, layer.vectors.variance, sums, pixels_of(x)))

        hooks = [
            self.teacher.get_submodule(layer.name).register_forward_pre_hook(partial(collect, layer))
            for layer in self._layers
        ]
        try:
            return self.teacher(images), bn_stats
        finally:
            for hook in hooks:
                hook.remove()


def input_sums(x: Tensor, mean: Tensor, offsets: Tensor) -> Tensor:
    """x [N, C, H, W], mean [C], offsets [G + 1] -> sums [G, 2, C]: per segment sum(x - mean), sum((x - mean)^2)."""
    return channel_sums(deviations(x, mean), offsets)


def pixels_of(x: Tensor) -> int:
    return x.shape[2] * x.shape[3]
