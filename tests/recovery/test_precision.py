"""What a device cannot do is refused."""

import pytest
import torch

from delt_hpc.config.schema import Recover
from delt_hpc.errors import UserError
from delt_hpc.recovery.precision import Precision, check

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("changes", [{"precision": "tf32"}, {"precision": "float16"}, {"kernels": "triton"}])
def test_a_cpu_is_not_asked_for_what_gpus_do(changes: dict[str, str]) -> None:
    with pytest.raises(UserError, match=f"recover.{next(iter(changes))}"):
        check(Recover(**changes), CPU)
    check(Recover(**changes), GPU)
    check(Recover(), CPU)


def test_auto_is_bfloat16_on_a_gpu_and_float32_on_a_cpu() -> None:
    assert Precision.of(Recover(), GPU) == Precision(torch.bfloat16)
    assert Precision.of(Recover(), CPU) == Precision()
    assert Precision.of(Recover(precision="tf32"), GPU) == Precision(tf32=True)


def test_only_float16_scales_the_loss() -> None:
    assert Precision.of(Recover(precision="float16", loss_scale=512.0), GPU).loss_scale == 512
    assert Precision.of(Recover(precision="bfloat16", loss_scale=512.0), GPU).loss_scale == 1
