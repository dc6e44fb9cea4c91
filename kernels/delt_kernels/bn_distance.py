# mypy: disable-error-code="untyped-decorator"
# ruff: noqa: N803 (sizes and constants of a kernel are written in capitals)
"""Distance of each segment's BatchNorm statistics from the teacher's, summed over all layers (Yin et al. 2020).

    M = images of the segment * pixels;  delta = S1 / M;  e = S2 / M - delta^2 - v        (all per layer and channel)
    distance = sum over layers of weight * (|e|_2 + |delta|_2)
    d distance / d S1 = weight (q - 2 p delta) / M,  d distance / d S2 = weight p / M
    p = e / |e|_2,  q = delta / |delta|_2, each 0 where its norm is 0; an empty segment has distance 0

S1, S2 are the sums that `bn_stats` returns: of the activations minus the teacher's running mean, and of the squares of
these differences. v is the teacher's running variance. All tensors are float32, or all float64.

The operators `delt::bn_distance` and `delt::bn_distance_backward` take the sums of all layers concatenated: one tensor
for any number of layers, each [G, 2, C] and contiguous, so that the gradient splits into contiguous views. One program
processes one layer of one segment. Forward also saves the gradient (`local_grads`), which backward only has to scale.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from delt_kernels.dispatch import Backend, runs_kernels, uses_triton
from delt_kernels.layout import device_of
from delt_kernels.segments import next_power_of_two

WARPS = 4


@triton.jit
def _lookup(TABLE: tl.constexpr, index: tl.tensor) -> tl.tensor:
    """TABLE[index] of a table of constants. It lives in the code, so that nothing has to be copied to the device."""
    found = tl.where(index == 0, TABLE[0], TABLE[0])
    for i in tl.static_range(1, len(TABLE)):
        found = tl.where(index == i, TABLE[i], found)
    return found


@triton.jit
def bn_distance_forward(
    sums_ptr: tl.tensor,  # layer after layer [G, 2, C]
    variances_ptr: tl.tensor,  # layer after layer [C]
    offsets_ptr: tl.tensor,  # int32 [G + 1]
    layers_ptr: tl.tensor,  # [L, G], the distance of each layer
    weighted_ptr: tl.tensor,  # [L, G], multiplied by the layer's weight
    local_grads_ptr: tl.tensor,  # as the sums
    G: tl.tensor,
    STARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    layer, segment = tl.program_id(0), tl.program_id(1)
    start, channels, weight = _lookup(STARTS, layer), _lookup(CHANNELS, layer), _lookup(WEIGHTS, layer)
    images = tl.load(offsets_ptr + segment + 1) - tl.load(offsets_ptr + segment)
    count = tl.maximum(images.to(tl.float32) * _lookup(PIXELS, layer), 1.0)

    c = tl.arange(0, BLOCK)
    mask = c < channels
    offset = 2 * (G * start + segment * channels) + c
    delta = tl.load(sums_ptr + offset, mask=mask, other=0.0) / count
    e = tl.load(sums_ptr + offset + channels, mask=mask, other=0.0) / count - delta * delta
    e -= tl.load(variances_ptr + start + c, mask=mask, other=0.0)
    e = tl.where(images > 0, e, 0.0)
    e_norm, delta_norm = tl.sqrt(tl.sum(e * e, 0)), tl.sqrt(tl.sum(delta * delta, 0))
    tl.store(layers_ptr + layer * G + segment, e_norm + delta_norm)
    tl.store(weighted_ptr + layer * G + segment, weight * (e_norm + delta_norm))

    p = e / tl.where(e_norm > 0, e_norm, 1.0)
    q = delta / tl.where(delta_norm > 0, delta_norm, 1.0)
    tl.store(local_grads_ptr + offset, weight * (q - 2 * p * delta) / count, mask=mask)
    tl.store(local_grads_ptr + offset + channels, weight * p / count, mask=mask)


@triton.jit
def bn_distance_backward(
    local_grads_ptr: tl.tensor,  # layer after layer [G, 2, C]
    grad_distance_ptr: tl.tensor,  # [G]
    grad_sums_ptr: tl.tensor,  # as local_grads
    G: tl.tensor,
    STARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    layer, segment = tl.program_id(0), tl.program_id(1)
    columns = 2 * _lookup(CHANNELS, layer)
    c = tl.arange(0, BLOCK)
    offset = 2 * G * _lookup(STARTS, layer) + segment * columns + c
    local_grads = tl.load(local_grads_ptr + offset, mask=c < columns, other=0.0)
    tl.store(grad_sums_ptr + offset, local_grads * tl.load(grad_distance_ptr + segment), mask=c < columns)


def _starts(channels: Sequence[int]) -> tuple[int, ...]:
    return tuple(accumulate(channels, initial=0))[:-1]


def _split(flat: Tensor, channels: Sequence[int], segments: int) -> list[Tensor]:
    """The part of each layer, [G, 2, C]."""
    parts = flat.split([2 * segments * count for count in channels])
    return [part.view(segments, 2, count) for part, count in zip(parts, channels, strict=True)]


def _deviations(sums: Tensor, variance: Tensor, pixels: int, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """e and delta [G, C], both 0 for an empty segment; M [G, 1], 1 for an empty segment."""
    images = offsets.diff()[:, None]
    count = (images * pixels).clamp(min=1).to(sums.dtype)
    delta = sums[:, 0] / count
    return torch.where(images > 0, sums[:, 1] / count - delta.square() - variance, 0), delta, count


def bn_distance_torch(
    sums: Sequence[Tensor],
    variances: Sequence[Tensor],
    pixels: Sequence[int],
    weights: Sequence[float],
    offsets: Tensor,
) -> tuple[Tensor, Tensor]:
    """The torch backend."""
    layers = []
    for layer, variance, area in zip(sums, variances, pixels, strict=True):
        e, delta, _ = _deviations(layer, variance, area, offsets)
        layers.append(torch.linalg.vector_norm(e, dim=1) + torch.linalg.vector_norm(delta, dim=1))
    distance = torch.stack([weight * layer for weight, layer in zip(weights, layers, strict=True)]).sum(0)
    return distance, torch.stack(layers).detach()


def _local_grads_torch(
    sums: Sequence[Tensor],
    variances: Sequence[Tensor],
    pixels: Sequence[int],
    weights: Sequence[float],
    offsets: Tensor,
) -> Tensor:
    local_grads = []
    for layer, variance, area, weight in zip(sums, variances, pixels, weights, strict=True):
        e, delta, count = _deviations(layer, variance, area, offsets)
        tiny = torch.finfo(layer.dtype).tiny
        p, q = F.normalize(e, dim=1, eps=tiny), F.normalize(delta, dim=1, eps=tiny)
        local_grads.append((weight * torch.stack([q - 2 * p * delta, p], 1) / count[:, None]).flatten())
    return torch.cat(local_grads)


@torch.library.custom_op("delt::bn_distance", mutates_args=())
def _operator(
    sums: Tensor,
    variances: Tensor,
    channels: Sequence[int],
    pixels: Sequence[int],
    weights: Sequence[float],
    offsets: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """(distance [G], distances of the layers [L, G], local_grads in the layout of the sums)"""
    segments = offsets.shape[0] - 1
    if not runs_kernels(sums):
        arguments = _split(sums, channels, segments), variances.split(list(channels)), pixels, weights, offsets
        return *bn_distance_torch(*arguments), _local_grads_torch(*arguments)
    layers, local_grads = sums.new_empty((len(channels), segments)), torch.empty_like(sums)
    weighted = torch.empty_like(layers)
    with device_of(sums):
        bn_distance_forward[(len(channels), segments)](
            sums,
            variances,
            offsets.contiguous(),
            layers,
            weighted,
            local_grads,
            segments,
            STARTS=_starts(channels),
            CHANNELS=tuple(channels),
            PIXELS=tuple(pixels),
            WEIGHTS=tuple(map(float, weights)),
            BLOCK=next_power_of_two(max(channels)),
            num_warps=WARPS,
        )
    return weighted.sum(0), layers, local_grads


@_operator.register_fake
def _(
    sums: Tensor,
    variances: Tensor,
    channels: Sequence[int],
    pixels: Sequence[int],
    weights: Sequence[float],
    offsets: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    segments = offsets.shape[0] - 1
    return sums.new_empty(segments), sums.new_empty((len(channels), segments)), torch.empty_like(sums)


@torch.library.custom_op("delt::bn_distance_backward", mutates_args=())
def _backward_operator(local_grads: Tensor, grad_distance: Tensor, channels: Sequence[int]) -> Tensor:
    """The gradient of the sums: local_grads of each segment multiplied by grad_distance [G]."""
    segments = grad_distance.shape[0]
    if not runs_kernels(local_grads):
        parts = _split(local_grads, channels, segments)
        return torch.cat([(part * grad_distance[:, None, None]).flatten() for part in parts])
    grad_sums = torch.empty_like(local_grads)
    with device_of(local_grads):
        bn_distance_backward[(len(channels), segments)](
            local_grads,
            grad_distance.contiguous(),
            grad_sums,
            segments,
            STARTS=_starts(channels),
            CHANNELS=tuple(channels),
            BLOCK=next_power_of_two(2 * max(channels)),
            num_warps=WARPS,
        )
    return grad_sums


@_backward_operator.register_fake
def _(local_grads: Tensor, grad_distance: Tensor, channels: Sequence[int]) -> Tensor:
    return torch.empty_like(local_grads)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, layers, local_grads = output
    ctx.channels = inputs[2]
    ctx.save_for_backward(local_grads)
    ctx.mark_non_differentiable(layers, local_grads)


def _gradient(ctx: Any, grad_distance: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    (local_grads,) = ctx.saved_tensors
    return _backward_operator(local_grads, grad_distance, ctx.channels), None, None, None, None, None


_operator.register_autograd(_gradient, setup_context=_setup_context)


def bn_distance(
    sums: Sequence[Tensor],
    variances: Sequence[Tensor],
    pixels: Sequence[int],
    weights: Sequence[float],
    offsets: Tensor,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Distance of each segment's statistics from the teacher's, differentiable in `sums`.

    Args:
        sums: one tensor [G, 2, C_l] per layer, float32 or float64, as returned by `bn_stats`.
        variances: the teacher's running variances, one tensor [C_l] per layer, in the sums' type.
        pixels: height times width of each layer's input.
        weights: one per layer.
        offsets: int32 [G + 1] (segments.py).

    Returns:
        distance [G], and the unweighted distance of each layer [L, G], which is not differentiable.

    Raises:
        ValueError: no layers, lists of different lengths, or sums of a wrong shape.
    """
    if not sums or not len(sums) == len(variances) == len(pixels) == len(weights):
        raise ValueError(
            f"{len(sums)} sums, {len(variances)} variances, {len(pixels)} pixels and {len(weights)} weights; "
            "expected lists of one length, with at least one layer"
        )
    for i, (layer, variance) in enumerate(zip(sums, variances, strict=True)):
        if layer.shape != (offsets.shape[0] - 1, 2, variance.numel()):
            expected = [offsets.shape[0] - 1, 2, variance.numel()]
            raise ValueError(f"sums[{i}] has shape {list(layer.shape)}; expected {expected}")
    if not uses_triton(backend, sums[0]):
        return bn_distance_torch(sums, variances, pixels, weights, offsets)
    distance, layers, _ = _operator(
        torch.cat([layer.flatten() for layer in sums]),
        torch.cat(list(variances)),
        [layer.shape[2] for layer in sums],
        pixels,
        weights,
        offsets,
    )
    return distance, layers
