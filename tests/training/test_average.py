import numpy as np
import pytest
import torch
from torch import nn

from delt_hpc.training.average import MovingAverage


def averaged(updates: int, decay: float = 0.9) -> tuple[nn.Linear, MovingAverage]:
    """A weight that grows from 0 to 5, and its average."""
    model = nn.Linear(1, 1, bias=False)
    average = MovingAverage(model, decay)
    for value in np.linspace(0, 5, updates):
        model.weight.data.fill_(value)
        average.update(model)
    return model, average


def test_the_decay_grows_to_its_final_value() -> None:
    _, average = averaged(40)
    expected = 0.0
    for n, value in enumerate(np.linspace(0, 5, 40)[1:], start=1):
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert average.model.weight.item() == pytest.approx(expected, rel=1e-5)


def test_the_first_update_copies_the_model() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = MovingAverage(model, 0.9)
    nn.init.ones_(model[0].weight)
    model(torch.randn(4, 3))
    average.update(model)
    for name, value in average.model.named_parameters():
        assert torch.equal(value, model.get_parameter(name))
    assert torch.equal(average.model.get_buffer("1.running_mean"), model.get_buffer("1.running_mean"))


def test_a_restored_average_goes_on_as_the_original() -> None:
    model, average = averaged(7)
    restored = MovingAverage(nn.Linear(1, 1, bias=False), 0.9)
    restored.load_state_dict(average.state_dict())
    model.weight.data.fill_(9.0)
    average.update(model)
    restored.update(model)
    assert torch.equal(restored.model.weight, average.model.weight)
