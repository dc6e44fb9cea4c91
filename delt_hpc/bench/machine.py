"""The machine and the software that a benchmark ran with."""

import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import torch

from delt_hpc.run.hardware import processor

_PACKAGES = ("torch", "triton", "pillow", "nvidia-dali-cuda130", "delt-hpc")


def this_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def record() -> dict[str, str]:
    """Columns of every benchmark's table: versions, processor, GPU and date; empty where there is none."""
    return {name: _version(name) for name in _PACKAGES} | {
        "python": platform.python_version(),
        "cpu": processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
