"""Freed memory is kept: seen by the page faults of a process of its own."""

import os
import subprocess
import sys

import pytest

from delt_hpc.run.allocator import SWITCH

PROGRAM = """
import resource
from delt_hpc.run.allocator import keep_freed_memory
print(keep_freed_memory())
import torch
from delt_hpc.models.networks import ConvNet

network = ConvNet(3, 10, 32).eval()
images = torch.randn(64, 3, 32, 32)

@torch.no_grad()
def page_faults(passes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(passes):
        network(images)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

page_faults(4)
print(page_faults(4))
"""


def run(**environment: str) -> tuple[str, int]:
    """Whether the thresholds are set, and the page faults of four forward passes after the first four."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    is_set, count = done.stdout.split()
    return is_set, int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_forward_passes_reuse_their_pages_unless_switched_off() -> None:
    is_set, faults = run()
    assert is_set == "True"
    is_set, faults_before = run(**{SWITCH: "0"})
    assert is_set == "False"
    assert faults < faults_before / 10
