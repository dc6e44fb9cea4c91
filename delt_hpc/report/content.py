"""The content of a report as plain data; report.json has the same structure. None means that there is no number."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from delt_hpc.report.paired import Interval


@dataclass(frozen=True)
class Missing:
    """A part that cannot be shown yet.

    Attributes:
        what: the reason, a sentence.
        stage: the stage to run; empty if none would help.
    """

    what: str
    stage: str = ""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (ddof 1; None for one value) of n values."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """How much better a student is on distilled images than on others, with the same labels.

    Attributes:
        base: the other images.
        points: paired difference of the final accuracies over the seeds that both have, percentage points.
        verdict: the same in words.
    """

    student: str
    labels: str
    base: str
    points: Interval
    verdict: str


@dataclass(frozen=True)
class Headline:
    """Accuracies in per cent; `ratio`: real training images per distilled image."""

    run: str
    method: str
    data_set: str
    size: int
    classes: int
    ipc: int
    images: int
    train_images: int
    val_images: int
    ratio: float
    teacher: str
    teacher_accuracy: float | None
    student: str | None
    labels: str | None
    distilled: Spread | None
    random: Spread | None
    difference: Difference | None
    recover_seconds: float | None


@dataclass(frozen=True)
class Training:
    """One training of a student from scratch; top-1 accuracies on the real validation images in per cent."""

    student: str
    seed: int
    arm: str
    images: str
    labels: str
    final: float
    best: float
    best_epoch: int
    ema: float | None
    epochs: int
    train_images: int
    parameters: int
    seconds: float
    device: str


@dataclass(frozen=True)
class ArmResult:
    """The results of a student on an arm over its seeds."""

    student: str
    arm: str
    images: str
    labels: str
    final: Spread
    best: Spread
    ema: Spread | None
    trainings: tuple[Training, ...]


@dataclass(frozen=True)
class StudentCurve:
    """Validation accuracy of a student on an arm: mean and sample standard deviation over n seeds at each epoch."""

    student: str
    arm: str
    n: int
    epochs: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float | None, ...]


@dataclass(frozen=True)
class ClassResult:
    """Accuracy on the validation images of a class, mean over the seeds, per cent, by the student's images."""

    index: int
    folder: str
    name: str
    images: int
    accuracy: dict[str, float]


@dataclass(frozen=True)
class Confused:
    """The share of the validation images of a class that students take for another class, per cent."""

    true: str
    predicted: str
    share: float


@dataclass(frozen=True)
class ByClass:
    """The final students of the headline, class by class.

    Attributes:
        shown: the students' images, in the order of the columns.
        seeds: of the students on distilled images.
        confused: the most frequent confusions of the students on distilled images.
        confusion: share of each class (row) that these take for each class (column), per cent; None for many classes.
    """

    student: str
    labels: str
    shown: tuple[str, ...]
    seeds: int
    classes: tuple[ClassResult, ...]
    confused: tuple[Confused, ...]
    confusion: tuple[tuple[float, ...], ...] | None


@dataclass(frozen=True)
class Link:
    """A file or folder of the run; `target` is relative to report/."""

    title: str
    target: str
    note: str


@dataclass(frozen=True)
class SampleImage:
    number: int
    distilled: str
    initial: str | None
    entry_round: int
    iterations: int


@dataclass(frozen=True)
class SampleClass:
    index: int
    folder: str
    name: str
    images: tuple[SampleImage, ...]


@dataclass(frozen=True)
class LossCurve:
    """The course of recovery: means over the batches at each recorded iteration.

    Attributes:
        total: iterations per batch.
        borders: the first iteration of every round.
        active: number of images being optimised.
    """

    batches: int
    total: int
    borders: tuple[int, ...]
    iterations: tuple[int, ...]
    active: tuple[float, ...]
    loss: tuple[float, ...]
    cross_entropy: tuple[float, ...]
    bn_loss: tuple[float, ...]


@dataclass(frozen=True)
class StageCost:
    """Times are sums over units of work, which may have run in parallel."""

    stage: str
    units: int
    seconds: float
    share: float
    data_wait_s: float
    compile_s: float
    peak_memory_mib: float | None
    devices: tuple[str, ...]


@dataclass(frozen=True)
class RoundCost:
    """The cost of a round of recovery over all batches."""

    round: int
    batches: int
    seconds: float
    seconds_per_batch: float
    image_iterations: int
    image_iterations_per_s: float | None
    data_wait_s: float
    compile_s: float


@dataclass(frozen=True)
class Costs:
    stages: tuple[StageCost, ...]
    rounds: tuple[RoundCost, ...]
    seconds: float
    started: str
    hosts: tuple[str, ...]


@dataclass(frozen=True)
class Diversity:
    """See `diversity.mean_cosine_to_centroid`; lower is more diverse."""

    initial: float | None
    distilled: float
    images: int
    classes: int


@dataclass(frozen=True)
class TeacherCard:
    """`epochs`, `train_loss` and `accuracy` describe its training; empty if it was not trained in this run."""

    model: str
    source: str
    weights: str | None
    parameters: int
    bn_layers: int
    val_accuracy: float | None
    seconds: float | None
    device: str | None
    epochs: tuple[int, ...]
    train_loss: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]


@dataclass(frozen=True)
class Step:
    """The description of a stage."""

    stage: str
    text: str


@dataclass(frozen=True)
class LeftOut:
    """An image file that was skipped because it is unreadable."""

    split: str
    path: str
    reason: str


@dataclass(frozen=True)
class Report:
    headline: Headline
    accuracy: tuple[ArmResult, ...]
    differences: tuple[Difference, ...]
    students: tuple[StudentCurve, ...]
    by_class: ByClass | None
    samples: tuple[SampleClass, ...]
    recovery: LossCurve | None
    costs: Costs | None
    diversity: Diversity | None
    teacher: TeacherCard | None
    steps: tuple[Step, ...]
    reference: str
    paper: str | None
    links: tuple[Link, ...]
    command: str
    read_by: str | None
    left_out: tuple[LeftOut, ...]
    config: dict[str, Any]
    versions: dict[str, str]
    missing: dict[str, Missing]

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON, with null for NaN and infinity, which JSON does not have."""
        plain: dict[str, Any] = _finite(asdict(self))
        return plain


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(body) for key, body in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(body) for body in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
