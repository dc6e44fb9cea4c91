"""Devices, poisoned memory, and the rule of accuracy of the kernels' tests."""

from collections.abc import Iterator

import pytest
import torch

from delt_kernels.dispatch import in_interpreter


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
