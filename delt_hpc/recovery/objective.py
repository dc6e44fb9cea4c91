"""The loss of the reference engine: cross-entropy plus the distance from the teacher's BatchNorm statistics."""

from types import TracebackType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Loss(NamedTuple):
    """Scalars, except `cross_entropy_per_image` [B], which is detached."""

    total: Tensor
    cross_entropy: Tensor
    bn_distance: Tensor
    cross_entropy_per_image: Tensor


class Objective:
    """L = mean CE + r_bn sum_l w_l (|running_var_l - var_l|_2 + |running_mean_l - mean_l|_2)   (Yin et al. 2020; DELT)

    The sum is over the inputs of all BatchNorm2d layers of the teacher. `var` is the biased variance; w is
    first_bn_weight for the first layer in modules() order and 1 for the others. The teacher must be frozen and in
    evaluation mode. Use it as a context manager, which removes its hooks from the teacher at the end.
    """

    def __init__(self, teacher: nn.Module, r_bn: float, first_bn_weight: float) -> None:
        self._teacher, self._r_bn = teacher, r_bn
        layers = [
            layer for layer in teacher.modules() if isinstance(layer, nn.BatchNorm2d) and layer.track_running_stats
        ]
        self._weights = {layer: first_bn_weight if i == 0 else 1.0 for i, layer in enumerate(layers)}
        self._distances: list[Tensor] = []
        self._hooks = [layer.register_forward_pre_hook(self._add_distance) for layer in layers]

    def __enter__(self) -> "Objective":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def __call__(self, images: Tensor, labels: Tensor) -> Loss:
        """images [B, 3, S, S] normalised, labels int64 [B]."""
        self._distances.clear()
        per_image = F.cross_entropy(self._teacher(images), labels, reduction="none")
        bn_distance = torch.stack(self._distances).sum()
        self._distances.clear()
        cross_entropy = per_image.mean()
        return Loss(cross_entropy + self._r_bn * bn_distance, cross_entropy, bn_distance, per_image.detach())

    def _add_distance(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
        assert layer.running_var is not None and layer.running_mean is not None
        distance = torch.linalg.vector_norm(layer.running_var - variance)
        distance = distance + torch.linalg.vector_norm(layer.running_mean - mean)
        self._distances.append(self._weights[layer] * distance)
