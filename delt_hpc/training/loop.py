"""Training of a classifier from scratch: one loop for teachers (squeeze) and students (evaluate)."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from delt_hpc.config.schema import Precision
from delt_hpc.data.bad_files import BadFile, BadFiles
from delt_hpc.data.epochs import TrainingBatch
from delt_hpc.data.loader import TrainingSet, ValidationSet
from delt_hpc.errors import UserError
from delt_hpc.keyed_random import seeded
from delt_hpc.run import stop
from delt_hpc.run.async_files import AsyncFiles
from delt_hpc.run.checkpoint import read_checkpoint, write_checkpoint
from delt_hpc.run.folder import write_csv
from delt_hpc.run.progress import Bar
from delt_hpc.run.tracker import UnitTracker
from delt_hpc.training.average import MovingAverage
from delt_hpc.training.compiled import compile_network
from delt_hpc.training.precision import autocast, training_dtype

CHECKPOINT_SECONDS = 60.0  # between two checkpoints, at least


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


@dataclass
class Progress:
    """How far a training is: the finished epochs, and the steps and summed losses of the unfinished one.

    Attributes:
        next_step: of the unfinished epoch.
        batches: trained on in the unfinished epoch; fewer than steps if files of whole batches were skipped.
        loss: sum of their losses, a float32 scalar on the device.
        began: `time.monotonic()` of the start; time between an interruption and the restart is not counted.
    """

    outcome: Outcome
    loss: Tensor
    next_step: int = 0
    batches: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def epoch(self) -> int:
        return len(self.outcome.history)


@dataclass(frozen=True, eq=False)
class Training:
    """A training that resumes from its last checkpoint and then ends with the same result as an undisturbed one.

    A checkpoint is written every `CHECKPOINT_SECONDS`, beside the work, and when the training stops as it was asked to.
    It holds the state between two steps. Order and random draws are functions of (key, epoch, step), so they are not
    part of it.

    The model and its images are kept in channels_last memory format, in which convolutions are fastest.

    Attributes:
        lr: learning rate as a function of the epoch; the epoch has a fraction if `lr_per_step`.
        loss: (outputs [B, classes], images [B, 3, S, S], labels) -> scalar, under autocast.
        precision: autocast type of training and validation.
        validate_every: epochs between two validations; the last epoch is always validated.
        checkpoint: file of the state between two steps.
        lr_option: key of the learning rate in the configuration, for errors.
        mix: (images, labels, epoch, step) -> mixed images and labels, e.g. CutMix.
        ema_decay: final decay of the averaged model; None trains no averaged model.
        compile: whether the model's steps are compiled; validations are not.
        stored_logits: the teacher's logits of a batch, which the loss is given instead of the images.
        tracker: is given the figures of every epoch.
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
    lr_option: str
    lr_per_step: bool = False
    mix: Callable[[Tensor, Tensor, int, int], tuple[Tensor, Tensor]] | None = None
    ema_decay: float | None = None
    compile: bool = False
    stored_logits: Callable[[TrainingBatch], Tensor] | None = None
    tracker: UnitTracker | None = None

    def run(self, bar: Bar) -> Outcome:
        """Train to the last epoch; the bar counts steps.

        Raises:
            UserError: no training image is readable, or the training diverged.
            Interrupted: a stop was requested; the state is saved.
        """
        self.model.to(memory_format=torch.channels_last)
        average = None if self.ema_decay is None else MovingAverage(self.model, self.ema_decay)
        progress = self._resume(average)
        bar.resume(progress.epoch * self.train.steps() + progress.next_step)
        with AsyncFiles(pending=1) as files:
            try:
                self._train(progress, average, files, bar)
            except stop.Interrupted:
                self._save(progress, average, files)
                raise
        return progress.outcome

    def _train(self, progress: Progress, average: MovingAverage | None, files: AsyncFiles, bar: Bar) -> None:
        """All steps and validations that are left. Interrupted is raised only where `progress` is consistent."""
        saved = requested = time.monotonic()
        self.model.train()
        with closing(self.train.batches(progress.epoch, self.epochs, progress.next_step)) as stream:
            for batch in stream:
                progress.outcome.data_wait_s += time.monotonic() - requested
                while batch.epoch > progress.epoch:
                    self._end_epoch(progress, average)
                    self.model.train()
                self._step(batch, progress, average)
                bar.advance(1, f"epoch {progress.epoch + 1}/{self.epochs}")
                stop.check()
                if time.monotonic() - saved >= CHECKPOINT_SECONDS:
                    self._save(progress, average, files)
                    saved = time.monotonic()
                requested = time.monotonic()
        self._end_epoch(progress, average)

    def _step(self, batch: TrainingBatch, progress: Progress, average: MovingAverage | None) -> None:
        """Train on a batch. Nothing here waits for the GPU: losses are added up on the device."""
        device, epoch, step = self.train.loader_config.device, batch.epoch, batch.step
        images, targets = self.inputs(batch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(epoch + step / self.train.steps() if self.lr_per_step else epoch)
        # Dropout draws from torch's own generators.
        with seeded(*self.train.key, "network", epoch, step), autocast(device, training_dtype(self.precision, device)):
            output = self._forward(images)
            loss = self.loss(output, self.stored_logits(batch) if self.stored_logits else images, targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if average:
            average.update(self.model)
        progress.loss += loss.detach()
        progress.batches += 1
        progress.next_step = step + 1

    def inputs(self, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """The images of a step, mixed, in channels_last memory format, and their class labels."""
        images, targets = batch.images, self.train.labels(batch)
        if self.mix:
            images, targets = self.mix(images, targets, self.train.drawn(batch.epoch), batch.step)
        return images.contiguous(memory_format=torch.channels_last), targets

    @cached_property
    def _forward(self) -> Callable[[Tensor], Tensor]:
        return compile_network(self.model) if self.compile else self.model

    def _end_epoch(self, progress: Progress, average: MovingAverage | None) -> None:
        """Validate where that is due, and add the epoch's row to the history."""
        if progress.batches == 0:
            raise UserError("not one training image is readable", where=str(self.train.index.root))
        number = progress.epoch + 1
        row = Epoch(progress.epoch, self.optimizer.param_groups[0]["lr"], progress.loss.item() / progress.batches)
        if not (math.isfinite(row.train_loss) and self._is_finite()):
            raise UserError(
                f"the training diverged in epoch {number}: its loss or weights are not finite",
                where=self.lr_option,
                remedy=f"lower {self.lr_option}, and delete {self.checkpoint.parent}",
            )
        if number == self.epochs or number % self.validate_every == 0:
            networks = [self.model, average.model] if average else [self.model]
            row.val_accuracy, *ema = accuracies(networks, self.val, self.precision)
            row.ema_accuracy = ema[0] if ema else None
        outcome = progress.outcome
        outcome.history.append(row)
        if self.tracker:
            figures = {name: value for name, value in asdict(row).items() if name != "epoch" and value is not None}
            self.tracker.log(figures, row.epoch)
        outcome.seconds = time.monotonic() - progress.began
        progress.loss.zero_()
        progress.next_step = progress.batches = 0

    def _is_finite(self) -> bool:
        return bool(torch.stack([parameter.isfinite().all() for parameter in self.model.parameters()]).all())

    def _save(self, progress: Progress, average: MovingAverage | None, files: AsyncFiles) -> None:
        """Copy the state to the host's memory; it is written while the training goes on."""
        outcome = progress.outcome
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": average.state_dict() if average else None,
            "history": [asdict(row) for row in outcome.history],
            "loss": progress.loss,
            "next_step": progress.next_step,
            "batches": progress.batches,
            "skipped": {part: [asdict(file) for file in bad.files] for part, bad in self._bad_files().items()},
            "seconds": time.monotonic() - progress.began,
            "data_wait_s": outcome.data_wait_s,
        }
        files.write(write_checkpoint, self.checkpoint, _host_copy(state))

    def _resume(self, average: MovingAverage | None) -> Progress:
        device = self.train.loader_config.device
        if not self.checkpoint.exists():
            return Progress(Outcome(), torch.zeros((), device=device))
        state = read_checkpoint(self.checkpoint, device)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if average:
            average.load_state_dict(state["average"])
        for part, bad in self._bad_files().items():
            bad.skipped += [BadFile(**file) for file in state["skipped"][part]]
        outcome = Outcome([Epoch(**row) for row in state["history"]], state["seconds"], state["data_wait_s"])
        began = time.monotonic() - state["seconds"]
        return Progress(outcome, state["loss"], state["next_step"], state["batches"], began)

    def _bad_files(self) -> dict[str, BadFiles]:
        return {"train": self.train.bad, "val": self.val.bad}


def _host_copy(state: Any) -> Any:
    """A copy of nested dicts and lists whose tensors lie in the host's memory and no longer change."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _host_copy(value) for key, value in state.items()}
    return [_host_copy(value) for value in state] if isinstance(state, list) else state


def accuracies(networks: Sequence[nn.Module], val: ValidationSet, precision: Precision) -> list[float]:
    """Top-1 accuracy of each network in percent, in one pass over the images; leaves them in evaluation mode.

    Raises:
        UserError: no validation image is readable.
        Interrupted: a stop was requested.
    """
    for network in networks:
        network.eval()
    correct: list[Tensor] = []  # added up on the device, read once at the end
    count = 0
    with torch.inference_mode():
        for images, labels in val.batches():
            stop.check()
            with autocast(images.device, training_dtype(precision, images.device)):
                correct.append(torch.stack([(network(images).argmax(1) == labels).sum() for network in networks]))
            count += len(labels)
    if not correct:
        raise UserError("not one validation image is readable", where="data.val")
    return [100.0 * right / count for right in torch.stack(correct).sum(0).tolist()]


def write_history(path: Path, history: list[Epoch]) -> None:
    """A CSV with one row an epoch; cells of epochs without validation are empty."""
    write_csv(path, lambda file: pd.DataFrame([asdict(row) for row in history]).to_csv(file, index=False))
