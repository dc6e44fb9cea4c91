"""What the benchmark of the stages times: one stage's work on random images, by default settings or in a plain form."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from delt_hpc.data.catalog.specs import IMAGENET_MEAN, IMAGENET_STD, DatasetSpec, margin

BenchStage = Literal["squeeze", "rank", "recover", "evaluate"]
Settings = Literal["default", "plain", "reference", "uncompiled"]


@dataclass(frozen=True)
class Case:
    """The work of one stage.

    Attributes:
        network: squeeze's and rank's network, recovery's teacher, evaluation's student.
        teacher: evaluation's teacher.
        size: height and width of the images, pixels.
        classes: recovery plans its batches for all of them, with `ipc` images each.
        batch_size: None: the stage's default.
    """

    stage: BenchStage
    network: str
    teacher: str
    size: int
    classes: int
    ipc: int
    batch_size: int | None
    device: torch.device

    @property
    def spec(self) -> DatasetSpec:
        return DatasetSpec(
            "random", self.classes, self.size, margin(self.size), IMAGENET_MEAN, IMAGENET_STD, True, self.teacher
        )


class Block(NamedTuple):
    """A timed block: images that went through the network, each as often as it did, and seconds."""

    images: int
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
