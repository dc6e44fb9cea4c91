"""The forms of an operator: plain PyTorch, or fused kernels behind a registered operator."""

from typing import Literal, get_args

import torch
import triton
from torch import Tensor

Form = Literal["auto", "plain", "fused"]

KERNEL_TYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})

# Triton decides when a kernel is decorated, which is when this package is imported: later changes have no effect.
_INTERPRETED = bool(triton.knobs.runtime.interpret)


def fuses(form: Form, tensor: Tensor) -> bool:
    """Whether `form` means the registered operator for this tensor; "auto" takes it for CUDA tensors.

    Raises:
        ValueError: `form` is none of the three.
    """
    if form not in get_args(Form):
        raise ValueError(f"form is {form!r}; expected one of {', '.join(get_args(Form))}")
    return form == "fused" or (form == "auto" and tensor.is_cuda)


def in_interpreter() -> bool:
    """Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1 before the import), where CPU tensors will do."""
    return _INTERPRETED


def runs_kernels(tensor: Tensor) -> bool:
    """Whether a registered operator runs its kernels on this tensor; else it computes the plain form's values."""
    return tensor.dtype in KERNEL_TYPES and (tensor.is_cuda or in_interpreter())


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of statistics and arithmetic for activations in `dtype`: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32
