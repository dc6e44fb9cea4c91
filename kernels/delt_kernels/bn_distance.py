# mypy: disable-error-code="untyped-decorator"
# ruff: noqa: N803 (sizes and constants of a kernel are written in capitals)
"""Distance of each segment's BatchNorm statistics from the teacher's, summed over all layers (Yin et al. 2020).

    M = images of the segment * pixels;  delta = S1 / M;  e = S2 / M - delta^2 - v        (all per layer and channel)
    distance = sum over layers of weight * (|e|_2 + |delta|_2)
    d distance / d S1 = weight (q - 2 p delta) / M,  d distance / d S2 = weight p / M
    p = e / |e|_2,  q = delta / |delta|_2, each 0 where its norm is 0; an empty segment has distance 0

S1, S2 are the sums that `bn_stats` gives, of the activations less the teacher's running mean and of their squares; v is
the teacher's running variance. Statistics are float32, or float64 throughout.

The operators `delt::bn_distance` and `delt::bn_distance_backward` take all layers' sums end to end, each layer's
[G, 2, C] contiguous: one tensor whatever the number of layers, and the gradient falls apart into contiguous views. One
program works on one layer of one segment.
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
def _entry(TABLE: tl.constexpr, index: tl.tensor) -> tl.tensor:
    """An entry of a table of constants, chosen without memory: nothing has to be copied to the device."""
    found = tl.where(index == 0, TABLE[0], TABLE[0])
    for i in tl.static_range(1, len(TABLE)):
        found = tl.where(index == i, TABLE[i], found)
    return found


@triton.jit
def _forward(
    sums_ptr: tl.tensor,  # layer after layer [G, 2, C]
    variances_ptr: tl.tensor,  # layer after layer [C]
    offsets_ptr: tl.tensor,  # int32 [G + 1]
    layers_ptr: tl.tensor,  # [L, G]: each layer's distance
    weighted_ptr: tl.tensor,  # [L, G]: times its weight
    slopes_ptr: tl.tensor,  # as the sums
    G: tl.tensor,
    STARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    layer, segment = tl.program_id(0), tl.program_id(1)
    start, channels, weight = _entry(STARTS, layer), _entry(CHANNELS, layer), _entry(WEIGHTS, layer)
    images = tl.load(offsets_ptr + segment + 1) - tl.load(offsets_ptr + segment)
    count = tl.maximum(images.to(tl.float32) * _entry(PIXELS, layer), 1.0)

    c = tl.arange(0, BLOCK)
    mask = c < channels
    sums = 2 * (G * start + segment * channels) + c
    delta = tl.load(sums_ptr + sums, mask=mask, other=0.0) / count
    e = tl.load(sums_ptr + sums + channels, mask=mask, other=0.0) / count - delta * delta
    e -= tl.load(variances_ptr + start + c, mask=mask, other=0.0)
    e = tl.where(images > 0, e, 0.0)
    e_norm, delta_norm = tl.sqrt(tl.sum(e * e, 0)), tl.sqrt(tl.sum(delta * delta, 0))
    tl.store(layers_ptr + layer * G + segment, e_norm + delta_norm)
    tl.store(weighted_ptr + layer * G + segment, weight * (e_norm + delta_norm))

    p = e / tl.where(e_norm > 0, e_norm, 1.0)
    q = delta / tl.where(delta_norm > 0, delta_norm, 1.0)
    tl.store(slopes_ptr + sums, weight * (q - 2 * p * delta) / count, mask=mask)
    tl.store(slopes_ptr + sums + channels, weight * p / count, mask=mask)


@triton.jit
def _backward(
    slopes_ptr: tl.tensor,  # layer after layer [G, 2, C]
    gradient_ptr: tl.tensor,  # [G]
    result_ptr: tl.tensor,  # as the slopes
    G: tl.tensor,
    STARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    layer, segment = tl.program_id(0), tl.program_id(1)
    columns = 2 * _entry(CHANNELS, layer)
    c = tl.arange(0, BLOCK)
    place = 2 * G * _entry(STARTS, layer) + segment * columns + c
    slopes = tl.load(slopes_ptr + place, mask=c < columns, other=0.0)
    tl.store(result_ptr + place, slopes * tl.load(gradient_ptr + segment), mask=c < columns)


def _starts(channels: Sequence[int]) -> tuple[int, ...]:
    return tuple(accumulate(channels, initial=0))[:-1]


def _split(flat: Tensor, channels: Sequence[int], segments: int) -> list[Tensor]:
    """Each layer's part, [G, 2, C]."""
    parts = flat.split([2 * segments * count for count in channels])
    return [part.view(segments, 2, count) for part, count in zip(parts, channels, strict=True)]


