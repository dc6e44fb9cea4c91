"""bn_distance: values and gradients against float64, and what callers rely on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers.tolerance import assert_no_worse
from torch import Tensor

from delt_kernels.bn_distance import bn_distance
from delt_kernels.dispatch import Backend

BACKENDS: list[Backend] = ["torch", "triton"]


@dataclass(frozen=True)
class Layers:
    """Inputs of BatchNorm layers minus the running means, [N, C, pixels] float64, and running variances [C]."""

    inputs: tuple[Tensor, ...]
    variances: tuple[Tensor, ...]
    weights: tuple[float, ...]
    split: tuple[int, ...]

    @classmethod
    def draw(cls, shapes: Sequence[tuple[int, int]], split: tuple[int, ...]) -> "Layers":
        random = torch.Generator().manual_seed(len(shapes))
        inputs = [torch.randn(split[-1], c, hw, generator=random, dtype=torch.float64) + 0.2 for c, hw in shapes]
        variances = [torch.rand(c, generator=random, dtype=torch.float64) + 0.5 for c, _ in shapes]
        return cls(tuple(inputs), tuple(variances), (10.0, *[1.0] * (len(shapes) - 1)), split)

    @property
    def pixels(self) -> list[int]:
        return [x.shape[2] for x in self.inputs]

    @property
    def offsets(self) -> Tensor:
        return torch.tensor(self.split, dtype=torch.int32)

    def sums(self) -> list[Tensor]:
        parts = [[x[a:b] for a, b in pairwise(self.split)] for x in self.inputs]
        return [torch.stack([torch.stack([d.sum((0, 2)), (d * d).sum((0, 2))]) for d in part]) for part in parts]


LAYERS = [
    Layers.draw([(5, 9)], (0, 3)),
    Layers.draw([(3, 49), (65, 4), (1, 1), (130, 1)], (0, 2, 2, 3, 7)),
    Layers.draw([(8, 1)] * 20, (0, 0, 1, 4)),
]


def hooks(
    sums: Sequence[Tensor], variances: Sequence[Tensor], pixels: Sequence[int], weights: Sequence[float], split: Any
) -> Tensor:
    """The published loss of each segment, written directly."""
    distances = []
    for g, (a, b) in enumerate(pairwise(split)):
        distance = sums[0].new_zeros(())
        for layer, variance, area, weight in zip(sums, variances, pixels, weights, strict=True):
            if a < b:
                mean, square = layer[g] / ((b - a) * area)
                gap = torch.linalg.vector_norm(variance - (square - mean**2)) + torch.linalg.vector_norm(mean)
                distance = distance + weight * gap
        distances.append(distance)
    return torch.stack(distances)


def results(
    run: Callable[..., Tensor], layers: Layers, offsets: Any, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Distances, then the gradients of their weighted sum with respect to each layer's sums."""
    sums = [x.to(device, dtype).requires_grad_() for x in layers.sums()]
    variances = [v.to(device, dtype) for v in layers.variances]
    distance = run(sums, variances, layers.pixels, layers.weights, offsets)
    factors = torch.arange(1, distance.numel() + 1, device=device, dtype=dtype)
    return [distance.detach(), *torch.autograd.grad((distance * factors).sum(), sums)]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layers", LAYERS)
