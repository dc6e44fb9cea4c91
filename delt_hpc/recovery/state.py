"""All that a batch is between two iterations."""

import io
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from delt_hpc.run.folder import writing


@dataclass
class State:
    """`t` iterations are done.

    Attributes:
        images: float [N, 3, S, S], normalised, rows in the batch's order.
        first, second: Adam's moments, as images.
        cross_entropy: last value of each image [N].
        curve: one row an iteration: t, round, active, lr, smallest crop, loss, cross-entropy, BatchNorm part.
        round_seconds: seconds spent in each round.
    """

    images: Tensor
    first: Tensor
    second: Tensor
    cross_entropy: Tensor
    t: int = 0
    curve: list[tuple[float, ...]] = field(default_factory=list)
    round_seconds: list[float] = field(default_factory=list)

    @staticmethod
    def start(images: Tensor) -> "State":
        return State(
            images.clone(),
            torch.zeros_like(images),
            torch.zeros_like(images),
            images.new_full((len(images),), torch.nan),
        )

    def on(self, device: torch.device) -> "State":
        """A copy on a device."""
        images, first, second, cross_entropy = (
            tensor.to(device, copy=True) for tensor in (self.images, self.first, self.second, self.cross_entropy)
        )
        return State(images, first, second, cross_entropy, self.t, list(self.curve), list(self.round_seconds))

    def spent(self, round_index: int, seconds: float) -> None:
        """Add to a round's time."""
        self.round_seconds += [0.0] * (round_index + 1 - len(self.round_seconds))
        self.round_seconds[round_index] += seconds

    def save(self, path: Path) -> None:
        """As one file, whole or not there."""
        buffer = io.BytesIO()
        torch.save(vars(self), buffer)
        with writing(path) as file:
            file.write(buffer.getbuffer())

    @staticmethod
    def load(path: Path, device: torch.device) -> "State":
        return State(**torch.load(path, map_location=device, weights_only=True))