def _deviations(sums: Tensor, variance: Tensor, pixels: int, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """e and delta [G, C], both 0 for an empty segment; M [G, 1], at least 1."""
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
    """`bn_distance` in PyTorch."""
    layers = []
    for layer, variance, area in zip(sums, variances, pixels, strict=True):
        e, delta, _ = _deviations(layer, variance, area, offsets)
        layers.append(torch.linalg.vector_norm(e, dim=1) + torch.linalg.vector_norm(delta, dim=1))
    distance = torch.stack([weight * layer for weight, layer in zip(weights, layers, strict=True)]).sum(0)
    return distance, torch.stack(layers).detach()


def _torch_slopes(
    sums: Sequence[Tensor],
    variances: Sequence[Tensor],
    pixels: Sequence[int],
    weights: Sequence[float],
    offsets: Tensor,
) -> Tensor:
    slopes = []
    for layer, variance, area, weight in zip(sums, variances, pixels, weights, strict=True):
        e, delta, count = _deviations(layer, variance, area, offsets)
        tiny = torch.finfo(layer.dtype).tiny
        p, q = F.normalize(e, dim=1, eps=tiny), F.normalize(delta, dim=1, eps=tiny)
        slopes.append((weight * torch.stack([q - 2 * p * delta, p], 1) / count[:, None]).flatten())
    return torch.cat(slopes)


@torch.library.custom_op("delt::bn_distance", mutates_args=())
def _operator(
    sums: Tensor,
    variances: Tensor,
    channels: Sequence[int],
    pixels: Sequence[int],
    weights: Sequence[float],
    offsets: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Distance [G], each layer's [L, G], and the slopes, laid out as the sums."""
    segments = offsets.shape[0] - 1
    if not runs_kernels(sums):
        given = _split(sums, channels, segments), variances.split(list(channels)), pixels, weights, offsets
        return *bn_distance_torch(*given), _torch_slopes(*given)
    layers, slopes = sums.new_empty((len(channels), segments)), torch.empty_like(sums)
    weighted = torch.empty_like(layers)
    with device_of(sums):
        _forward[(len(channels), segments)](
            sums,
            variances,
            offsets.contiguous(),
            layers,
            weighted,
            slopes,
            segments,
            STARTS=_starts(channels),
            CHANNELS=tuple(channels),
            PIXELS=tuple(pixels),
            WEIGHTS=tuple(map(float, weights)),
            BLOCK=next_power_of_two(max(channels)),
            num_warps=WARPS,
        )
    return weighted.sum(0), layers, slopes


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
def _backward_operator(slopes: Tensor, gradient: Tensor, channels: Sequence[int]) -> Tensor:
    """The slopes of each segment times its `gradient` [G]."""
    segments = gradient.shape[0]
    if not runs_kernels(slopes):
        return torch.cat([(part * gradient[:, None, None]).flatten() for part in _split(slopes, channels, segments)])
    result = torch.empty_like(slopes)
    with device_of(slopes):
        _backward[(len(channels), segments)](
            slopes,
            gradient.contiguous(),
            result,
            segments,
            STARTS=_starts(channels),
            CHANNELS=tuple(channels),
            BLOCK=next_power_of_two(2 * max(channels)),
            num_warps=WARPS,
        )
    return result


@_backward_operator.register_fake
def _(slopes: Tensor, gradient: Tensor, channels: Sequence[int]) -> Tensor:
    return torch.empty_like(slopes)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, layers, slopes = output
    ctx.channels = inputs[2]
    ctx.save_for_backward(slopes)
    ctx.mark_non_differentiable(layers, slopes)


def _gradient(ctx: Any, gradient: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    (slopes,) = ctx.saved_tensors
    return _backward_operator(slopes, gradient, ctx.channels), None, None, None, None, None


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
        sums: of each layer [G, 2, C_l] float32 or float64, as `bn_stats` gives them.
        variances: the teacher's running variance of each layer, [C_l], in the sums' type.
        pixels: of each layer, height times width.
        weights: of each layer.
        offsets: int32 [G + 1]; see `segments`.

    Returns:
        distance [G], and each layer's distance before its weight, [L, G], without gradient.

    Raises:
        ValueError: no layers, not as many of one thing as of another, or sums of another shape.
    """
    if not sums or not len(sums) == len(variances) == len(pixels) == len(weights):
        raise ValueError(
            f"{len(sums)} sums, {len(variances)} variances, {len(pixels)} pixels and {len(weights)} weights; "
            "expected one of each for every layer, and at least one layer"
        )
    for i, (layer, variance) in enumerate(zip(sums, variances, strict=True)):
        if layer.shape != (offsets.shape[0] - 1, 2, variance.numel()):
            expected = [offsets.shape[0] - 1, 2, variance.numel()]
            raise ValueError(f"sums {i} have shape {list(layer.shape)}; expected {expected}")
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
