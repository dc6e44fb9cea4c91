import pytest
import torch

from delt_hpc.training import precision
from delt_hpc.training.precision import autocast, scoring_dtype, training_dtype

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_have_the_type(dtype: torch.dtype) -> None:
    with autocast(CPU, dtype):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize("hardware", [False, True])
def test_auto_follows_the_hardware(hardware: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: hardware)
    assert training_dtype("auto", CPU) == (torch.bfloat16 if hardware else torch.float32)
    assert training_dtype("auto", GPU) == torch.bfloat16
    assert scoring_dtype("auto", CPU) == training_dtype("auto", CPU)
    assert scoring_dtype("auto", GPU) == torch.float16


def test_a_configured_precision_is_taken() -> None:
    assert training_dtype("float32", GPU) == torch.float32
    assert scoring_dtype("bfloat16", CPU) == torch.bfloat16
