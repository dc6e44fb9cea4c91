"""bn_stats: values and gradients against float64, and what callers rely on."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.bn_stats_cases import BF16, CL, F16, F32, F64, NCHW, Case, draw, gradients, published
from helpers.tolerance import assert_no_worse
from torch import Tensor

from delt_kernels.bn_stats import bn_stats, bn_stats_fork
from delt_kernels.dispatch import uses, without

CASES = [
    Case((5, 8, 3, 3), (0, 5)),
    Case((7, 16, 5, 3), (0, 2, 7), residual=F32),
    Case((6, 24, 7, 7), (0, 1, 1, 4, 6), dtype=BF16, residual=BF16),
    Case((6, 24, 7, 7), (0, 1, 1, 4, 6), NCHW, F16, residual=F16),
    Case((3, 40, 1, 1), (0, 3), dtype=BF16),
    Case((3, 136, 2, 5), (0, 1, 2, 3), dtype=F16, residual=F32),
    Case((4, 7, 4, 5), (0, 4, 4), NCHW, residual=F32),
    Case((2, 3, 17, 13), (0, 1, 2), residual=BF16, relu=False),
    Case((2, 3, 25, 21), (0, 1, 2), NCHW, BF16),
    Case((1, 65, 7, 7), (0, 0, 1), residual=F32),
    Case((1, 65, 7, 7), (0, 0, 1), NCHW, F16, relu=False),
    Case((4, 1, 5, 5), (0, 2, 4), dtype=F16),
    Case((9, 64, 7, 7), (0, 4, 9), relu=False),
    Case((0, 8, 3, 3), (0, 0, 0), residual=F32),
]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case: Case, backend: Any, device: torch.device) -> None:
    arguments, *weights = draw(case, device)
    exact_arguments = arguments.in_float64()
    outputs, theirs = bn_stats(*arguments, backend=backend), published(*arguments)
    exact = published(*exact_arguments)
    assert outputs[0].is_contiguous(memory_format=case.layout) or not outputs[0].numel()
    for triple in zip(outputs, theirs, exact, strict=True):
        assert_no_worse(*triple)
    triples = zip(
        gradients([*outputs], weights, arguments),
        gradients([*theirs], weights, arguments),
        gradients([*exact], weights, exact_arguments),
        strict=True,
    )
    for triple in triples:
        assert_no_worse(*triple)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(
    "case",
    [
        Case((3, 8, 3, 3), (0, 1, 3), residual=F32),
        Case((3, 8, 3, 3), (0, 1, 3), NCHW, dtype=F16),
        Case((3, 5, 3, 3), (0, 1, 3), dtype=BF16, residual=F32, relu=False),
    ],
    ids=str,
)
def test_gradients_of_both_consumers(case: Case, backend: Any, device: torch.device) -> None:
    arguments, gradient, gradient_sums = draw(case, device)
    exact_arguments = arguments.in_float64()
    y, y2, sums = bn_stats_fork(*arguments, backend=backend)
    assert torch.equal(y, y2) and y.data_ptr() == y2.data_ptr()
    weights = [gradient, gradient.flip(0), gradient_sums]
    expected, exact = published(*arguments), published(*exact_arguments)
    triples = zip(
        gradients([y, y2, sums], weights, arguments),
        gradients([expected[0], *expected], weights, arguments),
        gradients([exact[0], *exact], weights, exact_arguments),
        strict=True,
    )
    for triple in triples:
        assert_no_worse(*triple)


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (1, 2)], ids=str)
@pytest.mark.parametrize("relu", [True, False])
def test_unused_outputs(relu: bool, used: tuple[int, ...], device: torch.device) -> None:
    arguments, gradient, gradient_sums = draw(Case((3, 8, 3, 3), (0, 1, 3), residual=F32, relu=relu), device)
    weights = [gradient, gradient.flip(0), gradient_sums]
    found = []
    for backend in ("torch", "triton"):
        outputs = bn_stats_fork(*arguments, backend=backend)  # type: ignore[arg-type]
        chosen = sum((outputs[i] * weights[i]).sum() for i in used)
        found.append(torch.autograd.grad(chosen, arguments.differentiable(), materialize_grads=True))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", [(3, 8, 3, 3), (5, 72, 2, 3)])
def test_without_an_optimisation_the_results_are_the_same(shape: tuple[int, ...], kernel_device: torch.device) -> None:
    """Bitwise in float32. The mask is then computed again from x and the residual, and autograd adds the gradients."""
    arguments, gradient, gradient_sums = draw(Case(shape, (0, 1, shape[0]), residual=F32), kernel_device)  # type: ignore[arg-type]

    def results() -> tuple[list[Tensor], int, str]:
        y, y2, sums = bn_stats_fork(*arguments, backend="triton")
        found = gradients([y, y2, sums], [gradient, gradient.flip(0), gradient_sums], arguments)
        bits = torch.ops.delt.bn_stats(*arguments)[2]
        return [y, y2, sums, *found], bits.numel(), type(y.grad_fn).__name__

    expected, bits, node = results()
    with without("relu_bitmask"):
        assert not uses("relu_bitmask")
        recomputed, no_bits, same_node = results()
    with without("bn_stats_fork"):
        unforked, same_bits, other_node = results()
    assert bits == same_bits > 0 and no_bits == 0
    assert node == same_node != other_node
    for found in (recomputed, unforked):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert uses("relu_bitmask") and uses("bn_stats_fork")


@pytest.mark.parametrize("wanted", ["x", "residual"])
def test_only_one_gradient_is_needed(wanted: str, device: torch.device) -> None:
    arguments, gradient, gradient_sums = draw(Case((3, 8, 3, 3), (0, 1, 3), residual=F32), device)
    both = gradients([*bn_stats(*arguments, backend="triton")], [gradient, gradient_sums], arguments)
    detached = arguments._replace(**{wanted: getattr(arguments, wanted).detach()})
    y, sums = bn_stats(*detached, backend="triton")
    other = detached.residual if wanted == "x" else detached.x
    assert other is not None
    (found,) = torch.autograd.grad((y * gradient).sum() + (sums * gradient_sums).sum(), other)
    assert torch.equal(found, both[1] if wanted == "x" else both[0])


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_gradient_in_float64(backend: Any, relu: bool, device: torch.device) -> None:
    arguments, *_ = draw(Case((3, 2, 2, 1), (0, 1, 1, 3), dtype=F64, residual=F64, relu=relu), device)
    arguments = arguments.in_float64()

    def function(x: Tensor, residual: Tensor) -> tuple[Tensor, ...]:
        return bn_stats_fork(*arguments._replace(x=x, residual=residual), backend=backend)

    assert torch.autograd.gradcheck(function, arguments.differentiable())


@pytest.mark.parametrize("layout", [CL, NCHW])
def test_segments_are_independent(layout: torch.memory_format, device: torch.device) -> None:
    """Bitwise, at any place in the batch; a NaN stays in its segment."""
    arguments, gradient, gradient_sums = draw(Case((3, 64, 6, 6), (0, 3), layout, residual=F32), device)
    found = []
    for before in (0, 0, 2):
        offsets = torch.tensor([0, before, before + 3, 5], dtype=torch.int32, device=device)
        surrounded = [
            torch.full((5, *tensor.shape[1:]), torch.nan, device=device).contiguous(memory_format=layout)
            for tensor in (arguments.x, arguments.residual, gradient)
            if tensor is not None
        ]
        for batch, tensor in zip(surrounded, (arguments.x, arguments.residual, gradient), strict=True):
            assert tensor is not None
            batch[before : before + 3] = tensor.detach()
        x, residual, weight = surrounded
        moved = arguments._replace(x=x.requires_grad_(), offsets=offsets, residual=residual.requires_grad_())
        y, sums = bn_stats(*moved, backend="triton")
        gs = torch.autograd.grad([y, sums], [x, residual], [weight, gradient_sums.expand(3, 2, 64)])
        found.append([sums[1], *(tensor[before : before + 3] for tensor in (y, *gs))])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("layout", [CL, NCHW])
def test_strided_input(layout: torch.memory_format, device: torch.device) -> None:
    case = Case((3, 8, 4, 6), (0, 1, 3), layout, residual=F32)
    arguments, gradient, gradient_sums = draw(case, device)
    weights = [gradient[:, :, ::2], gradient_sums]
    cut = arguments._replace(x=arguments.x[:, :, ::2], residual=arguments.residual[:, :, ::2])  # type: ignore[index]
    found = bn_stats(*cut, backend="triton")
    expected = published(*cut)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients([*found], weights, cut), gradients([*expected], weights, cut))


def test_mixed_layouts(device: torch.device) -> None:
    arguments, gradient, gradient_sums = draw(Case((3, 8, 4, 6), (0, 1, 3), residual=F32), device)
    mixed = arguments._replace(residual=arguments.residual.contiguous())  # type: ignore[union-attr]
    weights = [gradient.expand(3, 8, 4, 6), gradient_sums[:, :, :1].expand(2, 2, 8)]
    found, expected = bn_stats(*mixed, backend="triton"), published(*mixed)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients([*found], weights, mixed), gradients([*expected], weights, mixed))


def test_sums_of_a_mean_far_from_zero(device: torch.device) -> None:
    """The variance is accurate in float32 with a mean of 300 standard deviations."""
    arguments, *_ = draw(Case((8, 8, 8, 8), (0, 8)), device)
    x = arguments.x.detach() + 450.0
    _, sums = bn_stats(*arguments._replace(x=x, mean=arguments.mean + 450.0), backend="triton")
    delta, square = sums[0] / (8 * 64)
    exact = x.double().var((0, 2, 3), unbiased=False)
    torch.testing.assert_close((square - delta**2).double(), exact, rtol=1e-5, atol=0)


def test_relu_keeps_nan(device: torch.device) -> None:
    arguments, *_ = draw(Case((1, 8, 1, 2), (0, 1)), device)
    x = arguments.x.detach().clone()
    x[0, 3, 0, 1] = torch.nan
    for backend in ("torch", "triton"):
        y, _ = bn_stats(*arguments._replace(x=x), backend=backend)  # type: ignore[arg-type]
        assert torch.equal(y.isnan(), x.isnan())


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(("layout", "residual"), [(CL, True), (NCHW, False)])
def test_registration(layout: torch.memory_format, residual: bool, dtype: torch.dtype, device: torch.device) -> None:
    case = Case((2, 8, 2, 3), (0, 1, 2), layout, dtype, dtype if residual else None)
    arguments, gradient, gradient_sums = draw(case, device)
    torch.library.opcheck(torch.ops.delt.bn_stats, tuple(arguments))
    x, *tables, other, relu = (a.detach() if isinstance(a, Tensor) else a for a in arguments)
    for grad_y2 in (None, gradient):
        rest = (x, *tables, other, None, relu, dtype if residual else None)
        torch.library.opcheck(torch.ops.delt.bn_stats_backward, (gradient, grad_y2, gradient_sums.to(dtype), *rest))


@pytest.mark.parametrize(
    ("compiler", "backend"), [("aot_eager", "torch"), ("aot_eager", "triton"), ("inductor", "triton")]
)
def test_compiles_into_one_graph(compiler: str, backend: Any, device: torch.device) -> None:
    arguments, gradient, gradient_sums = draw(Case((3, 8, 3, 3), (0, 1, 3), residual=F32), device)
    compiled = torch.compile(bn_stats_fork, fullgraph=True, backend=compiler)
    found, expected = compiled(*arguments, backend=backend), bn_stats_fork(*arguments, backend=backend)
    assert found[0].is_contiguous(memory_format=CL)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    weights = [gradient, gradient.flip(0), gradient_sums]
    torch.testing.assert_close(gradients([*found], weights, arguments), gradients([*expected], weights, arguments))


def test_under_autocast(device: torch.device) -> None:
    """With a convolution's output in half precision and a residual in float32."""
    arguments, *_ = draw(Case((2, 8, 4, 4), (0, 1, 2), residual=F32), device)
    with torch.autocast(device.type, BF16):
        x = F.conv2d(arguments.x, torch.eye(8, device=device)[:, :, None, None])
        y, sums = bn_stats(*arguments._replace(x=x), backend="triton")
        (y.float().sum() + sums.sum()).backward()  # type: ignore[no-untyped-call]
    assert (x.dtype, y.dtype, sums.dtype) == (BF16, BF16, F32)
    assert all(tensor.grad is not None and tensor.grad.dtype == F32 for tensor in arguments.differentiable())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("layout", [CL, NCHW])
