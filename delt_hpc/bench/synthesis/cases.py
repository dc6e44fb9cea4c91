"""What the synthesis benchmark recovers: a teacher with random weights but real statistics, and random images."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delt_hpc.bench import floor
from delt_hpc.config.schema import Recover
from delt_hpc.data.catalog.specs import SPECS, DatasetSpec
from delt_hpc.errors import UserError
from delt_hpc.keyed_random import Key, generator, seeded
from delt_hpc.models.registry import build
from delt_hpc.recovery.batches import Batch, plan

NETWORKS = {"resnet18": 224, "resnet50": 224, "resnet18-small-stem": 32, "convnet3": 32, "convnet4": 64}
"""Image size of each in pixels."""

SEED = 0
_STATISTICS_IMAGES = 16
_BN_SHIFT = 2.0  # in standard deviations
_COARSE = 8  # pixels between two independent values of the smooth part of an image


@dataclass(frozen=True)
class Recipe:
    """The recovery whose iterations are timed."""

    ipc: int = 50
    batch_size: int = 100
    rounds: int = 8
    iterations: int = 4000

    def __post_init__(self) -> None:
        if self.iterations % self.rounds:
            raise UserError(
                f"{self.iterations} iterations cannot be split into {self.rounds} equal rounds",
                where=f"--rounds {self.rounds}",
                expected="a divisor, e.g. 8",
            )

    @property
    def round_length(self) -> int:
        return self.iterations // self.rounds

    def recover(self, **changes: Any) -> Recover:
        return Recover(
            batch_size=self.batch_size, iterations=self.iterations, round_iterations=self.round_length, **changes
        )


class Case:
    """A network, and for every round a batch with its images.

    Attributes:
        spec: of the registered data sets of the network's image size, the one with the most classes.
        teacher: frozen, in evaluation mode, on the device.
        batches: for each round the batch that begins it.
        iterations_per_image: iterations of the recipe that an image takes part in, on average.
        work: FLOPs and bytes that the network needs.
    """

    def __init__(self, network: str, recipe: Recipe, device: torch.device) -> None:
        self.network, self.recipe, self.size = network, recipe, NETWORKS[network]
        candidates = [spec for spec in SPECS.values() if spec.size == self.size]
        self.spec: DatasetSpec = max(candidates, key=lambda spec: spec.classes)
        self.teacher = teacher(network, self.spec).to(device)
        planned = plan(self.spec.classes, recipe.ipc, recipe.recover())
        self.batches: list[Batch] = [planned[r % len(planned)] for r in range(recipe.rounds)]
        self._images = [
            random_images(len(batch.entries), self.size, "images", r) for r, batch in enumerate(self.batches)
        ]
        active = sum(batch.active(r) for batch in planned for r in range(recipe.rounds))
        self.iterations_per_image = active * recipe.round_length / sum(len(batch.entries) for batch in planned)
        self.work = floor.work(self.teacher, self.size)

    def images(self, round_index: int) -> Tensor:
        """First images of a round's batch: float32 [B, 3, S, S] on the CPU."""
        return self._images[round_index]


def teacher(network: str, spec: DatasetSpec) -> nn.Module:
    """Random weights; the BatchNorm statistics are those of a pass of random images, so that each layer fits its input.

    BatchNorm's shifts are high: with many values near zero, ReLUs that flip with the last bit would change the gradient
    of a deep network more than any mistake does.
    """
    with seeded("bench", network), torch.no_grad():
        made = build(network, spec.classes, spec.size)
        for layer in made.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None  # running statistics are then the average of all passes, here of one
                layer.bias.fill_(_BN_SHIFT)
        made.train()(random_images(_STATISTICS_IMAGES, spec.size, "statistics"))
    return made.eval().requires_grad_(False)


def random_images(count: int, size: int, *key: Key) -> Tensor:
    """Mostly smooth, as real ones are: float32 [count, 3, size, size]."""
    random = generator("bench", *key)
    coarse = torch.randn(count, 3, size // _COARSE, size // _COARSE, generator=random)
    fine = torch.randn(count, 3, size, size, generator=random)
    return F.interpolate(coarse, size=size, mode="bilinear") + fine / 2
