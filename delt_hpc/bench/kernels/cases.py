"""The operators of a recovery iteration on the shapes of a network.

Bytes are modelled: each tensor that a pass needs is read or written once, the signs of a residual's ReLU as bits.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from delt_hpc.bench.layers import BatchNormLayer, batch_norm_layers
from delt_hpc.keyed_random import seeded
from delt_hpc.recovery.augmentation import draw_view
from delt_kernels.adam import adam_
from delt_kernels.bn_distance import bn_distance
from delt_kernels.bn_relu_maxpool import bn_relu_maxpool
from delt_kernels.bn_stats import bn_stats, bn_stats_fork
from delt_kernels.crop_resize import crop_resize, crop_resize_backward
from delt_kernels.dispatch import Backend

SIZES = {"resnet18": 224, "resnet50": 224, "convnet4": 64}
# Images of each segment when eight batches of 100 (50 images a class) are packed, one in each of the eight rounds.
SEGMENTS = (14, 28, 40, 52, 64, 76, 88, 100)
ADAM_EPS, BETAS, FIRST_WEIGHT = 1e-8, (0.5, 0.9), 10.0
SMALLEST_CROP, JITTER = 0.25, 4

Tensors = tuple[Tensor, ...]
Function = Callable[..., Tensors]


class Batch(NamedTuple):
    """Packed images: the borders of the segments, and the type of the activations."""

    borders: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, images: int, dtype: torch.dtype, device: torch.device) -> "Batch":
        """Eight segments in the proportions of `SEGMENTS`; with few images some of them are empty."""
        borders = accumulate(SEGMENTS, initial=0)
        return cls(tuple(round(images * border / sum(SEGMENTS)) for border in borders), dtype, device)

    @property
    def images(self) -> int:
        return self.borders[-1]

    @property
    def segments(self) -> int:
        return len(self.borders) - 1

    @property
    def offsets(self) -> Tensor:
        return torch.tensor(self.borders, dtype=torch.int32, device=self.device)

    @property
    def rows(self) -> Tensor:
        return torch.arange(self.images, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device)

    def activations(self, *shape: int) -> Tensor:
        return self.normal(*shape).to(self.dtype, memory_format=torch.channels_last)


@dataclass(frozen=True)
class Case:
    """An operator on one shape.

    Attributes:
        count: how often it runs in an iteration of its network.
        run: (backend, *inputs) -> outputs.
        inputs: those with a gradient come first.
        leaves: how many inputs have a gradient.
        bytes: modelled, of the forward and of the backward pass.
        backward: (backend, *inputs, *gradients of the outputs) -> gradients of the leaves; None: autograd.
        terms: most numbers that are added up in one result.
    """

    network: str
    operator: str
    shape: str
    count: int
    run: Function
    inputs: Tensors
    leaves: int
    bytes: tuple[int, int]
    backward: Function | None = None
    terms: int = 1


def cases(network: str, batch: Batch) -> Iterator[Case]:
    """Every operator: each kind of BatchNorm layer, the distance of the statistics, the crop, Adam."""
    size = SIZES[network]
    layers = batch_norm_layers(network, size)
    makers: list[Callable[[], Case]] = [
        *(partial(_batch_norm, network, layer, count, batch) for layer, count in layers.items()),
        partial(_bn_distance, network, layers, batch),
        partial(_crop_resize, network, size, batch),
        partial(_adam, network, size, batch),
    ]
    for make in makers:
        with seeded("bench", network):
            case = make()
        yield case


def _batch_norm(network: str, layer: BatchNormLayer, count: int, batch: Batch) -> Case:
    adds, relu, pools = ("add" in layer.operators, "relu" in layer.operators, "pool" in layer.operators)
    shape = batch.images, layer.channels, layer.height, layer.width
    mean, shift, scale = (batch.normal(layer.channels) for _ in range(3))
    # Statistics near the layer's own, as those of an image near the minimum of the loss.
    x = (1.1 * batch.normal(*shape) + 1.2 * mean[:, None, None]).to(batch.dtype, memory_format=torch.channels_last)
    leaves = (x, batch.activations(*shape)) if adds else (x,)

    def run(backend: Backend, *inputs: Tensor) -> Tensors:
        x, *residual, scale, shift, mean, offsets = inputs
        if pools:
            return bn_relu_maxpool(x, scale, shift, mean, offsets, backend=backend)
        operator: Function = bn_stats_fork if layer.forked else bn_stats
        return operator(x, scale, shift, mean, offsets, residual[0] if residual else None, relu, backend=backend)

    return Case(
        network, layer.name, _text(shape), count, run, (*leaves, scale, shift, mean, batch.offsets), len(leaves),
        _batch_norm_bytes(x, adds, layer.forked, pools), terms=max(SEGMENTS) * layer.height * layer.width,
    )  # fmt: skip


def _batch_norm_bytes(x: Tensor, adds: bool, forked: bool, pools: bool) -> tuple[int, int]:
    if pools:
        images, channels, height, width = x.shape
        # Each output has a value, and one byte for the place of the maximum.
        pooled = images * channels * ((height + 1) // 2) * ((width + 1) // 2) * (x.element_size() + 1)
        return x.nbytes + pooled, pooled + 2 * x.nbytes
    signs = x.numel() // 8 if adds else 0
    return (2 + adds) * x.nbytes + signs, (3 + adds + forked) * x.nbytes + signs


def _bn_distance(network: str, layers: Counter[BatchNormLayer], batch: Batch) -> Case:
    """The distances of all layers at once."""
    listed = list(layers.elements())
    pixels = [layer.height * layer.width for layer in listed]
    weights = [FIRST_WEIGHT, *[1.0] * (len(listed) - 1)]
    sums, variances = [], []
    for layer, area in zip(listed, pixels, strict=True):
        noise = 0.1 * batch.normal(batch.segments, 2, layer.channels)
        noise[:, 1] += 1
        sums.append(noise * (batch.offsets.diff() * area)[:, None, None])
        variances.append(batch.normal(layer.channels).square() + 0.5)

    def run(backend: Backend, *inputs: Tensor) -> Tensors:
        *tensors, offsets = inputs
        return bn_distance(tensors[: len(listed)], tensors[len(listed) :], pixels, weights, offsets, backend=backend)[
            :1
        ]

    size = sum(layer.nbytes for layer in sums)
    return Case(
        network, "bn_distance", f"{len(listed)} layers", 1, run, (*sums, *variances, batch.offsets), len(listed),
        (2 * size + sum(variance.nbytes for variance in variances), 2 * size),
        terms=max(layer.channels for layer in listed),
    )  # fmt: skip


def _crop_resize(network: str, size: int, batch: Batch) -> Case:
    """The backward pass ends at the gradient of the packed images, which is what Adam takes."""
    views = [draw_view(size, SMALLEST_CROP, True, JITTER, "bench", g) for g in range(batch.segments)]
    table = [[*view.window, int(view.mirrored), *view.roll, 0] for view in views]
    images = batch.normal(batch.images, 3, size, size)

    def run(backend: Backend, images: Tensor, table: Tensor, rows: Tensor, offsets: Tensor) -> Tensors:
        dtype = images.dtype if images.dtype == torch.float64 else batch.dtype
        return (crop_resize(images, table, rows, offsets, dtype=dtype, backend=backend),)

    def backward(
        backend: Backend, _: Tensor, table: Tensor, rows: Tensor, offsets: Tensor, gradient: Tensor
    ) -> Tensors:
        return (crop_resize_backward(gradient, table, offsets, backend=backend),)

    inputs = (images, torch.tensor(table, dtype=torch.int32, device=batch.device), batch.rows, batch.offsets)
    moved = images.numel() * (images.element_size() + batch.dtype.itemsize)
    return Case(network, "crop_resize", _text(images.shape), 1, run, inputs, 1, (moved, moved), backward)


def _adam(network: str, size: int, batch: Batch) -> Case:
    images, exp_avg, gradient = (batch.normal(batch.images, 3, size, size) for _ in range(3))
    exp_avg_sq = batch.normal(batch.images, 3, size, size).square()
    t = torch.arange(1, batch.images + 1, device=batch.device, dtype=torch.float64)
    steps = torch.stack([0.1 / (1 - BETAS[0] ** t), 1 / (1 - BETAS[1] ** t).sqrt()], 1).float()
    low, high = -torch.full((3,), 2.0, device=batch.device), torch.full((3,), 2.0, device=batch.device)

    def run(backend: Backend, *inputs: Tensor) -> Tensors:
        images, exp_avg, exp_avg_sq, gradient, rows, steps, low, high = inputs
        adam_(images, exp_avg, exp_avg_sq, gradient, rows, steps, low, high, BETAS, ADAM_EPS, backend=backend)
        return images, exp_avg, exp_avg_sq

    inputs = (images, exp_avg, exp_avg_sq, gradient, batch.rows, steps, low, high)
    return Case(network, "adam", _text(images.shape), 1, run, inputs, 0, (7 * images.nbytes, 0))


def _text(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
