"""The two backends of an operator: PyTorch's own operations, or Triton kernels behind a registered operator."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
import triton
from torch import Tensor

Backend = Literal["auto", "torch", "triton"]

KERNEL_TYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})

Optimisation = Literal["relu_bitmask", "bn_stats_fork"]
"""Those whose worth no GPU has shown yet. One is kept if recovery of ResNet-18 or ResNet-50 is at least 3 % faster with
it (docs/benchmarks); otherwise it is deleted."""

_off: set[Optimisation] = set()

# Triton chooses between compiler and interpreter when a kernel is decorated, so a later change has no effect.
_INTERPRETED = bool(triton.knobs.runtime.interpret)


def uses_triton(backend: Backend, tensor: Tensor) -> bool:
    """Whether to call the registered operator for this tensor; "auto" does so for CUDA tensors.

    Raises:
        ValueError: an unknown backend.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend is {backend!r}; expected one of {', '.join(get_args(Backend))}")
    return backend == "triton" or (backend == "auto" and tensor.is_cuda)


def in_interpreter() -> bool:
    """Whether kernels run on CPU tensors in Triton's interpreter: TRITON_INTERPRET=1 was set before the import."""
    return _INTERPRETED


def runs_kernels(tensor: Tensor) -> bool:
    """Whether a registered operator launches kernels for this tensor; otherwise it computes with PyTorch."""
    return tensor.dtype in KERNEL_TYPES and (tensor.is_cuda or in_interpreter())


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of statistics and arithmetic for activations in `dtype`: float64 for float64, otherwise float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def uses(optimisation: Optimisation) -> bool:
    """Whether the Triton backend applies it; the results are the same either way."""
    return optimisation not in _off


@contextmanager
def without(optimisation: Optimisation) -> Iterator[None]:
    """Switches an optimisation off, so that a benchmark can compare."""
    _off.add(optimisation)
    try:
        yield
    finally:
        _off.remove(optimisation)
