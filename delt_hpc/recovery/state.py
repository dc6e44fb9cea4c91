"""The state of a batch between two iterations."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from delt_hpc.errors import UserError
from delt_hpc.run.checkpoint import read_checkpoint, write_checkpoint


@dataclass
class State:
    """What a checkpoint holds.

    Attributes:
        images: float [N, 3, S, S], normalised, in the batch's order.
        exp_avg, exp_avg_sq: Adam's first and second moments, shaped as the images.
        cross_entropy: the last value of each image [N].
        t: iterations done.
        curve: one row per iteration: t, round, active, lr, smallest crop, loss, cross-entropy, BatchNorm distance.
        round_seconds: seconds spent in each round.
        initial: the images before the first iteration, at the size of the distilled images; only for runs that merge
            with them (`blocks`).
    """

    images: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    cross_entropy: Tensor
    t: int = 0
    curve: list[tuple[float, ...]] = field(default_factory=list)
    round_seconds: list[float] = field(default_factory=list)
    initial: Tensor | None = None

    @staticmethod
    def start(images: Tensor, initial: Tensor | None = None) -> "State":
        """The state before the first iteration."""
        return State(
            images.clone(),
            torch.zeros_like(images),
            torch.zeros_like(images),
            images.new_full((len(images),), torch.nan),
            initial=initial,
        )

    def to(self, device: torch.device) -> "State":
        """A copy on the device."""
        images, exp_avg, exp_avg_sq, cross_entropy = (
            tensor.to(device, copy=True) for tensor in (self.images, self.exp_avg, self.exp_avg_sq, self.cross_entropy)
        )
        initial = None if self.initial is None else self.initial.to(device, copy=True)
        return State(
            *(images, exp_avg, exp_avg_sq, cross_entropy),
            *(self.t, list(self.curve), list(self.round_seconds), initial),
        )

    def add_seconds(self, round_index: int, seconds: float) -> None:
        """Add to the time spent in a round."""
        self.round_seconds += [0.0] * (round_index + 1 - len(self.round_seconds))
        self.round_seconds[round_index] += seconds

    def check_finite(self, batch_id: str) -> None:
        """Call this before the state is saved.

        Raises:
            UserError: the images or moments contain NaN or infinity.
        """
        if not all(bool(tensor.isfinite().all()) for tensor in (self.images, self.exp_avg, self.exp_avg_sq)):
            raise not_finite("images", batch_id, self.t)

    def save(self, path: Path) -> None:
        """Write one file; it replaces an older one only when it is complete."""
        write_checkpoint(path, vars(self))

    @staticmethod
    def load(path: Path, device: torch.device) -> "State":
        """Read what `save` wrote.

        Raises:
            DamagedCheckpointError: the file is not as it was written.
        """
        return State(**read_checkpoint(path, device))


def not_finite(what: str, batch_id: str, t: int) -> UserError:
    """The error for losses or images that are not finite."""
    return UserError(
        f"{what} of batch {batch_id} contain NaN or infinity",
        where=f"iteration {t} or later",
        remedy="with recover.precision: float16, lower recover.loss_scale and run the same command again, which resumes"
        " from the last checkpoint; otherwise choose another precision in a new run folder",
    )
