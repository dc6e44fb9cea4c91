"""Parts of the training loop; whole trainings and their resumption are tested with the stages."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from delt_hpc.config.schema import Evaluate
from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.data.epochs import TrainingBatch
from delt_hpc.data.index import Index
from delt_hpc.data.loader import LoaderConfig, TrainingSet
from delt_hpc.data.transforms import Augmentation
from delt_hpc.errors import UserError
from delt_hpc.models.registry import build
from delt_hpc.stages import evaluate
from delt_hpc.training import loop
from delt_hpc.training.average import MovingAverage
from delt_hpc.training.loop import Epoch, Outcome, Progress, Training, accuracies


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


@pytest.mark.parametrize("soft", [True, False])
def test_a_step_never_waits_for_the_device(soft: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the device `meta` have no values: an operation that reads one on the host fails."""
    device, config, size = torch.device("meta"), Evaluate(), 32
    for module in (loop, evaluate):
        monkeypatch.setattr(module, "autocast", lambda *args: nullcontext())
    student, teacher = (build("convnet3", 10, size).to(device) for _ in range(2))
    index = Index(Path(), ("",) * 8, np.arange(8))
    augmentation, on_host = Augmentation((0.5, 1.0)), LoaderConfig("torchvision", torch.device("cpu"))
    training = Training(
        model=student,
        optimizer=torch.optim.AdamW(student.parameters(), foreach=True),
        epochs=1,
        lr=evaluate.learning_rate(config),
        loss=evaluate.soft_loss(teacher.eval(), config) if soft else evaluate.hard_loss,
        train=TrainingSet(index, np.arange(8), SPECS["cifar10"], augmentation, 8, ("test",), on_host),
        val=None,  # type: ignore[arg-type]
        precision="float32",
        validate_every=1,
        checkpoint=Path(),
        lr_option="lr",
        mix=evaluate.mixing("cutmix", 10, "test"),
    )
    progress, average = Progress(Outcome(), torch.zeros((), device=device)), MovingAverage(student, 0.9)
    for step in range(2):
        images = torch.zeros(8, 3, size, size, device=device)
        training._step(TrainingBatch(0, step, images, np.arange(8)), progress, average)
    assert progress.batches == 2
    with pytest.raises(RuntimeError, match="meta"):
        progress.loss.item()


def test_a_host_copy_keeps_the_state_of_its_moment() -> None:
    tensor = torch.ones(2)
    state: dict[str, Any] = {"a": {"b": [tensor, 1]}, "c": None, "d": "text"}
    copied = loop._host_copy(state)
    tensor.zero_()
    assert copied["a"]["b"][0].tolist() == [1, 1]
    assert (copied["a"]["b"][1], copied["c"], copied["d"]) == (1, None, "text")
