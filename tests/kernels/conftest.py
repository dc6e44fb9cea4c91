"""Devices, poisoned memory, and the rule of accuracy of the kernels' tests."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from delt_kernels.forms import in_interpreter

NoWorse = Callable[[Tensor, Tensor, Tensor], None]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """On a machine without CUDA the kernels run on CPU tensors, in Triton's interpreter (tests/conftest.py)."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture
def kernel_device(device: torch.device) -> torch.device:
    """For tests that launch kernels themselves, not through a registered operator, which takes any tensor."""
    if device.type == "cpu" and not in_interpreter():
        pytest.skip("kernels are compiled for CUDA here")
    return device


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that torch hands out uninitialised holds NaN, or the largest integer."""
    was, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(was, warn_only=warned)


@pytest.fixture(scope="session")
def no_worse() -> NoWorse:
    """`no_worse(ours, theirs, exact)`: the largest error is at most twice that of PyTorch in the same type.

    One unit in the last place of the largest value is free (four in float32): on few numbers PyTorch's error is small
    by luck, and the interpreter cuts bfloat16 off where a GPU rounds, and adds one by one where a GPU adds in a tree.
    """
    return _no_worse


def _no_worse(ours: Tensor, theirs: Tensor, exact: Tensor) -> None:
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape == exact.shape
    assert exact.dtype == torch.float64
    if not exact.numel():
        return
    free = (4 if ours.dtype == torch.float32 else 1) * torch.finfo(ours.dtype).eps * exact.abs().max()
    error, allowed = (ours - exact).abs().max(), 2 * (theirs - exact).abs().max() + free
    assert error <= allowed, f"error {error:.3g}; PyTorch's in {ours.dtype} allows {allowed:.3g}"
