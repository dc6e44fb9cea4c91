"""The two backends of an operator: PyTorch's own operations, or Triton kernels behind a registered operator."""

from typing import Literal, get_args

import torch
import triton
from torch import Tensor

Backend = Literal["auto", "torch", "triton"]

KERNEL_TYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})

# Triton decides when a kernel is decorated, which is when this package is imported: later changes have no effect.
_INTERPRETED = bool(triton.knobs.runtime.interpret)


def uses_triton(backend: Backend, tensor: Tensor) -> bool:
    """Whether `backend` selects the registered operator for this tensor; "auto" selects it for CUDA tensors.

    Raises:
        ValueError: an unknown backend.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend is {backend!r}; expected one of {', '.join(get_args(Backend))}")
    return backend == "triton" or (backend == "auto" and tensor.is_cuda)


def in_interpreter() -> bool:
    """Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1 before the import), where CPU tensors will do."""
    return _INTERPRETED


def runs_kernels(tensor: Tensor) -> bool:
    """Whether a registered operator launches Triton kernels for this tensor; otherwise it computes in PyTorch."""
    return tensor.dtype in KERNEL_TYPES and (tensor.is_cuda or in_interpreter())


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of statistics and arithmetic for activations in `dtype`: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32
