"""The shortest time an iteration can take on a device: the FLOPs and bytes a network needs at the device's peaks.

FLOPs are those of convolutions and linear layers, forward and gradient of the input; frozen weights need none. Bytes
are modelled. A convolution or linear layer reads its input and weights and writes its output, and as much again for the
gradient. Everything between two of them (BatchNorm with its statistics, addition, ReLU, pooling) is one pass over
memory. Forward, it reads the layer's input and the residual, and writes the input of the next layer. Backward, it reads
one gradient from each reader and the layer's input once more, and writes the gradients of input and residual.
Augmentation, loss and Adam are left out.
"""

from dataclasses import dataclass

from torch import nn

from delt_hpc.bench.layers import POOLS, Call, calls
from delt_hpc.bench.peaks import Peak
from delt_kernels.teacher.fused import FusedTeacher
from delt_kernels.teacher.rewrite import Site


@dataclass(frozen=True)
class Product:
    """A convolution or linear layer.

    Attributes:
        flops: of one image, forward.
        activations: elements of input and output of one image.
        weights: elements.
    """

    flops: int
    activations: int
    weights: int


@dataclass(frozen=True)
class Work:
    """What a network needs.

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
        """Of one iteration, with `element` bytes for each activation and weight."""
        moved = sum(2 * (product.activations * images + product.weights) for product in self.products)
        return float(element * (moved + self.between * images))

    def seconds(self, images: int, element: int, peak: Peak) -> float:
        """The floor of one iteration: each product is limited by its FLOPs or its bytes, the rest by bytes."""
        products = sum(
            2
            * max(
                images * product.flops / peak.flops_per_s,
                element * (product.activations * images + product.weights) / peak.bytes_per_s,
            )
            for product in self.products
        )
        return products + element * self.between * images / peak.bytes_per_s


def work(network: nn.Module, size: int) -> Work:
    """What a network needs for images of size x size.

    Args:
        network: with BatchNorm, in evaluation mode, traceable by torch.fx.
    """
    made = calls(network, size)
    products = tuple(
        Product(call.flops, call.read + call.written, call.module.weight.numel())
        for call in made
        if isinstance(call.module, nn.Conv2d | nn.Linear)
    )
    return Work(products, _between(made, FusedTeacher(network, backend="torch").sites))


def _between(made: list[Call], sites: tuple[Site, ...]) -> int:
    """Elements that the passes of all BatchNorm calls move; `sites` has the order of the calls."""
    places = [i for i, call in enumerate(made) if isinstance(call.module, nn.BatchNorm2d)]
    moved, residual_counted = 0, False
    for number, (place, site) in enumerate(zip(places, sites, strict=True)):
        read = made[place].read
        moved += read + 2 * read  # forward the input; backward the input again and its gradient
        if _is_residual(sites, number):
            residual_counted = True  # its output is part of the next layer's pass
            continue
        pooled = place + 1 < len(made) and isinstance(made[place + 1].module, POOLS)
        written = made[place + 1].written if pooled else read
        moved += written + written * (1 + site.forked)
        if "add" in site.operators and not residual_counted:
            moved += 2 * read  # the residual and its gradient
        residual_counted = False
    return moved


def _is_residual(sites: tuple[Site, ...], number: int) -> bool:
    """Is the layer's output added in the next one, as in a block whose shortcut has a BatchNorm of its own?"""
    return sites[number].operators == "bn" and number + 1 < len(sites) and "add" in sites[number + 1].operators
