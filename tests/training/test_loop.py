"""Parts of the training loop; whole trainings and their resumption are tested with the stages."""

import pytest
import torch
from torch import nn

from delt_hpc.errors import UserError
from delt_hpc.training.loop import Epoch, Outcome, accuracies


class FirstPixels(nn.Module):
    """Its logits are the first values of an image, from `start` on."""

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self.start = start

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, self.start : self.start + 3]


class TwoBatches:
    """Validation images that `FirstPixels` classifies as 0, 1, 2, 1, 0; two of the five labels differ."""

    passes = 0

    def batches(self) -> object:
        self.passes += 1
        images = nn.functional.one_hot(torch.tensor([0, 1, 2, 1, 0]), 4).float().view(5, 4, 1, 1)
        labels = torch.tensor([0, 1, 2, 2, 1])
        yield images[:3], labels[:3]
        yield images[3:], labels[3:]


def test_accuracies_of_two_networks_come_from_one_pass() -> None:
    val, networks = TwoBatches(), [FirstPixels(), FirstPixels(1)]
    assert accuracies(networks, val, "float32") == [60.0, 20.0]  # type: ignore[arg-type]
    assert val.passes == 1
    assert not any(network.training for network in networks)


def test_no_readable_validation_image_is_an_error() -> None:
    class Empty:
        def batches(self) -> object:
            return iter(())

    with pytest.raises(UserError, match="not one validation image is readable"):
        accuracies([FirstPixels()], Empty(), "float32")  # type: ignore[arg-type]


def test_best_and_final_epoch() -> None:
    history = [
        Epoch(0, 0.1, 2.0, 40.0, 30.0),
        Epoch(1, 0.1, 1.0, 70.0, 50.0),
        Epoch(2, 0.1, 0.9),
        Epoch(3, 0.1, 0.5, 60.0),
    ]
    outcome = Outcome(history)
    assert (outcome.final, outcome.best.epoch, len(outcome.validated)) == (60.0, 1, 3)
