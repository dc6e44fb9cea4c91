"""The least time an iteration can take: operations and bytes that a network asks for, against a device's peaks.

Operations are those of convolutions and linear layers, forward and gradient of the input; the frozen weights have none.
Bytes are modelled, not counted. A convolution or linear layer reads its input and weights and writes its output, and as
much for the gradient. Between two of them everything is one pass: BatchNorm with its statistics, addition, ReLU and
pooling. Forward it reads the layer's input and the other summand and writes what the next layer reads. Backward it
reads the gradient of each reader, and the input once more, and writes the gradients of the input and of the summand.
Augmentation, loss and Adam are left out.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from delt_hpc.bench.peaks import Peak
from delt_kernels.teacher.fused import FusedTeacher
from delt_kernels.teacher.rewrite import Site

_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_OBSERVED = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, *_POOLS)


@dataclass(frozen=True)
class Product:
    """A convolution or linear layer: forward operations and activations (input and output) of one image; weights."""

    flops: int
    activations: int
    weights: int


@dataclass(frozen=True)
class Work:
    """What a network asks for.

    Attributes:
        products: every call of a convolution or linear layer.
        between: elements of one image that the passes between them move, forward and backward.
    """

    products: tuple[Product, ...]
    between: int

    def flops(self, images: int) -> float:
        """Of one iteration."""
        return 2.0 * images * sum(product.flops for product in self.products)

    def bytes(self, images: int, element: int) -> float:
        """Of one iteration; `element`: bytes of an activation or weight."""
        moved = sum(2 * (product.activations * images + product.weights) for product in self.products)
        return float(element * (moved + self.between * images))

    def seconds(self, images: int, element: int, peak: Peak) -> float:
        """The floor of one iteration: each product is held up by its operations or its bytes, the rest by bytes."""
        products = sum(
            2
            * max(
                images * product.flops / peak.flops_per_s,
                element * (product.activations * images + product.weights) / peak.bytes_per_s,
            )
            for product in self.products
        )
        return products + element * self.between * images / peak.bytes_per_s


@dataclass(frozen=True)
class _Call:
    """Elements of one image."""

    module: nn.Module
    read: int
    written: int


def work(network: nn.Module, size: int) -> Work:
    """From the real shapes of one image of size x size; nothing is computed.

    Args:
        network: one that torch.fx can follow, with BatchNorm, in evaluation mode.
    """
    calls = _calls(network, size)
    products = []
    for call in calls:
        if isinstance(call.module, nn.Conv2d | nn.Linear):
            weight = call.module.weight
            products.append(Product(2 * call.written * weight[0].numel(), call.read + call.written, weight.numel()))
    return Work(tuple(products), _between(calls, FusedTeacher(network, backend="torch").sites))


def _calls(network: nn.Module, size: int) -> list[_Call]:
    calls: list[_Call] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append(_Call(module, inputs[0].numel(), output.numel()))

    shapes = copy.deepcopy(network).to("meta")
    for module in shapes.modules():
        if isinstance(module, _OBSERVED):
            module.register_forward_hook(note)
    with torch.no_grad():
        shapes(torch.empty(1, 3, size, size, device="meta"))
    return calls


def _between(calls: list[_Call], sites: tuple[Site, ...]) -> int:
    """Elements that the passes of all BatchNorm calls move; sites and calls have the same order."""
    places = [i for i, call in enumerate(calls) if isinstance(call.module, nn.BatchNorm2d)]
    moved, partner = 0, False
    for number, (place, site) in enumerate(zip(places, sites, strict=True)):
        read = calls[place].read
        moved += read + 2 * read  # input; input again and its gradient
        if _is_summand(sites, number):
            partner = True  # the rest is moved in the next one's pass
            continue
        pooled = place + 1 < len(calls) and isinstance(calls[place + 1].module, _POOLS)
        written = calls[place + 1].written if pooled else read
        moved += written + written * (1 + site.forked)
        if "add" in site.operators and not partner:
            moved += 2 * read  # the summand and its gradient
        partner = False
    return moved


def _is_summand(sites: tuple[Site, ...], number: int) -> bool:
    """Is the layer the other summand of the next one, as in a block whose shortcut has a BatchNorm of its own?"""
    return sites[number].operators == "bn" and number + 1 < len(sites) and "add" in sites[number + 1].operators
