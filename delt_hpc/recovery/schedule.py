"""Entry rounds of images, and learning rate and smallest crop of each iteration (DELT, section 3.2); blocks (FADRM)."""

import math
from dataclasses import dataclass

from delt_hpc.config.schema import Recover


def entry_rounds(images: int, rounds: int) -> list[int]:
    """The entry round of each image of a class, in selection order.

    images // rounds images enter in each round, and one more in each of the first images % rounds rounds.
    """
    per_round, remainder = divmod(images, rounds)
    return [r for r in range(rounds) for _ in range(per_round + (r < remainder))]


def active_images(images: int, rounds: int) -> list[int]:
    """The number of images of a class that are optimised in each round."""
    entries = entry_rounds(images, rounds)
    return [sum(entry <= r for entry in entries) for r in range(rounds)]


def image_iterations(images: int, rounds: int, round_length: int) -> int:
    """Active images, summed over all iterations of one class: the cost of recovery."""
    return sum(active_images(images, rounds)) * round_length


@dataclass(frozen=True)
class Schedule:
    """Learning rate and smallest crop as functions of the iteration t = 0 .. iterations - 1."""

    iterations: int
    round_length: int
    lr0: float
    lr_schedule: str
    min_crop: float
    crop_schedule: str
    milestone: float
    blocks: int = 1
    adam_moments: str = "per_block"

    @staticmethod
    def of(recover: Recover) -> "Schedule":
        return Schedule(
            recover.iterations,
            recover.round_length,
            recover.lr,
            recover.lr_schedule,
            recover.min_crop,
            recover.crop_schedule,
            recover.milestone,
            recover.blocks,
            recover.adam_moments,
        )

    @property
    def rounds(self) -> int:
        return self.iterations // self.round_length if self.iterations else 1

    def round(self, t: int) -> int:
        return t // self.round_length

    @property
    def block_length(self) -> int:
        return self.iterations // self.blocks

    def block(self, t: int) -> int:
        return t // self.block_length

    def starts_block(self, t: int) -> bool:
        """Whether iteration t is the first of a block other than the first one."""
        return 0 < t < self.iterations and t % self.block_length == 0

    def iterations_to_border(self, t: int) -> int:
        """Iterations from t to the end of its round or block, whichever comes first."""
        return min(length - t % length for length in (self.round_length, self.block_length))

    def adam_start(self, t: int) -> int:
        """The iteration from which on Adam counts its steps at iteration t."""
        return t - t % self.block_length if self.adam_moments == "per_block" else 0

    def lr(self, t: int) -> float:
        """lr0 (1 + cos(pi t / T)) / 2 over the run, or over each round."""
        progress = t / self.iterations
        if self.lr_schedule == "per_round":
            progress = t % self.round_length / self.round_length
        return self.lr0 * (1 + math.cos(math.pi * progress)) / 2

    def smallest_crop(self, t: int) -> float:
        """The smallest area of a crop, as a share of the image: from 1 at the start to min_crop at the milestone.

        `cosine` and `linear` decrease gradually, `step` drops at the milestone, `constant` is min_crop from the start.
        """
        progress = min(1.0, t / (self.milestone * self.iterations))
        remaining = {
            "cosine": (1 + math.cos(math.pi * progress)) / 2,
            "linear": 1 - progress,
            "step": 1.0 if progress < 1 else 0.0,
            "constant": 0.0,
        }[self.crop_schedule]
        return self.min_crop + (1 - self.min_crop) * remaining
