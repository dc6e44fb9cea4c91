"""Training of a classifier from scratch: one loop for teachers (squeeze) and students (evaluate)."""

import io
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from delt_hpc.config.schema import Precision
from delt_hpc.data.epochs import TrainingBatch
from delt_hpc.data.loader import TrainingSet, ValidationSet
from delt_hpc.errors import UserError
from delt_hpc.keyed_random import seeded
from delt_hpc.run import stop
from delt_hpc.run.folder import write_csv, writing
from delt_hpc.run.progress import Bar
from delt_hpc.training.average import MovingAverage
from delt_hpc.training.precision import autocast, training_dtype

CHECKPOINT_SECONDS = 60.0


@dataclass
class Epoch:
    """Figures of one epoch; accuracies are top-1 in percent, None if the epoch was not validated."""

    epoch: int
    lr: float
    train_loss: float
    val_accuracy: float | None = None
    ema_accuracy: float | None = None


@dataclass
class Outcome:
    """A finished training.

    Attributes:
        history: one row an epoch.
        seconds: wall clock, summed over restarts.
        data_wait_s: the part of it spent waiting for images.
    """

    history: list[Epoch] = field(default_factory=list)
    seconds: float = 0.0
    data_wait_s: float = 0.0

    @property
    def validated(self) -> list[Epoch]:
        return [epoch for epoch in self.history if epoch.val_accuracy is not None]

    @property
    def final(self) -> float:
        return self.validated[-1].val_accuracy or 0.0

    @property
    def best(self) -> Epoch:
        return max(self.validated, key=lambda epoch: epoch.val_accuracy or 0.0)


@dataclass(frozen=True, eq=False)
class Training:
    """A training that resumes from its last checkpoint and then ends with the same result as an undisturbed one.

    The model and its images are kept in channels_last memory format, in which convolutions are fastest.

    Attributes:
        lr: learning rate as a function of the epoch; the epoch has a fraction if `lr_per_step`.
        loss: (outputs [B, classes], images [B, 3, S, S], labels) -> scalar, under autocast.
        precision: autocast type of training and validation.
        validate_every: epochs between two validations; the last epoch is always validated.
        checkpoint: file of the state between two epochs.
        mix: (images, labels, epoch, step) -> mixed images and labels, e.g. CutMix.
        ema_decay: final decay of the averaged model; None trains no averaged model.
        checkpoint_seconds: least time between two checkpoints.
    """

    model: nn.Module
    optimizer: Optimizer
    epochs: int
    lr: Callable[[float], float]
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    train: TrainingSet
    val: ValidationSet
    precision: Precision
    validate_every: int
    checkpoint: Path
    lr_per_step: bool = False
    mix: Callable[[Tensor, Tensor, int, int], tuple[Tensor, Tensor]] | None = None
    ema_decay: float | None = None
    checkpoint_seconds: float = CHECKPOINT_SECONDS

    def run(self, bar: Bar) -> Outcome:
        """Train to the last epoch; the bar counts steps.

        Raises:
            UserError: no training image is readable.
        """
        self.model.to(memory_format=torch.channels_last)
        average = None if self.ema_decay is None else MovingAverage(self.model, self.ema_decay)
        outcome = self._resume(average)
        bar.resume(len(outcome.history) * self.train.steps())
        began = saved = time.monotonic()
        before = outcome.seconds
        stream = self.train.batches(len(outcome.history), self.epochs)
        for epoch, batches in groupby(stream, key=attrgetter("epoch")):
            # Dropout draws from torch's own generators.
            with seeded(*self.train.key, "network", epoch):
                row, waited = self._epoch(epoch, batches, average, bar)
            last = epoch + 1 == self.epochs
            if last or (epoch + 1) % self.validate_every == 0:
                networks = [self.model, average.model] if average else [self.model]
                row.val_accuracy, *ema = accuracies(networks, self.val, self.precision)
                row.ema_accuracy = ema[0] if ema else None
            outcome.history.append(row)
            outcome.data_wait_s += waited
            outcome.seconds = before + time.monotonic() - began
            if time.monotonic() - saved >= self.checkpoint_seconds and not last:
                self._save(outcome, average)
                saved = time.monotonic()
        if len(outcome.history) < self.epochs:
            raise UserError("not one training image is readable", where=str(self.train.index.root))
        return outcome

    def _epoch(
        self, epoch: int, batches: Iterable[TrainingBatch], average: MovingAverage | None, bar: Bar
    ) -> tuple[Epoch, float]:
        """Train for one epoch. Nothing in it waits for the GPU but the loss, which is read at the end."""
        self.model.train()
        device = self.train.loader_config.device
        dtype, steps = training_dtype(self.precision, device), self.train.steps()
        total, waited, requested = torch.zeros((), device=device), 0.0, time.perf_counter()
        for step, batch in enumerate(batches):
            waited += time.perf_counter() - requested
            images, targets = batch.images, self.train.labels(batch)
            if self.mix:
                images, targets = self.mix(images, targets, epoch, step)
            images = images.contiguous(memory_format=torch.channels_last)
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr(epoch + step / steps if self.lr_per_step else epoch)
            with autocast(device, dtype):
                loss = self.loss(self.model(images), images, targets)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            if average:
                average.update(self.model)
            total += loss.detach()
            bar.advance(1, f"epoch {epoch + 1}/{self.epochs}")
            stop.check()
            requested = time.perf_counter()
        return Epoch(epoch, self.optimizer.param_groups[0]["lr"], total.item() / (step + 1)), waited

    def _save(self, outcome: Outcome, average: MovingAverage | None) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": average.state_dict() if average else None,
            "history": [asdict(row) for row in outcome.history],
            "seconds": outcome.seconds,
            "data_wait_s": outcome.data_wait_s,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with writing(self.checkpoint) as file:
            file.write(buffer.getbuffer())

    def _resume(self, average: MovingAverage | None) -> Outcome:
        if not self.checkpoint.exists():
            return Outcome()
        state = torch.load(self.checkpoint, map_location=self.train.loader_config.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if average:
            average.load_state_dict(state["average"])
        return Outcome([Epoch(**row) for row in state["history"]], state["seconds"], state["data_wait_s"])


def accuracies(networks: Sequence[nn.Module], val: ValidationSet, precision: Precision) -> list[float]:
    """Top-1 accuracy of each network in percent, in one pass over the images; leaves them in evaluation mode.

    Raises:
        UserError: no validation image is readable.
    """
    for network in networks:
        network.eval()
    correct: list[Tensor] = []  # added up on the device, read once at the end
    count = 0
    with torch.inference_mode():
        for images, labels in val.batches():
            with autocast(images.device, training_dtype(precision, images.device)):
                correct.append(torch.stack([(network(images).argmax(1) == labels).sum() for network in networks]))
            count += len(labels)
    if not correct:
        raise UserError("not one validation image is readable", where="data.val")
    return [100.0 * right / count for right in torch.stack(correct).sum(0).tolist()]


def write_history(path: Path, history: list[Epoch]) -> None:
    """A CSV with one row an epoch; cells of epochs without validation are empty."""
    write_csv(path, lambda file: pd.DataFrame([asdict(row) for row in history]).to_csv(file, index=False))
