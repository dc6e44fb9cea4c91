"""Mixed precision of forward passes: which type `auto` stands for on this machine, and the matching autocast."""

import torch

from delt_hpc.config.schema import Precision, ScorePrecision
from delt_hpc.run.hardware import cpu_has_bfloat16


def training_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The type for training and validation; `auto` is bfloat16 if the device has it in hardware, else float32."""
    if precision != "auto":
        return _dtype(precision)
    return torch.bfloat16 if device.type == "cuda" or cpu_has_bfloat16() else torch.float32


def scoring_dtype(precision: ScorePrecision, device: torch.device) -> torch.dtype:
    """The type of the teacher's scores; `auto` is float16 on a GPU, which is as fast as bfloat16 and more exact.

    On a CPU `auto` is bfloat16 if the processor has it in hardware, else float32; docs/loading.md says what changes.
    """
    if precision != "auto":
        return _dtype(precision)
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if cpu_has_bfloat16() else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast to the type; none for float32."""
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if enabled else None, enabled=enabled)


def name_of(dtype: torch.dtype) -> str:
    """The type's name as in the configuration, e.g. `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype
