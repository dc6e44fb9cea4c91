"""One way of a case of the kernels' benchmark: its values, held against float64, and its times."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from delt_hpc.bench.kernel_case import Case, Tensors, Way
from delt_hpc.bench.stopwatch import Times, times


class Trial:
    """A way, run once.

    Attributes:
        values: its results, then its gradients.
        passes: forward, and backward if there are gradients; to be run again.
    """

    def __init__(self, case: Case, way: Way, dtype: torch.dtype | None = None) -> None:
        inputs = [_copy(tensor, dtype) for tensor in case.inputs]
        leaves = [tensor.requires_grad_() for tensor in inputs[: case.leaves]]
        outputs = way.run(*inputs)
        cotangents = _cotangents(way, outputs, case.cotangents)

        def forward() -> Tensors:
            return way.run(*inputs)

        def backward() -> Tensors:
            if way.backward:
                return way.backward(*inputs, *cotangents)
            return torch.autograd.grad(outputs, leaves, cotangents, retain_graph=True)

        self.passes: tuple[Callable[[], Tensors], ...] = (forward, backward) if leaves else (forward,)
        results = way.finish(*outputs) if way.finish else outputs
        self.values = tuple(tensor.detach() for tensor in (*results, *(backward() if leaves else ())))


class Measured(NamedTuple):
    """The largest error, and times of each pass or a note why there are none."""

    error: float | None
    note: str
    passes: tuple[Times, ...] = ()


def measure(case: Case, form: str, exact: Tensors, allowed: Sequence[float], device: torch.device) -> Measured:
    """Times of a form whose values have no larger errors than `allowed`."""
    if form == "triton" and device.type != "cuda":
        return Measured(None, f"left out: the kernels run on CUDA devices, this is a {device.type}")
    try:
        trial = Trial(case, case.way(form))
        errors = [error_of(value, true) for value, true in zip(trial.values, exact, strict=True)]
        for error, most in zip(errors, allowed, strict=True):
            if not error <= most:  # not `>`: what is not a number is wrong
                return Measured(max(errors), f"wrong: error {error:.1e}, expected at most {most:.1e}")
        return Measured(max(errors), "", tuple(times(run, device) for run in trial.passes))
    except Exception as error:  # a compiler or a device fails in many ways; the other forms go on
        return Measured(None, f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}")


def error_of(value: Tensor, exact: Tensor) -> float:
    """Relative, of the whole tensor; absolute where that is 0."""
    size = exact.norm()
    return float((value.double() - exact).norm() / torch.where(size > 0, size, 1))


def _copy(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype, copy=True) if dtype and tensor.is_floating_point() else tensor.clone()


def _cotangents(way: Way, outputs: Tensors, given: Tensors) -> list[Tensor]:
    """Gradients of the outputs that are the given gradients of the results."""
    if not given:
        return []
    ends = [output.detach().requires_grad_() for output in outputs]
    results = way.finish(*ends) if way.finish else ends
    cotangents = [cotangent.to(result.dtype) for cotangent, result in zip(given, results, strict=True)]
    return list(torch.autograd.grad(list(results), ends, cotangents))
