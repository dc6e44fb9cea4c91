"""bn_relu_maxpool: values and gradients against float64, and what callers rely on."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.tolerance import assert_no_worse
from torch import Tensor

from delt_kernels.bn_relu_maxpool import bn_relu_maxpool
from delt_kernels.dispatch import Backend

BACKENDS: list[Backend] = ["torch", "triton"]
CL, NCHW = torch.channels_last, torch.contiguous_format
SHAPES = [
    ((3, 8, 6, 10), (0, 1, 1, 3)),
    ((1, 65, 7, 7), (0, 0, 1)),
    ((4, 3, 1, 1), (0, 4, 4)),
    ((3, 1, 2, 3), (0, 2, 3)),
    ((2, 3, 23, 25), (0, 1, 2)),
]
TYPED = [(*shape, torch.float32) for shape in SHAPES]
TYPED += [(*shape, dtype) for shape in SHAPES[:2] for dtype in (torch.float16, torch.bfloat16)]


@dataclass(frozen=True)
class Case:
    """Arguments of the operator and gradients of its outputs, on the CPU."""

    x: Tensor
    scale: Tensor
    shift: Tensor
    mean: Tensor
    split: tuple[int, ...]
    gradient: Tensor
    gradient_sums: Tensor

    @classmethod
    def draw(
        cls,
        shape: tuple[int, int, int, int],
        split: tuple[int, ...],
        layout: torch.memory_format = CL,
        dtype: torch.dtype = torch.float32,
    ) -> "Case":
        random = torch.Generator().manual_seed(sum(shape))
        images, channels, height, width = shape
        scale, shift, mean = torch.randn(3, channels, generator=random)
        x = torch.randn(shape, generator=random, dtype=torch.float64) * 1.5 + mean[:, None, None]
        pooled = images, channels, (height + 1) // 2, (width + 1) // 2
        gradient = torch.randn(pooled, generator=random, dtype=torch.float64)
        gradient_sums = torch.randn(len(split) - 1, 2, channels, generator=random) / (height * width)
        x, gradient = (tensor.to(dtype, memory_format=layout) for tensor in (x, gradient))
        return cls(x, scale, shift, mean, split, gradient, gradient_sums)


def published(x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's own operators in the type of x; sums in float32, float64 for float64."""
    half = torch.full_like(mean, 0.5)  # variance + eps = 1
    z = F.relu(F.batch_norm(x, mean, half, scale, shift, eps=0.5))
    wide = x if x.dtype == torch.float64 else x.float()
    d = wide - mean[:, None, None]
    sums = [torch.stack([d[a:b].sum((0, 2, 3)), d[a:b].square().sum((0, 2, 3))]) for a, b in pairwise(offsets.tolist())]
    return F.max_pool2d(z, 3, 2, 1), torch.stack(sums)


