"""A teacher for packed batches: logits, and the distance of every segment's BatchNorm statistics from its own."""

from typing import Self

import torch
from torch import Tensor, nn

from delt_kernels.bn_distance import bn_distance
from delt_kernels.dispatch import Backend, statistics_dtype
from delt_kernels.teacher.frozen import Layer, frozen_copy, frozen_layers
from delt_kernels.teacher.hooks import WatchedTeacher
from delt_kernels.teacher.rewrite import fuse
from delt_kernels.teacher.sites import Site, table
from delt_kernels.teacher.trace import PackedTeacher, trace


class FusedTeacher(nn.Module):
    """A frozen copy of a classifier whose BatchNorm layers also take the statistics of their inputs.

    Where torch.fx can follow the classifier's forward, each BatchNorm call runs as one operator with what surrounds it
    (`fuse`); `sites` and `table()` say which. Where it cannot, hooks read the same statistics and nothing is fused.

    Args:
        teacher: in evaluation mode, with BatchNorm2d layers that have running statistics; it is not changed.
        first_weight: the weight of the distance of the first BatchNorm2d in modules() order; the others' is 1.
        backend: of the operators.
        dtype: of images, weights and activations; the teacher's own if None. Statistics stay in float32 (float64 for
            float64).
        channels_last: activations lie in memory with their channels innermost.

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
            raise ValueError("the teacher is in training mode; expected one in evaluation mode: call eval() first")
        dtype = dtype or next(p.dtype for p in teacher.parameters() if p.is_floating_point())
        layers = frozen_layers(teacher, first_weight, statistics_dtype(dtype))
        if not layers:
            raise ValueError(f"{type(teacher).__name__} has no BatchNorm2d with running statistics to be matched")
        self.backend: Backend = backend
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        frozen = frozen_copy(teacher, dtype).to(memory_format=self.memory_format)
        self.network, self.sites, self.untraced = _network(frozen, layers, backend)

    def forward(self, images: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """images [N, 3, H, W], offsets int32 [G+1] -> logits [N, K], distance [G] (see `head.bn_distance`)."""
        logits, readings = self.network(images.contiguous(memory_format=self.memory_format), offsets)
        weights, variances, sums, pixels = (list(column) for column in zip(*readings, strict=True))
        distance, _ = bn_distance(sums, variances, pixels, weights, offsets, backend=self.backend)
        return logits.to(distance.dtype), distance

    def train(self, mode: bool = True) -> Self:
        """A teacher stays in evaluation mode."""
        return super().train(False)

    def table(self) -> str:
        """Every call of a BatchNorm layer and what runs there as one operator."""
        reason = f"torch.fx cannot follow this network ({self.untraced}): nothing is fused\n" if self.untraced else ""
        return reason + table(self.sites)


def _network(teacher: nn.Module, layers: list[Layer], backend: Backend) -> tuple[nn.Module, tuple[Site, ...], str]:
    """The network with its readings, its sites, and why it could not be traced, if so."""
    packed = PackedTeacher(teacher, layers)
    try:
        graph = trace(packed)
    except Exception as error:  # tracing runs the teacher's own code, which may raise anything
        sites = tuple(Site(layer.name, "statistics by hooks", layer.numbers.mean.numel()) for layer in layers)
        return WatchedTeacher(teacher, layers), sites, f"{type(error).__name__}: {error}"
    return *fuse(packed, graph, layers, backend), ""
