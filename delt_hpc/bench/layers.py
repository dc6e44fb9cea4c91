"""The layers of a network: shapes, FLOPs, and what runs as one operator at each BatchNorm layer."""

import copy
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from delt_hpc.models.registry import build
from delt_kernels.teacher.fused import FusedTeacher

POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
CLASSES = 10


@dataclass(frozen=True)
class Call:
    """One call of a convolution, linear, BatchNorm or pooling layer with one image.

    Attributes:
        input: shape without the batch dimension.
        read, written: elements of input and output.
        flops: of the forward pass; counted for convolutions and linear layers only.
    """

    module: nn.Module
    input: tuple[int, ...]
    read: int
    written: int
    flops: int


class BatchNormLayer(NamedTuple):
    """What runs as one operator at a BatchNorm layer, e.g. `bn + add + relu` (`delt_kernels.teacher.rewrite.Site`).

    Attributes:
        forked: two other layers read the output.
    """

    operators: str
    forked: bool
    channels: int
    height: int
    width: int

    @property
    def name(self) -> str:
        return self.operators + ", forked" * self.forked


def calls(network: nn.Module, size: int) -> list[Call]:
    """All calls in their order for one image of size x size, on the meta device: nothing is computed."""
    found: list[Call] = []
    counter = FlopCounterMode(display=False)

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        flops = counter.get_total_flops() - sum(call.flops for call in found)
        found.append(Call(module, tuple(inputs[0].shape[1:]), inputs[0].numel(), output.numel(), flops))

    shapes = copy.deepcopy(network).to("meta")
    for module in shapes.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d, *POOLS)):
            module.register_forward_hook(note)
    with torch.no_grad(), counter:
        shapes(torch.empty(1, 3, size, size, device="meta"))
    return found


def batch_norm_layers(network: str, size: int) -> Counter[BatchNormLayer]:
    """How often each kind of layer occurs in a network, in the order of the calls."""
    model = build(network, CLASSES, size).eval()
    shapes = [call.input for call in calls(model, size) if isinstance(call.module, nn.BatchNorm2d)]
    sites = FusedTeacher(model, backend="torch").sites
    return Counter(
        BatchNormLayer(site.operators, site.forked, *shape) for site, shape in zip(sites, shapes, strict=True)
    )
