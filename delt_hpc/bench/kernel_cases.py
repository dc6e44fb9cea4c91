"""What the kernels' benchmark computes: each operator on the shapes of a network, in the published way and in ours."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from delt_hpc.bench.kernel_case import Batch, Case, Run, Tensors, Way
from delt_hpc.bench.kernel_layers import Layer, layers_of
from delt_hpc.keyed_random import seeded
from delt_hpc.recovery.augmentation import augment, draw_view
from delt_kernels.adam import adam_
from delt_kernels.bn_distance import bn_distance
from delt_kernels.bn_relu_maxpool import bn_relu_maxpool
from delt_kernels.bn_stats import bn_stats, bn_stats_fork
from delt_kernels.crop_resize import crop_resize, crop_resize_backward
from delt_kernels.dispatch import Backend

SIZES = {"resnet18": 224, "resnet50": 224, "convnet4": 64}
BATCH_NORM_EPS, ADAM_EPS, BETAS, FIRST_WEIGHT = 1e-5, 1e-8, (0.5, 0.9), 10.0
SMALLEST_CROP, JITTER = 0.25, 4


def cases(network: str, batch: Batch) -> Iterator[Case]:
    """Every operator of an iteration of recovery: each kind of BatchNorm layer, the head, the crop, Adam."""
    size = SIZES[network]
    layers = layers_of(network, size)
    makers: list[Callable[[], Case]] = [
        *(partial(_batch_norm, network, layer, count, batch) for layer, count in layers.items()),
        partial(_head, network, layers, batch),
        partial(_crop, network, size, batch),
        partial(_adam, network, size, batch),
    ]
    for make in makers:
        with seeded("bench", network):
            case = make()
        yield case


def _batch_norm(network: str, layer: Layer, count: int, batch: Batch) -> Case:
    adds, relu, pools = ("add" in layer.operators, "relu" in layer.operators, "pool" in layer.operators)
    channels, pixels = layer.channels, layer.height * layer.width
    shape = batch.images, channels, layer.height, layer.width
    mean, beta = 0.3 * batch.normal(channels), 0.1 * batch.normal(channels)
    variance, gamma = batch.normal(channels).square() + 0.5, batch.normal(channels).square() + 0.5
    scale = (gamma.double() / (variance.double() + BATCH_NORM_EPS).sqrt()).float()
    # Statistics near the layer's own, as those of an image on its way to minimal loss.
    x = 1.1 * variance.sqrt()[:, None, None] * batch.normal(*shape) + 1.2 * mean[:, None, None]
    leaves = [x.to(batch.dtype, memory_format=torch.channels_last)]
    leaves += [batch.activations(*shape)] if adds else []
    counts = batch.counts(pixels)

    def published(x: Tensor, *rest: Tensor) -> Tensors:
        *residual, gamma, beta, mean, variance, _, _ = rest
        y = F.batch_norm(x, mean, variance, gamma, beta, eps=BATCH_NORM_EPS)
        y = y + residual[0] if residual else y
        y = F.relu(y) if relu else y
        y = F.max_pool2d(y, 3, 2, 1) if pools else y
        return (*[y] * (1 + layer.forked), *_moments(x, batch.split))

    def ours(backend: Backend) -> Way:
        def run(x: Tensor, *rest: Tensor) -> Tensors:
            *residual, _, beta, mean, _, scale, offsets = rest
            if pools:
                return bn_relu_maxpool(x, scale, beta, mean, offsets, backend=backend)
            operator: Run = bn_stats_fork if layer.forked else bn_stats
            return operator(x, scale, beta, mean, offsets, residual[0] if residual else None, relu, backend=backend)

        return Way(run, finish)

    def finish(*outputs: Tensor) -> Tensors:
        *ys, sums = outputs
        delta, square = (sums.double() / counts.clamp(min=1)[:, None]).unbind(1)
        return (*ys, torch.where(counts > 0, delta + mean.double(), 0), square - delta.square())

    pooled = (batch.images, channels, (layer.height + 1) // 2, (layer.width + 1) // 2)
    cotangents = [batch.activations(*(pooled if pools else shape)) for _ in range(1 + layer.forked)]
    # Times the count, so that statistics weigh as much in a pixel's gradient as what comes through y.
    cotangents += [batch.normal(len(batch.split) - 1, channels) * counts for _ in range(2)]
    return Case(
        network, layer.name, _text(shape), count,
        (*leaves, gamma, beta, mean, variance, scale, batch.offsets), len(leaves), tuple(cotangents),
        Way(published), ours, _batch_norm_bytes(leaves[0], adds, layer.forked, pools), int(counts.max()),
    )  # fmt: skip


def _batch_norm_bytes(x: Tensor, adds: bool, forked: bool, pools: bool) -> tuple[int, int]:
    if pools:
        images, channels, height, width = x.shape
        pooled = images * channels * ((height + 1) // 2) * ((width + 1) // 2) * (x.element_size() + 1)  # value and tap
        return x.nbytes + pooled, pooled + 2 * x.nbytes
    signs = x.numel() // 8 if adds else 0
    return (2 + adds) * x.nbytes + signs, (3 + adds + forked) * x.nbytes + signs


def _moments(x: Tensor, split: Sequence[int]) -> Tensors:
    """Means and variances of the segments, [G, C] each, a segment at a time as hooks see them; 0 for an empty one."""
    nothing = x.new_zeros(x.shape[1])
    pairs = [
        torch.var_mean(x[a:b], (0, 2, 3), correction=0) if a < b else (nothing, nothing) for a, b in pairwise(split)
    ]
    variances, means = zip(*pairs, strict=True)
    return torch.stack(means), torch.stack(variances)


def _head(network: str, layers: Counter[Layer], batch: Batch) -> Case:
    """All layers at once; the published norms are ours, op by op."""
    each = list(layers.elements())
    pixels = [layer.height * layer.width for layer in each]
    weights = [FIRST_WEIGHT, *[1.0] * (len(each) - 1)]
    sums, variances = [], []
    for layer, area in zip(each, pixels, strict=True):
        noise, counts = batch.normal(len(batch.split) - 1, 2, layer.channels), batch.counts(area).float()
        sums.append(torch.stack([0.1 * noise[:, 0] * counts, (1 + 0.1 * noise[:, 1]) * counts], 1))
        variances.append(batch.normal(layer.channels).square() + 0.5)

    def ours(backend: Backend) -> Way:
        def run(*given: Tensor) -> Tensors:
            *tensors, offsets = given
            return bn_distance(tensors[: len(each)], tensors[len(each) :], pixels, weights, offsets, backend=backend)[
                :1
            ]

        return Way(run)

    size = sum(layer.nbytes for layer in sums)
    return Case(
        network, "bn_distance", f"{len(each)} layers", 1,
        (*sums, *variances, batch.offsets), len(each), (batch.normal(len(batch.split) - 1),),
        ours("torch"), ours, (2 * size + sum(variance.nbytes for variance in variances), 2 * size),
        max(layer.channels for layer in each),
    )  # fmt: skip


def _crop(network: str, size: int, batch: Batch) -> Case:
    """Our backward pass stops at the gradient of the packed images, which is what Adam takes."""
    views = [draw_view(size, SMALLEST_CROP, True, JITTER, "bench", g) for g in range(len(batch.split) - 1)]
    rows = [[*view.window, int(view.mirrored), *view.roll, 0] for view in views]
    table = torch.tensor(rows, dtype=torch.int32, device=batch.device)
    images = batch.normal(batch.images, 3, size, size)

    def wanted(given: Tensor) -> torch.dtype:
        return given.dtype if given.dtype == torch.float64 else batch.dtype

    def published(images: Tensor, *_: Tensor) -> Tensors:
        seen = [augment(images[a:b], view) for (a, b), view in zip(pairwise(batch.split), views, strict=True) if a < b]
        return (torch.cat(seen).to(wanted(images), memory_format=torch.channels_last),)

    def ours(backend: Backend) -> Way:
        def run(images: Tensor, table: Tensor, rows: Tensor, offsets: Tensor) -> Tensors:
            return (crop_resize(images, table, rows, offsets, dtype=wanted(images), backend=backend),)

        def backward(_: Tensor, table: Tensor, rows: Tensor, offsets: Tensor, gradient: Tensor) -> Tensors:
            return (crop_resize_backward(gradient, table, offsets, backend=backend),)

        return Way(run, backward=backward)

    seen = batch.activations(batch.images, 3, size, size)
    return Case(
        network, "crop_resize", _text(images.shape), 1,
        (images, table, torch.arange(batch.images, device=batch.device), batch.offsets), 1, (seen,),
        Way(published), ours, (images.nbytes + seen.nbytes,) * 2,
    )  # fmt: skip


def _adam(network: str, size: int, batch: Batch) -> Case:
    images, first, gradient = (batch.normal(batch.images, 3, size, size) for _ in range(3))
    second = batch.normal(batch.images, 3, size, size).square()
    t = torch.arange(1, batch.images + 1, device=batch.device, dtype=torch.float64)
    steps = torch.stack([0.1 / (1 - BETAS[0] ** t), 1 / (1 - BETAS[1] ** t).sqrt()], 1).float()
    low, high = -torch.full((3,), 2.0, device=batch.device), torch.full((3,), 2.0, device=batch.device)

    def published(*given: Tensor) -> Tensors:
        images, first, second, gradient, _, steps, low, high = given
        first.lerp_(gradient, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        step, correction = steps[:, :, None, None, None].unbind(1)
        images -= step * first / (second.sqrt() * correction + ADAM_EPS)
        images.clamp_(low[:, None, None], high[:, None, None])
        return images, first, second

    def ours(backend: Backend) -> Way:
        def run(*given: Tensor) -> Tensors:
            images, first, second, gradient, rows, steps, low, high = given
            adam_(images, first, second, gradient, rows, steps, low, high, BETAS, ADAM_EPS, backend=backend)
            return images, first, second

        return Way(run)

    return Case(
        network, "adam", _text(images.shape), 1,
        (images, first, second, gradient, torch.arange(batch.images, device=batch.device), steps, low, high), 0, (),
        Way(published), ours, (7 * images.nbytes, 0),
    )  # fmt: skip


def _text(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
