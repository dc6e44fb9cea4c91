"""Number formats, and options that the device does not support."""

import pytest
import torch

from delt_hpc.config.schema import Recover
from delt_hpc.errors import UserError
from delt_hpc.recovery.precision import NumericFormat, check_device

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    "changes", [{"precision": "tf32"}, {"precision": "float16"}, {"kernels": "triton"}, {"graphs": True}]
)
def test_options_that_require_a_gpu_are_refused_on_a_cpu(changes: dict[str, str | bool]) -> None:
    with pytest.raises(UserError, match=f"recover.{next(iter(changes))}"):
        check_device(Recover(**changes), CPU)
    check_device(Recover(**changes), GPU)
    check_device(Recover(), CPU)


def test_formats_of_precisions() -> None:
    assert NumericFormat.of(Recover(), GPU) == NumericFormat(torch.bfloat16)
    assert NumericFormat.of(Recover(precision="float32"), CPU) == NumericFormat()
    assert NumericFormat.of(Recover(precision="tf32"), GPU) == NumericFormat(tf32=True)


def test_only_float16_scales_the_loss() -> None:
    assert NumericFormat.of(Recover(precision="float16", loss_scale=512.0), GPU).loss_scale == 512
    assert NumericFormat.of(Recover(precision="bfloat16", loss_scale=512.0), GPU).loss_scale == 1
