"""A teacher for packed batches: logits, and the distance of each segment's BatchNorm statistics from the teacher's."""

from typing import Self

import torch
from torch import Tensor, nn

from delt_kernels.bn_distance import bn_distance
from delt_kernels.dispatch import Backend, statistics_dtype
from delt_kernels.teacher.frozen import Layer, frozen_copy, frozen_layers
from delt_kernels.teacher.hooks import HookedTeacher
from delt_kernels.teacher.rewrite import Site, rewrite, table
from delt_kernels.teacher.trace import PackedTeacher, trace


class FusedTeacher(nn.Module):
    """A frozen copy of a classifier that also returns the statistics of its BatchNorm layers' inputs.

    Where torch.fx can trace the classifier's forward, each BatchNorm call and what surrounds it become one operator
    (`rewrite`); `sites` and `table()` list them. Where it cannot, hooks collect the same statistics and nothing is
    fused.

    Args:
        teacher: in evaluation mode, with BatchNorm2d layers that have running statistics; it is not changed.
        first_weight: the weight of the distance of the first BatchNorm2d in modules() order; the others have 1.
        backend: of the operators.
        dtype: of images, weights and activations; the teacher's own if None. Statistics are float32 (float64 for
            float64).
        channels_last: the memory format of activations; NCHW if false.

    Raises:
        ValueError: the teacher is in training mode, or has no BatchNorm2d with running statistics.
    """

    def __init__(
        self,
        teacher: nn.Module,
        first_weight: float = 1.0,
        backend: Backend = "auto",
        dtype: torch.dtype | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if any(module.training for module in teacher.modules()):
            raise ValueError("the teacher is in training mode; expected evaluation mode: call eval() first")
        dtype = dtype or next(p.dtype for p in teacher.parameters() if p.is_floating_point())
        layers = frozen_layers(teacher, first_weight, statistics_dtype(dtype))
        if not layers:
            raise ValueError(
                f"{type(teacher).__name__} has no statistics to match; expected at least one BatchNorm2d with running"
                " statistics"
            )
        self.backend: Backend = backend
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        frozen = frozen_copy(teacher, dtype).to(memory_format=self.memory_format)
        self.network, self.sites, self.trace_error = _network(frozen, layers, backend)

    def forward(self, images: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """images [N, 3, H, W], offsets int32 [G + 1] -> logits [N, K], distance [G] (`bn_distance`)."""
        logits, bn_stats = self.network(images.contiguous(memory_format=self.memory_format), offsets)
        weights, variances, sums, pixels = (list(column) for column in zip(*bn_stats, strict=True))
        distance, _ = bn_distance(sums, variances, pixels, weights, offsets, backend=self.backend)
        return logits.to(distance.dtype), distance

    def train(self, mode: bool = True) -> Self:
        """A teacher stays in evaluation mode."""
        return super().train(False)

    def table(self) -> str:
        """Each call of a BatchNorm layer, and the operator that it became."""
        error = f"torch.fx cannot trace this network ({self.trace_error}): nothing is fused\n"
        return (error if self.trace_error else "") + table(self.sites)


def _network(teacher: nn.Module, layers: list[Layer], backend: Backend) -> tuple[nn.Module, tuple[Site, ...], str]:
    """The network that returns logits and LayerStats, its sites, and the error of tracing (empty if traced)."""
    packed = PackedTeacher(teacher, layers)
    try:
        graph = trace(packed)
    except Exception as error:  # tracing runs the teacher's own code, which may raise anything
        sites = tuple(Site(layer.name, "statistics by hooks", layer.vectors.mean.numel()) for layer in layers)
        return HookedTeacher(teacher, layers), sites, f"{type(error).__name__}: {error}"
    return *rewrite(packed, graph, layers, backend), ""
