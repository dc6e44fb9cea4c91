"""Peak speeds of a device: measured by a matrix product and a copy, and as stated by the maker."""

from dataclasses import dataclass

import torch

from delt_hpc.bench.timing import capture_stream, measure

MATRIX_SIZE = {"cuda": 8192, "cpu": 1024}
COPY_BYTES = {"cuda": 2**30, "cpu": 64 * 2**20}


@dataclass(frozen=True)
class Peak:
    """Speeds that a floor is computed with."""

    flops_per_s: float
    bytes_per_s: float


STATED = {"H100": Peak(989e12, 3.35e12), "H200": Peak(989e12, 4.8e12)}
"""The SXM modules: dense bfloat16 or float16 products, and memory bandwidth."""


def measured_peak(dtype: torch.dtype, device: torch.device) -> Peak:
    """Of products in that type; whether float32 may use TF32 is the caller's setting."""
    size = MATRIX_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    with capture_stream(device):
        ms = measure(lambda: torch.matmul(a, b, out=product), device).median_ms
        return Peak(2 * size**3 / (ms / 1e3), copy_bandwidth(device))


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second of a large copy in the device's memory; each byte counts twice, as it is read and written."""
    source = torch.zeros(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / (measure(lambda: target.copy_(source), device).median_ms / 1e3)
