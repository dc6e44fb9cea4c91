"""The training loop's parts; whole trainings and their resumption are tested with the stages."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from delt_hpc.training.loop import Epoch, Outcome, accuracy, autocast, warm_average


class Fixed(nn.Module):
    """Answers with the images' first pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :3]


class Answers:
    """Two batches of one-hot images and their labels, two of five wrong."""

    def batches(self) -> object:
        right = torch.tensor([0, 1, 2, 1, 0])
        images = nn.functional.one_hot(right, 3).float().view(5, 3, 1, 1)
        labels = torch.tensor([0, 1, 2, 2, 1])
        yield images[:3], labels[:3]
        yield images[3:], labels[3:]


def test_accuracy_is_percent_over_all_batches() -> None:
    assert accuracy(Fixed(), Answers(), "float32") == 60.0


def test_the_average_forgets_its_start_and_settles_at_its_decay() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = AveragedModel(model, multi_avg_fn=warm_average(0.9))
    expected = None
    for n, value in enumerate(np.linspace(0, 5, 40)):
        model.weight.data.fill_(value)
        average.update_parameters(model)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = value if expected is None else decay * expected + (1 - decay) * value
    assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)
    # the weight of the first value is the product of all decays: next to nothing, where 0.9 alone would leave 0.9**39
    assert np.prod([min(0.9, (1 + n) / (10 + n)) for n in range(1, 40)]) < 0.9**39 / 10


def test_best_and_final_are_told_apart_and_unvalidated_epochs_left_out() -> None:
    history = [
        Epoch(0, 0.1, 2.0, 40.0, 30.0),
        Epoch(1, 0.1, 1.0, 70.0, 50.0),
        Epoch(2, 0.1, 0.9),
        Epoch(3, 0.1, 0.5, 60.0),
    ]
    outcome = Outcome(history)
    assert (outcome.final, outcome.best.epoch, len(outcome.validated)) == (60.0, 1, 3)


@pytest.mark.parametrize(("precision", "enabled"), [("auto", False), ("float32", False), ("bfloat16", True)])
def test_mixed_precision_on_a_cpu_only_if_asked_for(precision: str, enabled: bool) -> None:
    with autocast(torch.device("cpu"), precision):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert (product.dtype == torch.bfloat16) == enabled
