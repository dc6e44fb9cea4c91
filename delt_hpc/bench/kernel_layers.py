"""The BatchNorm layers of the networks that the kernels' benchmark takes its shapes from."""

from collections import Counter
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from delt_hpc.models.registry import build
from delt_kernels.teacher.fused import FusedTeacher

CLASSES = 10


class Layer(NamedTuple):
    """What runs as one operator at a BatchNorm layer.

    Args:
        operators: e.g. `bn + add + relu` (`delt_kernels.teacher.rewrite.Site`).
        forked: two others read the output.
    """

    operators: str
    forked: bool
    channels: int
    height: int
    width: int

    @property
    def name(self) -> str:
        return self.operators + ", forked" * self.forked


def layers_of(network: str, size: int) -> Counter[Layer]:
    """How often each kind of layer occurs in a network on images of size x size, in the order of the calls."""
    model = build(network, CLASSES, size).eval()
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        shapes[name] = tuple(inputs[0].shape[1:])

    hooks = [
        module.register_forward_pre_hook(partial(note, name))
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return Counter(
        Layer(site.operators, site.forked, *shapes[site.name]) for site in FusedTeacher(model, backend="torch").sites
    )
