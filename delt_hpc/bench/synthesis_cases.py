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
"""Pixels of the images each is measured with."""

SEED = 0
_STATISTICS = 16  # images that a teacher's statistics come from
_SHIFT = 2.0  # of BatchNorm, in standard deviations
_COARSE = 8  # pixels between two independent values of the smooth part of a picture


@dataclass(frozen=True)
class Recipe:
    """The recovery that costs are told of."""

    ipc: int = 50
    batch_size: int = 100
    iterations: int = 4000
    rounds: int = 8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise UserError(f"{value} is too few", where=f"--{name.replace('_', '-')}", expected="1 at least")
        if self.iterations % self.rounds:
            raise UserError(
                f"{self.iterations} iterations are not {self.rounds} rounds of one length",
                where="--iterations, --rounds",
                expected=f"e.g. --iterations {self.round_length * self.rounds or self.rounds} --rounds {self.rounds}",
            )

    @property
    def round_length(self) -> int:
        return self.iterations // self.rounds

    def recover(self, **changes: Any) -> Recover:
        return Recover(
            batch_size=self.batch_size, iterations=self.iterations, round_iterations=self.round_length, **changes
        )


class Case:
    """A network, and a batch for every round with its images.

    Attributes:
        datasets: the registered data sets of its size and their classes; `spec` is that with the most.
        teacher: frozen, in evaluation mode, on the device.
        batches: of each round the batch that begins it, one after the other from the data set's plan.
        passes: image-iterations an image costs in the recipe, on average.
        work: what its network asks for.
    """

    def __init__(self, network: str, recipe: Recipe, device: torch.device) -> None:
        self.network, self.recipe, self.size = network, recipe, NETWORKS[network]
        self.datasets = {spec.name: spec.classes for spec in SPECS.values() if spec.size == self.size}
        self.spec: DatasetSpec = SPECS[max(self.datasets, key=lambda name: self.datasets[name])]
        self.teacher = teacher(network, self.spec).to(device)
        every = plan(self.spec.classes, recipe.ipc, recipe.recover())
        self.batches: list[Batch] = [every[r % len(every)] for r in range(recipe.rounds)]
        self._images = [pictures(len(batch.entries), self.size, "images", r) for r, batch in enumerate(self.batches)]
        total = sum(batch.active(r) for batch in every for r in range(recipe.rounds)) * recipe.round_length
        self.passes = total / sum(len(batch.entries) for batch in every)
        self.work = floor.work(self.teacher, self.size)

    def images(self, round_index: int) -> Tensor:
        """What a round's batch begins with: float32 [B, 3, S, S] on the CPU."""
        return self._images[round_index]


def teacher(network: str, spec: DatasetSpec) -> nn.Module:
    """Fresh weights; the statistics are those of one pass of pictures, so that every layer's fit those before it.

    BatchNorm's shifts are high. With random weights and many values near zero, the ReLUs that flip with the last bit
    would change the gradient of a deep network more than any mistake.
    """
    with seeded("bench", network), torch.no_grad():
        made = build(network, spec.classes, spec.size)
        for layer in made.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None  # the average of all passes, of which there is one
                layer.bias.fill_(_SHIFT)
        made.train()(pictures(_STATISTICS, spec.size, "statistics"))
    return made.eval().requires_grad_(False)


def pictures(count: int, size: int, *key: Key) -> Tensor:
    """Random images, mostly smooth as real ones are: float32 [count, 3, size, size]."""
    random = generator("bench", *key)
    coarse = torch.randn(count, 3, size // _COARSE, size // _COARSE, generator=random)
    fine = torch.randn(count, 3, size, size, generator=random)
    return F.interpolate(coarse, size=size, mode="bilinear") + fine / 2
