"""What a benchmark was measured with."""

import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from delt_hpc.run.timing import device_name

_PACKAGES = ("torch", "torchvision", "triton", "pillow", "nvidia-dali-cuda130", "delt-hpc")


def facts() -> dict[str, str]:
    """Versions, machine and date; empty where something is not there."""
    return {name: _version(name) for name in _PACKAGES} | {
        "python": platform.python_version(),
        "cpu": _cpu(),
        "gpu": device_name(torch.device("cuda")) if torch.cuda.is_available() else "",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _cpu() -> str:
    """Model and number of the CPUs."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else platform.machine()
