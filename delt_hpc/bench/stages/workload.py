"""The work of a stage on random images, which the benchmarks of stages and engines check, repeat and time."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delt_hpc.config.schema import Recover
from delt_hpc.data.catalog.specs import IMAGENET_MEAN, IMAGENET_STD, DatasetSpec, margin
from delt_hpc.errors import UserError
from delt_hpc.keyed_random import Key, generator, seeded
from delt_hpc.models.registry import build

BenchStage = Literal["squeeze", "rank", "recover", "evaluate"]
Settings = Literal["default", "plain", "reference", "uncompiled"]

SIZES = {"resnet18": 224, "resnet50": 224, "resnet18-small-stem": 32, "convnet3": 32, "convnet4": 64}
"""The usual image size of each network in pixels."""

ITERATIONS = 4000  # of a recovery, as published
_STATISTICS_IMAGES = 16
_BN_SHIFT = 2.0  # in standard deviations
_COARSE = 8  # pixels between two independent values of the smooth part of an image


@dataclass(frozen=True)
class Case:
    """The work of one stage.

    Attributes:
        network: squeeze's and rank's network, recovery's teacher, evaluation's student.
        teacher: evaluation's teacher.
        size: height and width of the images, pixels.
        classes: recovery plans its batches for all of them, with `ipc` images each.
        batch_size: None: the stage's default.
        rounds: of recovery.
    """

    stage: BenchStage
    network: str
    teacher: str
    size: int
    classes: int
    ipc: int
    batch_size: int | None
    device: torch.device
    rounds: int = 8

    def __post_init__(self) -> None:
        if ITERATIONS % self.rounds:
            raise UserError(
                f"{ITERATIONS} iterations cannot be split into {self.rounds} equal rounds",
                where=f"--rounds {self.rounds}",
                expected="a divisor, e.g. 8",
            )

    @property
    def spec(self) -> DatasetSpec:
        return DatasetSpec(
            "random", self.classes, self.size, margin(self.size), IMAGENET_MEAN, IMAGENET_STD, True, self.teacher
        )

    def recover(self, **options: Any) -> Recover:
        """The configuration of the recovery, with these options besides the work."""
        work = {"iterations": ITERATIONS, "round_iterations": ITERATIONS // self.rounds}
        return Recover(**work | ({"batch_size": self.batch_size} if self.batch_size else {}) | options)


class Block(NamedTuple):
    """A timed block: images that went through the network, each as often as it did; passes through it; seconds."""

    images: int
    passes: int
    seconds: float


class Workload(Protocol):
    """Work that can be repeated.

    Attributes:
        dtype: of the network's activations.
        batch_size: images of a step.
    """

    dtype: torch.dtype
    batch_size: int

    def error(self) -> float:
        """Relative error of the first step against the plain form in float64; call it before any block.

        Raises:
            InexactError: it is larger than rounding in `dtype` explains.
        """

    def block(self, steps: int) -> Block:
        """Time a number of steps."""


class InexactError(Exception):
    """The results of a workload are wrong."""


# A few times the errors that rounding causes; those of wrong gradients exceed 1.
ALLOWED = {torch.float32: 1e-2, torch.bfloat16: 0.4, torch.float16: 0.1}


def checked(found: Tensor, exact: Tensor, allowed: float) -> float:
    """The relative error in the Euclidean norm.

    Raises:
        InexactError: it is larger than allowed, or NaN.
    """
    error = float((found.double() - exact.double()).norm() / exact.double().norm())
    if not error <= allowed:
        raise InexactError(f"wrong: relative error {error:.1e}, at most {allowed:.0e} allowed")
    return error


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