def test_a_cuda_graph_follows_the_offsets(layout: torch.memory_format) -> None:
    case = Case((9, 64, 7, 7), (0, 4, 9), layout, BF16, residual=BF16)
    arguments, gradient, gradient_sums = draw(case, torch.device("cuda"))

    def step() -> list[Tensor]:
        y, sums = bn_stats(*arguments, backend="triton")
        return [y, sums, *gradients([y, sums], [gradient, gradient_sums], arguments)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    arguments.offsets.copy_(torch.tensor([0, 7, 9], dtype=torch.int32))
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"x": torch.zeros(2, 8, 4)}, r"x is torch.float32 \[2, 8, 4\]; expected a float tensor \[N, C, H, W\]"),
        ({"scale": torch.zeros(7)}, r"scale is torch.float32 \[7\]; expected float \[8\]"),
        ({"mean": torch.zeros(8, dtype=torch.int32)}, r"mean is torch.int32 \[8\]"),
        ({"residual": torch.zeros(2, 8, 4, 5)}, r"residual is torch.float32 \[2, 8, 4, 5\]; expected float"),
        ({"offsets": torch.tensor([0, 2])}, r"offsets is torch.int64 \[2\]; expected int32"),
        ({"shift": torch.zeros(8, device="meta")}, "x is on cpu, shift on meta"),
    ],
)
def test_bad_arguments_are_rejected(wrong: dict[str, Tensor], message: str) -> None:
    arguments, *_ = draw(Case((2, 8, 4, 4), (0, 2), residual=F32), torch.device("cpu"))
    for operator in (bn_stats, bn_stats_fork):
        with pytest.raises(ValueError, match=message):
            operator(*arguments._replace(**wrong))
