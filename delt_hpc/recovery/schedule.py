"""When images enter, and the learning rate and crop of each iteration. Pure arithmetic (DELT, section 3.2)."""

import math
from dataclasses import dataclass

from delt_hpc.config.schema import Recover


def entry_rounds(images: int, rounds: int) -> list[int]:
    """The round in which each of a class's images enters, in selection order.

    Every round takes images // rounds of them, the first images % rounds one more; a round may take none.
    """
    share, more = divmod(images, rounds)
    return [r for r in range(rounds) for _ in range(share + (r < more))]


def active_images(images: int, rounds: int) -> list[int]:
    """How many of a class's images are optimised in each round."""
    entries = entry_rounds(images, rounds)
    return [sum(entry <= r for entry in entries) for r in range(rounds)]


def image_iterations(images: int, rounds: int, round_length: int) -> int:
    """Images times iterations over a whole run of one class: the cost of recovery."""
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
        )

    @property
    def rounds(self) -> int:
        return self.iterations // self.round_length

    def round(self, t: int) -> int:
        return t // self.round_length

    def lr(self, t: int) -> float:
        """lr0 (1 + cos(pi t / T)) / 2 over the run, or over each round by itself."""
        done = t / self.iterations
        if self.lr_schedule == "per_round":
            done = t % self.round_length / self.round_length
        return self.lr0 * (1 + math.cos(math.pi * done)) / 2

    def smallest_crop(self, t: int) -> float:
        """Least share of the area a crop may have: from 1 (whole images, easy) to min_crop (hard) at the milestone.

        `cosine` and `linear` fall all the way, `step` jumps at the milestone, `constant` is min_crop from the start.
        """
        done = min(1.0, t / (self.milestone * self.iterations))
        ease = {
            "cosine": (1 + math.cos(math.pi * done)) / 2,
            "linear": 1 - done,
            "step": 1.0 if done < 1 else 0.0,
            "constant": 0.0,
        }[self.crop_schedule]
        return self.min_crop + (1 - self.min_crop) * ease
