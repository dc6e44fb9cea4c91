"""Which backend an operator uses."""

import pytest
import torch

from delt_kernels.dispatch import in_interpreter, runs_kernels, statistics_dtype, uses_triton


def test_auto_is_triton_on_cuda_only(device: torch.device) -> None:
    tensor = torch.zeros(1, device=device)
    assert uses_triton("auto", tensor) == (device.type == "cuda")
    assert uses_triton("triton", tensor)
    assert not uses_triton("torch", tensor)


def test_an_unknown_backend_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"'fast'.*auto, torch, triton"):
        uses_triton("fast", torch.zeros(1))  # type: ignore[arg-type]


def test_kernels_run_on_a_gpu_or_in_the_interpreter(device: torch.device) -> None:
    tensor = torch.zeros(1, device=device)
    assert runs_kernels(tensor) == (device.type == "cuda" or in_interpreter())
    assert runs_kernels(tensor.half()) == runs_kernels(tensor.bfloat16()) == runs_kernels(tensor)
    assert not runs_kernels(tensor.double())


def test_statistics_are_float32_or_better() -> None:
    assert {statistics_dtype(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)} == {torch.float32}
    assert statistics_dtype(torch.float64) == torch.float64
