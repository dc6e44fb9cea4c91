"""What this device reaches: multiplications of large matrices, and a copy in its memory."""

from dataclasses import dataclass

import torch

from delt_hpc.bench.stopwatch import copy_bandwidth, times, working_stream
from delt_hpc.recovery.precision import NumericFormat, backend_flags

SIDE = {"cuda": 8192, "cpu": 1024}  # of the matrices


@dataclass(frozen=True)
class Peak:
    """Speeds that a floor is measured against."""

    flops_per_s: float
    bytes_per_s: float


def measure(numeric_format: NumericFormat, device: torch.device) -> Peak:
    """In the given number format. A copied byte counts twice: it is read and written."""
    side = SIDE[device.type]
    one, other = (
        torch.randn(side, side, device=device).to(numeric_format.network_dtype or torch.float32) for _ in range(2)
    )
    product = torch.empty_like(one)
    with backend_flags(tf32=numeric_format.tf32), working_stream(device):
        ms = times(lambda: torch.matmul(one, other, out=product), device).median_ms
        return Peak(2 * side**3 / (ms / 1e3), copy_bandwidth(device) * 1e9)
