"""adam_ equals torch.optim.Adam followed by clamping, on rows of a table that are at different steps."""

from collections.abc import Iterator

import pytest
import torch
from helpers.tolerance import assert_no_worse
from torch import Tensor

from delt_kernels.adam import adam_
from delt_kernels.dispatch import Backend

BACKENDS: tuple[Backend, ...] = ("torch", "triton")
BETAS, EPSILON, LR, TIMES = (0.5, 0.9), 1e-8, 0.25, 4
SHAPES = [(4, 3, 1, 1), (5, 3, 7, 7), (1, 65, 2, 3), (3, 3, 20, 20)]  # the last: more than a program's elements


class Tables:
    """Images and moments [R, C, H, W], and the rows that are updated."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        draw = torch.Generator().manual_seed(3)
        self.images = torch.randn(shape, generator=draw, dtype=torch.float64).to(device, dtype)
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.images), torch.zeros_like(self.images)
        self.rows = torch.randperm(shape[0], generator=draw)[: max(1, shape[0] - 1)].to(device)
        self.low = -torch.rand(shape[1], generator=draw, dtype=torch.float64).to(device, dtype)
        self.high = torch.rand(shape[1], generator=draw, dtype=torch.float64).to(device, dtype)
        noise = torch.randn((TIMES, len(self.rows), *shape[1:]), generator=draw, dtype=torch.float64)
        self.gradients = (noise * 10.0 ** torch.arange(-5, TIMES - 5).view(-1, 1, 1, 1, 1)).to(device, dtype)

    @property
    def state(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.images, self.exp_avg, self.exp_avg_sq

    def steps(self, time: int) -> Tensor:
        """Step `time` (1, 2, ...) of the first row; the others are ten steps ahead."""
        t = torch.full((len(self.rows),), time + 10.0, dtype=torch.float64)
        t[0] = time
        steps = torch.stack([LR / (1 - BETAS[0] ** t), (1 - BETAS[1] ** t).rsqrt()], 1)
        return steps.to(self.images)

    def step(self, time: int, backend: Backend) -> None:
        gradient, steps = self.gradients[time - 1], self.steps(time)
        adam_(*self.state, gradient, self.rows.int(), steps, self.low, self.high, BETAS, EPSILON, backend=backend)

    def by_torch(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images and moments after each step, by one torch.optim.Adam per row."""
        images, exp_avg, exp_avg_sq = (tensor.clone() for tensor in self.state)
        parts = [images[row].clone().requires_grad_() for row in self.rows]
        optimizers = [torch.optim.Adam([part], LR, BETAS, EPSILON) for part in parts]
        for i, (part, optimizer) in enumerate(zip(parts, optimizers, strict=True)):
            start = torch.zeros_like(part)
            step = torch.tensor(10.0 if i else 0.0)
            optimizer.state[part] = {"step": step, "exp_avg": start, "exp_avg_sq": start.clone()}
        for gradients in self.gradients:
            for row, part, optimizer, gradient in zip(self.rows, parts, optimizers, gradients, strict=True):
                part.grad = gradient.clone()
                optimizer.step()
                part.data = part.data.clamp(self.low.view(-1, 1, 1), self.high.view(-1, 1, 1))
                images[row] = part.detach()
                exp_avg[row], exp_avg_sq[row] = (optimizer.state[part][name] for name in ("exp_avg", "exp_avg_sq"))
            yield images.clone(), exp_avg.clone(), exp_avg_sq.clone()

    def double(self) -> "Tables":
        """The same numbers in float64."""
        tables = Tables(tuple(self.images.shape), torch.float64, self.images.device)
        for name, tensor in vars(self).items():
            setattr(tables, name, tensor.double() if tensor.is_floating_point() else tensor)
        return tables


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_torch_s_adam_in_float64(shape: tuple[int, ...], backend: Backend, device: torch.device) -> None:
    tables = Tables(shape, torch.float64, device)
    for time, expected in enumerate(tables.by_torch(), 1):
        tables.step(time, backend)
        torch.testing.assert_close(tables.state, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_worse_than_torch_s_adam(shape: tuple[int, ...], backend: Backend, device: torch.device) -> None:
    tables = Tables(shape, torch.float32, device)
    for time, (theirs, exact) in enumerate(zip(tables.by_torch(), tables.double().by_torch(), strict=True), 1):
        tables.step(time, backend)
        for our, their, right in zip(tables.state, theirs, exact, strict=True):
            assert_no_worse(our, their, right)


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_rows_do_not_change(backend: Backend, device: torch.device) -> None:
    tables = Tables((5, 3, 7, 7), torch.float32, device)
    (other,) = set(range(5)) - set(tables.rows.tolist())
    for tensor in tables.state:
        tensor[other] = 9.0
    tables.step(1, backend)
    for tensor in tables.state:
        assert (tensor[other] == 9).all() and (tensor[tables.rows] != 9).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_are_independent(backend: Backend, device: torch.device) -> None:
    together, alone = (Tables((5, 3, 7, 7), torch.float32, device) for _ in range(2))
    together.step(1, backend)
    rows, gradients, steps = alone.rows, alone.gradients[0], alone.steps(1)
    for i in range(len(rows)):
        part = slice(i, i + 1)
        bounds = alone.low, alone.high
        adam_(*alone.state, gradients[part], rows[part], steps[part], *bounds, BETAS, EPSILON, backend=backend)
    assert all(torch.equal(*pair) for pair in zip(together.state, alone.state, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("what", ["tables", "others"])
def test_any_strides(what: str, backend: Backend, device: torch.device) -> None:
    tables, strided = (Tables((5, 3, 7, 7), torch.float32, device) for _ in range(2))
    if what == "tables":
        strided.images = strided.images.contiguous(memory_format=torch.channels_last)
        strided.exp_avg_sq = strided.exp_avg_sq.repeat_interleave(2, 0)[::2]
    else:
        strided.gradients = strided.gradients.transpose(3, 4).contiguous().transpose(3, 4)
        for name in ("rows", "low", "high"):
            setattr(strided, name, getattr(strided, name).repeat_interleave(2)[::2])
    for copy in (tables, strided):
        copy.step(1, backend)
    torch.testing.assert_close(strided.state, tables.state)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_in_half_precision(backend: Backend, device: torch.device) -> None:
    half, full = (Tables((5, 3, 7, 7), torch.float32, device) for _ in range(2))
    half.gradients = half.gradients.half()
    full.gradients = half.gradients.float()
    for copy in (half, full):
        copy.step(TIMES, backend)
    assert all(torch.equal(*pair) for pair in zip(half.state, full.state, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_a_gradient_is_not_hidden(backend: Backend, device: torch.device) -> None:
    tables = Tables((5, 3, 7, 7), torch.float32, device)
    tables.gradients[0, 1, 2, 3, 4] = torch.nan
    tables.step(1, backend)
    for tensor in tables.state:
        assert tensor.isnan().nonzero().tolist() == [[int(tables.rows[1]), 2, 3, 4]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_registration(dtype: torch.dtype, device: torch.device) -> None:
    tables = Tables((3, 2, 2, 2), dtype, device)
    given = tables.gradients[0], tables.rows, tables.steps(1), tables.low, tables.high
    torch.library.opcheck(torch.ops.delt.adam_.default, (*tables.state, *given, *BETAS, EPSILON))


@pytest.mark.parametrize(
    ("backend", "compiler"), [("torch", "aot_eager"), ("triton", "aot_eager"), ("triton", "inductor")]
)
def test_compiles_into_one_graph(compiler: str, backend: Backend, device: torch.device) -> None:
    eager, compiled = (Tables((3, 2, 4, 4), torch.float32, device) for _ in range(2))
    given = eager.rows, eager.steps(1), eager.low, eager.high

    def function(images: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, gradient: Tensor) -> Tensor:
        adam_(images, exp_avg, exp_avg_sq, gradient.neg(), *given, BETAS, EPSILON, backend=backend)
        return images.square()

    expected = function(*eager.state, eager.gradients[0])
    result = torch.compile(function, fullgraph=True, backend=compiler)(*compiled.state, compiled.gradients[0])
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(compiled.state, eager.state)


def test_bad_arguments_are_rejected(device: torch.device) -> None:
    tables = Tables((5, 3, 7, 7), torch.float32, device)

    def step(**changed: Tensor) -> None:
        names = "images", "exp_avg", "exp_avg_sq", "rows", "low", "high"
        given = {name: getattr(tables, name) for name in names} | {"gradient": tables.gradients[0]}
        adam_(**(given | {"steps": tables.steps(1)} | changed), betas=BETAS, epsilon=EPSILON)

    step()
    with pytest.raises(TypeError, match=r"images are torch\.float16; expected float32 or float64"):
        step(images=tables.images.half())
    with pytest.raises(TypeError, match=r"exp_avg_sq is torch\.float64; expected torch\.float32, the images' type"):
        step(exp_avg_sq=tables.exp_avg_sq.double())
    with pytest.raises(ValueError, match=r"gradient has shape \(3, 3, 7, 7\); expected \(4, 3, 7, 7\)"):
        step(gradient=tables.gradients[0, 1:])
    with pytest.raises(ValueError, match=r"steps has shape \(4, 1\); expected \(4, 2\)"):
        step(steps=tables.steps(1)[:, :1])
    with pytest.raises(ValueError, match=r"high has shape \(2,\); expected \(3,\)"):
        step(high=tables.high[:2])
    with pytest.raises(ValueError, match=r"rows \(1, 4\); expected"):
        step(rows=tables.rows[None])