def results(
    run: Callable[..., tuple[Tensor, Tensor]],
    case: Case,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Pooled values, sums, and the gradient with respect to x; everything in `dtype` where given."""

    def ready(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device, dtype or tensor.dtype)

    x = ready(case.x).requires_grad_()
    offsets = torch.tensor(case.split, dtype=torch.int32, device=device)
    pooled, sums = run(x, ready(case.scale), ready(case.shift), ready(case.mean), offsets)
    gradients = ready(case.gradient), ready(case.gradient_sums)
    (gradient_x,) = torch.autograd.grad([pooled, sums], x, [gradients[0], gradients[1].to(sums.dtype)])
    return [pooled.detach(), sums.detach(), gradient_x]


def operator_with(backend: Backend) -> Callable[..., tuple[Tensor, Tensor]]:
    return partial(bn_relu_maxpool, backend=backend)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", [CL, NCHW])
@pytest.mark.parametrize(("shape", "split", "dtype"), TYPED)
def test_values_and_gradients(
    shape: Any, split: Any, dtype: torch.dtype, layout: Any, backend: Backend, device: torch.device
) -> None:
    case = Case.draw(shape, split, layout, dtype)
    ours, theirs = (results(run, case, device) for run in (operator_with(backend), published))
    exact = results(published, case, device, torch.float64)
    for one, other, true in zip(ours, theirs, exact, strict=True):
        assert_no_worse(one, other, true)
    assert ours[0].is_contiguous(memory_format=layout) and ours[2].is_contiguous(memory_format=layout)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", [CL, NCHW])
@pytest.mark.parametrize(("shape", "split"), SHAPES)
def test_float64(shape: Any, split: Any, layout: Any, backend: Backend, device: torch.device) -> None:
    case = Case.draw(shape, split, layout, torch.float64)
    exact = results(published, case, device, torch.float64)
    for one, true in zip(results(operator_with(backend), case, device, torch.float64), exact, strict=True):
        torch.testing.assert_close(one, true, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", [CL, NCHW])
def test_first_of_equal_values_gets_the_gradient(layout: Any, backend: Backend, device: torch.device) -> None:
    """With small integers everything is exact, and most windows contain their maximum more than once."""
    random = torch.Generator().manual_seed(0)
    x, gradient = torch.randint(-2, 3, (2, 4, 9, 10), generator=random), torch.randint(-8, 9, (2, 4, 5, 5))
    scale, shift, mean = torch.tensor([[1, -1, 2, 1], [0, 0, 1, -3], [0, 1, 0, 0]])
    case = Case(
        x.float().contiguous(memory_format=layout), scale.float(), shift.float(), mean.float(), (0, 1, 2),
        gradient.float(), torch.zeros(2, 2, 4),
    )  # fmt: skip
    for one, other in zip(results(operator_with(backend), case, device), results(published, case, "cpu"), strict=True):
        assert torch.equal(one.cpu(), other)


@pytest.mark.parametrize("layout", [CL, NCHW])
def test_segments_are_independent(layout: Any, device: torch.device) -> None:
    case = Case.draw((4, 5, 7, 6), (0, 1, 3, 4), layout)
    alone, again = (results(operator_with("triton"), case, device) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(alone, again, strict=True))
    other = Case.draw((4, 5, 7, 6), (0, 2, 4, 4), layout)
    other.x[2:] = case.x[1:3]
    other.gradient[2:] = case.gradient[1:3]
    moved = results(operator_with("triton"), other, device)
    assert torch.equal(moved[0][2:], alone[0][1:3])
    assert torch.equal(moved[1][1], alone[1][1])
    assert torch.equal(moved[2][2:], alone[2][1:3])


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs(backend: Backend, device: torch.device) -> None:
    drawn = Case.draw((2, 3, 10, 7), (0, 1, 2), NCHW)
    case = replace(drawn, x=drawn.x[:, :, ::2].mT, gradient=drawn.gradient[:, :, 1:4].mT)
    assert not case.x.is_contiguous() and not case.x.is_contiguous(memory_format=CL)
    for one, other in zip(results(operator_with(backend), case, device), results(published, case, device), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("layout", "dtype"), [(CL, torch.float32), (CL, torch.float64), (NCHW, torch.float64)])
def test_registration(layout: Any, dtype: torch.dtype, device: torch.device) -> None:
    case = Case.draw((2, 3, 3, 4), (0, 1, 2), layout, dtype)
    x = case.x.to(device).requires_grad_()
    scale, shift, mean = (tensor.to(device) for tensor in (case.scale, case.shift, case.mean))
    offsets = torch.tensor(case.split, dtype=torch.int32, device=device)
    given = x, scale, shift, mean, offsets
    torch.library.opcheck(torch.ops.delt.bn_relu_maxpool.default, given)
    pooled, sums, taps = torch.ops.delt.bn_relu_maxpool(*given)
    gradients = case.gradient.to(device), case.gradient_sums.to(device, sums.dtype)
    assert pooled.shape == case.gradient.shape
    torch.library.opcheck(
        torch.ops.delt.bn_relu_maxpool_backward.default, (*gradients, x.detach(), taps, scale, mean, offsets)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: Backend) -> None:
    case = Case.draw((2, 2, 3, 4), (0, 1, 2), CL, torch.float64)
    rest = *(t.double() for t in (case.scale, case.shift, case.mean)), torch.tensor(case.split, dtype=torch.int32)
    assert torch.autograd.gradcheck(lambda x: operator_with(backend)(x, *rest), case.x.requires_grad_())


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_into_one_graph(compiler: str, device: torch.device) -> None:
    case = Case.draw((2, 4, 6, 5), (0, 1, 2))

    def run(*given: Any) -> tuple[Tensor, Tensor]:
        pooled, sums = bn_relu_maxpool(*given, backend="triton")
        return pooled * 2, sums

    compiled = results(torch.compile(run, fullgraph=True, backend=compiler), case, device)
    for one, other in zip(compiled, results(run, case, device), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("x", torch.zeros(3, 4, 5), r"x is torch.float32 \[3, 4, 5\]; expected a float tensor \[N, C, H, W\]"),
        ("mean", torch.zeros(5), r"mean is torch.float32 \[5\]; expected float \[3\]"),
        ("shift", torch.ones(3, device="meta"), "x is on cpu, shift on meta; expected one device"),
        ("offsets", torch.tensor([0, 2]), r"offsets is torch.int64 \[2\]; expected int32 \[segments \+ 1\]"),
    ],
)
def test_bad_arguments_are_rejected(name: str, wrong: Tensor, message: str) -> None:
    channels = torch.ones(3)
    given = {"x": torch.zeros(2, 3, 4, 5), "scale": channels, "shift": channels, "mean": channels}
    given["offsets"] = torch.tensor([0, 2], dtype=torch.int32)
    with pytest.raises(ValueError, match=message):
        bn_relu_maxpool(**given | {name: wrong})
