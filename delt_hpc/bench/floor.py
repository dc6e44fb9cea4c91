"""The shortest time a step can take on a device: the FLOPs and bytes a network needs at the device's peaks.

FLOPs are those of convolutions and linear layers: forward, gradient of the input, and in training gradient of the
weights. Bytes are modelled. Each of these products moves the layer's input, output and weights once. Everything between
two layers (BatchNorm with its statistics, addition, ReLU, pooling) is one pass over memory. Forward, it reads the
layer's input and the residual, and writes the input of the next layer. Backward, it reads one gradient from each reader
and the layer's input once more, and writes the gradients of input and residual. Augmentation, loss and optimiser are
left out.
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

    def seconds(self, images: float, element: int, peak: Peak) -> float:
        """It is limited by its FLOPs or by its bytes."""
        moved = element * (self.activations * images + self.weights)
        return max(images * self.flops / peak.flops_per_s, moved / peak.bytes_per_s)


@dataclass(frozen=True)
class Work:
    """What a network needs.

    Attributes:
        products: every call of a convolution or linear layer.
        forward, backward: elements of one image that the passes between them move.
    """

    products: tuple[Product, ...]
    forward: int
    backward: int

    def flops(self, images: float) -> float:
        """Of one iteration of recovery."""
        return 2.0 * images * sum(product.flops for product in self.products)

    def bytes(self, images: float, element: int) -> float:
        """Of one iteration of recovery, with `element` bytes for each activation and weight."""
        moved = sum(2 * (product.activations * images + product.weights) for product in self.products)
        return float(element * (moved + (self.forward + self.backward) * images))

    def seconds(self, images: float, element: int, peak: Peak) -> float:
        """The floor of an iteration of recovery: the forward pass and the gradient of the images."""
        return 2 * self._products(images, element, peak) + self._passes(images, element, peak)

    def inference_seconds(self, images: float, element: int, peak: Peak) -> float:
        """The floor of a forward pass."""
        return self._products(images, element, peak) + element * self.forward * images / peak.bytes_per_s

    def training_seconds(self, images: float, element: int, peak: Peak) -> float:
        """The floor of a training step: the forward pass, and the gradients of weights and of all inputs but images."""
        first = self.products[0].seconds(images, element, peak)
        return 3 * self._products(images, element, peak) - first + self._passes(images, element, peak)

    def _products(self, images: float, element: int, peak: Peak) -> float:
        return sum(product.seconds(images, element, peak) for product in self.products)

    def _passes(self, images: float, element: int, peak: Peak) -> float:
        return element * (self.forward + self.backward) * images / peak.bytes_per_s


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
    return Work(products, *_between(made, FusedTeacher(network, backend="torch").sites))


def _between(made: list[Call], sites: tuple[Site, ...]) -> tuple[int, int]:
    """Elements that the passes of all BatchNorm calls move, forward and backward; `sites` is in the calls' order."""
    places = [i for i, call in enumerate(made) if isinstance(call.module, nn.BatchNorm2d)]
    forward, backward, residual_counted = 0, 0, False
    for number, (place, site) in enumerate(zip(places, sites, strict=True)):
        read = made[place].read
        forward += read
        backward += 2 * read  # the input again, and its gradient
        if _is_residual(sites, number):
            residual_counted = True  # its output is part of the next layer's pass
            continue
        pooled = place + 1 < len(made) and isinstance(made[place + 1].module, POOLS)
        written = made[place + 1].written if pooled else read
        forward += written
        backward += written * (1 + site.forked)
        if "add" in site.operators and not residual_counted:
            forward += read  # the residual
            backward += read  # its gradient
        residual_counted = False
    return forward, backward


def _is_residual(sites: tuple[Site, ...], number: int) -> bool:
    """Is the layer's output added in the next one, as in a block whose shortcut has a BatchNorm of its own?"""
    return sites[number].operators == "bn" and number + 1 < len(sites) and "add" in sites[number + 1].operators
