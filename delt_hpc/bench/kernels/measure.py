"""One variant of an operator: its values are checked against float64, then it is timed."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from delt_hpc.bench.kernels.cases import Case, Function, Tensors
from delt_hpc.bench.timing import Times
from delt_hpc.bench.timing import measure as times

VARIANTS = ("torch", "torch-compiled", "triton")
"""torch: PyTorch, op by op; triton: the Triton kernels."""
BASELINE = "torch"


class Trial:
    """A variant that was run once.

    Attributes:
        values: its outputs, then its gradients.
        passes: forward, and backward if there are gradients; functions that can be run again.
    """

    def __init__(self, case: Case, variant: str, dtype: torch.dtype | None = None) -> None:
        inputs = [_copy(tensor, dtype) for tensor in case.inputs]
        leaves = [tensor.requires_grad_() for tensor in inputs[: case.leaves]]
        run = _function(case.run, variant)
        differentiate = case.backward and _function(case.backward, variant)
        outputs = run(*inputs)
        random = torch.Generator(outputs[0].device).manual_seed(0)
        gradients = [torch.randn(o.shape, generator=random, device=o.device).to(o.dtype) for o in outputs]

        def forward() -> Tensors:
            return run(*inputs)

        def backward() -> Tensors:
            if differentiate:
                return differentiate(*inputs, *gradients)
            return torch.autograd.grad(outputs, leaves, gradients, retain_graph=True)

        self.passes: tuple[Callable[[], Tensors], ...] = (forward, backward) if leaves else (forward,)
        self.values = tuple(tensor.detach() for tensor in (*outputs, *(backward() if leaves else ())))


class Measured(NamedTuple):
    """The largest error, and the times of each pass, or a note why there are none."""

    error: float | None
    note: str
    passes: tuple[Times, ...] = ()


def expected(case: Case) -> tuple[Tensors, list[float]]:
    """The values in float64, and the error allowed in each.

    Twice the baseline's error, rounding aside: a compiler for CPUs may add float32 numbers one after the other.
    """
    exact, baseline = Trial(case, BASELINE, torch.float64).values, Trial(case, BASELINE).values
    sequential = torch.finfo(torch.float32).eps * math.sqrt(case.terms)
    allowed = [
        2 * error_of(value, true) + max(torch.finfo(value.dtype).eps, sequential)
        for value, true in zip(baseline, exact, strict=True)
    ]
    return exact, allowed


def measure(case: Case, variant: str, exact: Tensors, allowed: Sequence[float], device: torch.device) -> Measured:
    """Times of a variant, if no error of its values is larger than allowed."""
    if variant == "triton" and device.type != "cuda":
        return Measured(None, "not measured: Triton kernels require a GPU")
    try:
        trial = Trial(case, variant)
        errors = [error_of(value, true) for value, true in zip(trial.values, exact, strict=True)]
        for error, most in zip(errors, allowed, strict=True):
            if not error <= most:  # so that NaN is an error too
                return Measured(max(errors), f"wrong: error {error:.1e}, at most {most:.1e} allowed")
        return Measured(max(errors), "", tuple(times(run, device) for run in trial.passes))
    except Exception as error:  # whatever fails in one variant, the others can still be measured
        return Measured(None, f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}")


def error_of(value: Tensor, exact: Tensor) -> float:
    """Relative error of the whole tensor in the Euclidean norm; absolute where `exact` is 0."""
    size = exact.norm()
    return float((value.double() - exact).norm() / torch.where(size > 0, size, 1))


def _function(function: Function, variant: str) -> Function:
    backend = "triton" if variant == "triton" else "torch"

    def run(*inputs: Tensor) -> Tensors:
        return function(backend, *inputs)

    if variant != "torch-compiled":
        return run
    torch.compiler.reset()  # other shapes of the same function must not count as recompilations of this one
    return torch.compile(run, fullgraph=True, dynamic=False)


def _copy(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype, copy=True) if dtype and tensor.is_floating_point() else tensor.clone()
