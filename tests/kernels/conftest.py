"""Devices and uninitialised memory for the kernels' tests."""

from collections.abc import Iterator

import pytest
import torch

from delt_kernels.dispatch import in_interpreter

DEVICES = [pytest.param("cpu"), *[pytest.param("cuda", marks=pytest.mark.gpu)] * torch.cuda.is_available()]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and a GPU if there is one. On the CPU kernels run in Triton's interpreter (tests/conftest.py)."""
    return torch.device(request.param)


@pytest.fixture
def kernel_device(device: torch.device) -> torch.device:
    """For tests that launch kernels directly. A registered operator accepts CPU tensors even without interpreter."""
    if device.type == "cpu" and not in_interpreter():
        pytest.skip("Triton's interpreter is off, and compiled kernels need a GPU")
    return device


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fills memory that torch leaves uninitialised with NaN, or with the largest integer."""
    was, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(was, warn_only=warned)
