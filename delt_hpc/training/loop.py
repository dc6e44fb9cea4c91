"""Training of a classifier from scratch: one loop for teachers (squeeze) and students (evaluate)."""

import io
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from delt_hpc.config.schema import Precision, ScorePrecision
from delt_hpc.data.epochs import TrainingBatch
from delt_hpc.data.loader import TrainingSet, ValidationSet
from delt_hpc.errors import UserError
from delt_hpc.keyed_random import seeded
from delt_hpc.run import stop
from delt_hpc.run.folder import write_csv, writing
from delt_hpc.run.progress import Bar

CHECKPOINT_SECONDS = 60.0


@dataclass
class Epoch:
    """What one epoch brought; accuracies are percent top-1, None where the epoch was not validated."""

    epoch: int
    lr: float
    train_loss: float
    val_accuracy: float | None = None
    ema_accuracy: float | None = None


@dataclass
class Outcome:
    """A finished training.

    Attributes:
        seconds: wall clock over all restarts.
        data_wait_s: of it, waiting for images.
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
    """A training that a kill cannot lose: restarted, it goes on from its last checkpoint to the same result.

    Attributes:
        lr: learning rate as a function of the epoch; with a fraction where `lr_per_step`.
        loss: from the model's output on a batch of images [B, 3, S, S] and their labels [B] to a scalar.
        mix: changes a batch's images and labels before the step: (images, labels, epoch, step).
        ema_decay: None trains no averaged model.
        checkpoint: file of the state between two epochs.
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
        """Train to the last epoch; the bar counts steps."""
        average = (
            None
            if self.ema_decay is None
            else AveragedModel(self.model, multi_avg_fn=warm_average(self.ema_decay), use_buffers=True)
        )
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
                row.val_accuracy = accuracy(self.model, self.val, self.precision)
                row.ema_accuracy = accuracy(average, self.val, self.precision) if average else None
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
        self, epoch: int, batches: Iterable[TrainingBatch], average: AveragedModel | None, bar: Bar
    ) -> tuple[Epoch, float]:
        self.model.train()
        steps = self.train.steps()
        total, waited, asked = torch.zeros((), device=self.train.loader_config.device), 0.0, time.perf_counter()
        for step, batch in enumerate(batches):
            waited += time.perf_counter() - asked
            images, labels = batch.images, self.train.labels(batch)
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr(epoch + step / steps if self.lr_per_step else epoch)
            mixed, targets = self.mix(images, labels, epoch, step) if self.mix else (images, labels)
            with autocast(mixed.device, self.precision):
                loss = self.loss(self.model(mixed), mixed, targets)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            if average:
                average.update_parameters(self.model)
            total += loss.detach()
            bar.advance(1, f"epoch {epoch + 1}/{self.epochs}")
            stop.check()
            asked = time.perf_counter()
        return Epoch(epoch, self.optimizer.param_groups[0]["lr"], total.item() / (step + 1)), waited

    def _save(self, outcome: Outcome, average: AveragedModel | None) -> None:
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

    def _resume(self, average: AveragedModel | None) -> Outcome:
        if not self.checkpoint.exists():
            return Outcome()
        state = torch.load(self.checkpoint, map_location=self.train.loader_config.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if average:
            average.load_state_dict(state["average"])
        return Outcome([Epoch(**row) for row in state["history"]], state["seconds"], state["data_wait_s"])


def warm_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """Exponential average whose decay grows to `decay` as (1 + n) / (10 + n): short trainings forget their start.

    The function takes the averaged tensors, the current ones, and the number n of averages so far.
    """

    def update(averaged: Any, current: Any, count: Any) -> None:
        n = int(count)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, count)

    return update


def accuracy(model: nn.Module, val: ValidationSet, precision: Precision) -> float:
    """Percent top-1 over the validation set; the model is left in evaluation mode."""
    model.eval()
    right = total = 0
    with torch.inference_mode():
        for images, labels in val.batches():
            with autocast(images.device, precision):
                right += int((model(images).argmax(1) == labels).sum())
            total += len(labels)
    return 100.0 * right / total


def autocast(device: torch.device, precision: ScorePrecision, auto: torch.dtype = torch.bfloat16) -> torch.autocast:
    """Mixed precision as configured; `auto` is the given type on a GPU, and none on a CPU."""
    half = auto if precision == "auto" else getattr(torch, precision)
    enabled = precision in ("bfloat16", "float16") or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=half if enabled else None, enabled=enabled)


def write_history(path: Path, history: list[Epoch]) -> None:
    """A CSV of the epochs; a cell is empty where nothing was measured."""
    write_csv(path, lambda file: pd.DataFrame([asdict(row) for row in history]).to_csv(file, index=False))
