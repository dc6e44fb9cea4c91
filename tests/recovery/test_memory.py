"""How many batches share a pass."""

import pytest
import torch
from torch import nn

from delt_hpc.config.schema import Recover
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.recovery.batches import plan
from delt_hpc.recovery.memory import choose_segments, largest_that_fits
from delt_hpc.recovery.precision import NumericFormat
from delt_kernels.teacher.fused import FusedTeacher

SPEC = DatasetSpec("toy", 4, 8, 8, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), True, "convnet3")


def chosen(recover: Recover, device: str) -> int:
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    teacher = plain.to(device).eval().requires_grad_(False)
    all_batches = plan(40, 5, recover)
    on = torch.device(device)
    numeric_format = NumericFormat.of(recover, on)
    network = FusedTeacher(teacher, dtype=numeric_format.network_dtype)
    return choose_segments(recover, network, numeric_format, SPEC, all_batches, len(all_batches), on)


def test_the_largest_number_that_fits_is_chosen() -> None:
    assert largest_that_fits(lambda count: 10 * count, 45, 8) == 4
    assert largest_that_fits(lambda count: 10 * count, 1000, 8) == 8
    assert largest_that_fits(lambda count: 10 * count, 5, 8) == 1
    # A plan for more batches may need less memory than one for fewer.
    assert largest_that_fits({8: 50, 7: 90, 6: 90, 5: 90, 4: 40, 3: 20, 2: 10}.__getitem__, 60, 8) == 8


def test_a_given_number_is_used_and_auto_on_a_cpu_is_one() -> None:
    assert chosen(Recover(segments=3), "cpu") == 3
    assert chosen(Recover(), "cpu") == 1
    assert chosen(Recover(deterministic=True), "cpu") == 1


@pytest.mark.gpu
def test_a_gpu_with_enough_memory_packs_many() -> None:
    assert chosen(Recover(batch_size=10), "cuda") == 20
    assert chosen(Recover(batch_size=10, deterministic=True), "cuda") == Recover().rounds