def test_values_and_gradients(layers: Layers, backend: Backend, dtype: torch.dtype, device: torch.device) -> None:
    run = lambda *given: bn_distance(*given, backend=backend)[0]  # noqa: E731
    ours = results(run, layers, layers.offsets.to(device), dtype, device)
    theirs = results(hooks, layers, layers.split, dtype, device)
    exact = results(hooks, layers, layers.split, torch.float64, device)
    for one, other, true in zip(ours, theirs, exact, strict=True):
        if dtype == torch.float64:
            torch.testing.assert_close(one, true, rtol=1e-13, atol=1e-15)
        else:
            assert_no_worse(one, other, true)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_distance_of_the_activations_statistics(backend: Backend) -> None:
    layers = LAYERS[1]
    distance, unweighted = bn_distance(
        layers.sums(), layers.variances, layers.pixels, layers.weights, layers.offsets, backend=backend
    )
    assert unweighted.shape == (4, 4) and not unweighted.requires_grad
    for g, (a, b) in enumerate(pairwise(layers.split)):
        for x, variance, found in zip(layers.inputs, layers.variances, unweighted[:, g], strict=True):
            if a == b:
                assert found == 0
                continue
            var, mean = torch.var_mean(x[a:b], (0, 2), correction=0)
            torch.testing.assert_close(found, (variance - var).norm() + mean.norm(), rtol=1e-12, atol=0)
    weights = torch.tensor(layers.weights, dtype=torch.float64)
    torch.testing.assert_close(distance, weights @ unweighted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_where_a_norm_is_zero(backend: Backend, dtype: torch.dtype, device: torch.device) -> None:
    """Segments: mean and variance equal the teacher's; only the mean does; empty."""
    sums = torch.tensor([[[0.0, 0.0], [8.0, 4.0]], [[0.0, 0.0], [8.0, 8.0]], [[0.0, 0.0], [0.0, 0.0]]])
    sums = sums.to(device, dtype).requires_grad_()
    variance = torch.tensor([2.0, 1.0], device=device, dtype=dtype)
    offsets = torch.tensor([0, 1, 2, 2], dtype=torch.int32, device=device)
    distance, _ = bn_distance([sums], [variance], [4], [3.0], offsets, backend=backend)
    assert distance.tolist() == [0.0, 3.0, 0.0]
    (gradient,) = torch.autograd.grad(distance.sum(), sums)
    assert gradient.tolist() == [[[0, 0], [0, 0]], [[0, 0], [0, 0.75]], [[0, 0], [0, 0]]]


def test_segments_are_independent(device: torch.device) -> None:
    layers = LAYERS[1]
    run = lambda *given: bn_distance(*given, backend="triton")[0]  # noqa: E731
    alone = results(run, layers, layers.offsets.to(device), torch.float32, device)
    again = results(run, layers, layers.offsets.to(device), torch.float32, device)
    assert all(torch.equal(one, other) for one, other in zip(alone, again, strict=True))
    other_images = Layers(
        tuple(torch.cat([x[:3], x[3:] * 2 + 1]) for x in layers.inputs), layers.variances, layers.weights, layers.split
    )
    changed = results(run, other_images, layers.offsets.to(device), torch.float32, device)
    assert all(torch.equal(one[:3], other[:3]) for one, other in zip(alone, changed, strict=True))
    assert not any(torch.equal(one[3:], other[3:]) for one, other in zip(alone, changed, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_registration(dtype: torch.dtype, device: torch.device) -> None:
    layers = LAYERS[1]
    channels = [x.shape[1] for x in layers.inputs]
    flat = torch.cat([x.flatten() for x in layers.sums()]).to(device, dtype).requires_grad_()
    variances = torch.cat(layers.variances).to(device, dtype)
    given = flat, variances, channels, layers.pixels, list(layers.weights), layers.offsets.to(device)
    torch.library.opcheck(torch.ops.delt.bn_distance.default, given)
    factors = torch.rand(4, device=device, dtype=dtype)
    torch.library.opcheck(torch.ops.delt.bn_distance_backward.default, (flat.detach(), factors, channels))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: Backend) -> None:
    layers = LAYERS[1]
    rest = layers.variances[:2], layers.pixels[:2], layers.weights[:2], layers.offsets
    sums = [x.requires_grad_() for x in layers.sums()[:2]]
    assert torch.autograd.gradcheck(lambda *given: bn_distance(given, *rest, backend=backend)[0], sums)


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_into_one_graph(compiler: str, device: torch.device) -> None:
    layers = LAYERS[0]

    def run(*given: Any) -> Tensor:
        return bn_distance(*given, backend="triton")[0] * 2

    given = layers, layers.offsets.to(device), torch.float32, device
    compiled = results(torch.compile(run, fullgraph=True, backend=compiler), *given)
    for one, other in zip(compiled, results(run, *given), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


def test_strided_sums(device: torch.device) -> None:
    layers = LAYERS[0]
    sums = [x.to(device).transpose(1, 2).contiguous().transpose(1, 2) for x in layers.sums()]
    assert not sums[0].is_contiguous()
    given = [v.to(device) for v in layers.variances], layers.pixels, layers.weights, layers.offsets.to(device)
    by_triton, by_torch = (bn_distance(sums, *given, backend=backend)[0] for backend in ("triton", "torch"))
    torch.testing.assert_close(by_triton, by_torch, rtol=1e-12, atol=0)


def test_bad_arguments_are_rejected() -> None:
    sums, variance, offsets = torch.zeros(1, 2, 3), torch.ones(3), torch.tensor([0, 1], dtype=torch.int32)
    with pytest.raises(ValueError, match="0 sums"):
        bn_distance([], [], [], [], offsets)
    with pytest.raises(ValueError, match="1 sums, 1 variances, 1 pixels and 2 weights"):
        bn_distance([sums], [variance], [4], [1.0, 1.0], offsets)
    with pytest.raises(ValueError, match=r"sums\[0\] has shape \[1, 2, 3\]; expected \[1, 2, 4\]"):
        bn_distance([sums], [torch.ones(4)], [4], [1.0], offsets)
