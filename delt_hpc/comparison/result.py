"""The result of one run of a comparison as a JSON file: all that the page needs, without the run folder."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from delt_hpc.comparison.plan import REAL, Entry
from delt_hpc.config.load import load_config
from delt_hpc.config.schema import Config, Stage, identity
from delt_hpc.errors import UserError
from delt_hpc.models import teacher
from delt_hpc.report import tables
from delt_hpc.run import checksums
from delt_hpc.run.folder import DONE, RunFolder, differences, is_done, read_json, write_json
from delt_hpc.run.hardware import processor

REPORT = "report.json"
# What the accuracy of real images does not depend on.
_OWN = ("recover.", "rank.", "select.strategy")
_AUGMENTATION = tuple(f"evaluate.{name}" for name in ("mix", "randaugment", "crop_scale", "shuffle_patches", "mirror"))


@dataclass(frozen=True)
class Training:
    """One training of a student: top-1 on the real validation images in per cent, first of all at the last epoch."""

    student: str
    seed: int
    images: str
    labels: str
    final: float
    best: float
    ema: float | None
    epochs: int
    train_images: int


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        name, label, point, plain: as in `plan.Entry`.
        external: how the set of another tool was read; empty for a set of this package.
        identity: the options that the result depends on.
        fingerprint: of the data set's images.
        teacher: model, source, val_accuracy, checksum of the weights.
        data: name, size, classes, ipc, train_images, val_images of the data set.
        seconds: of selection and recovery, and of scoring crops, added up over all tasks.
        image_iterations: of recovery.
        peak_memory_mib: of recovery.
        diversity: mean cosine similarity to the class's centroid (report); lower is more diverse.
        versions, hardware, date: of the run.
    """

    name: str
    label: str
    point: tuple[str, ...]
    plain: bool
    external: str
    identity: dict[str, Any]
    fingerprint: str
    teacher: dict[str, Any]
    data: dict[str, Any]
    trainings: tuple[Training, ...]
    seconds: float | None
    image_iterations: int | None
    peak_memory_mib: float | None
    diversity: float | None
    versions: dict[str, str]
    hardware: str
    date: str

    @cached_property
    def protocol(self) -> str:
        """Equal for results that are comparable: the same images, teacher, protocol and number of images."""
        return self._key(())

    @cached_property
    def protocol_without_augmentation(self) -> str:
        """As `protocol`, but whatever the augmentation."""
        return self._key(_AUGMENTATION)

    def _key(self, left_out: tuple[str, ...]) -> str:
        kept = {key: value for key, value in self.identity.items() if not key.startswith((*_OWN, *left_out))}
        return json.dumps([kept, self.fingerprint, self.teacher["checksum"]], sort_keys=True)

    def accuracies(self, images: str, labels: str, student: str) -> dict[int, float]:
        """The final accuracy by seed."""
        return {
            training.seed: training.final
            for training in self.trainings
            if (training.images, training.labels, training.student) == (images, labels, student)
        }

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))

    @staticmethod
    def read(path: Path) -> "Result":
        """Read what `write` wrote.

        Raises:
            UserError: the file is missing or damaged.
        """
        content = tables.record(path, [field.name for field in fields(Result)])
        try:
            trainings = tuple(Training(**training) for training in content["trainings"])
            return Result(**content | {"trainings": trainings, "point": tuple(content["point"])})
        except TypeError:
            raise UserError("is damaged", where=str(path), expected="what `delt-hpc compare` wrote") from None


def read_report(root: Path) -> dict[str, Any]:
    """The numbers of a run's report.

    Raises:
        UserError: there is no report, or it is damaged.
    """
    run = RunFolder(root)
    if not is_done(run.report):
        raise UserError("has no report", where=str(root), remedy=f"finish the run: delt-hpc run {root}")
    checksums.require(run.report, "report", [REPORT])
    return tables.record(run.report / REPORT, ("headline", "accuracy", "costs", "diversity", "teacher", "versions"))


def of_run(root: Path, report: Mapping[str, Any], entry: Entry | None = None, external: str = "") -> Result:
    """The result of a finished run.

    Args:
        report: the content of its report.json.
        entry: what it is in a comparison; unless given, its label is the name of its folder.
        external: how its distilled set was read, if another tool made it.

    Raises:
        UserError: the folder is not a run's.
    """
    run, config = RunFolder(root), entry.config if entry else load_config(str(root))
    # Scoring the training images is the work of all; scoring crops is a method's own.
    own: tuple[Stage, ...] = (
        ("select", "recover") if config.rank.candidates == "images" else ("rank", "select", "recover")
    )
    head, diversity, (seconds, passes, memory) = report["headline"], report["diversity"], _costs(report["costs"], own)
    card = report["teacher"] or {}
    listed = read_json(run.teacher / DONE)[checksums.FILES]
    dataset = read_json(run.dataset)
    trainings = [one for arm in report["accuracy"] for one in arm["trainings"]]
    wanted = [field.name for field in fields(Training)]
    result = Result(
        name=entry.name if entry else root.resolve().name,
        label=entry.label if entry else root.resolve().name,
        point=entry.point if entry else (),
        plain=bool(entry and entry.plain),
        external=external,
        identity=identity(config, "evaluate"),
        fingerprint=dataset["fingerprint"],
        teacher={key: card.get(key) for key in ("model", "source", "val_accuracy")}
        | {"checksum": listed[teacher.WEIGHTS]["blake2b"]},
        data={key: head[key] for key in ("classes", "ipc", "size", "train_images", "val_images")}
        | {"name": head["data_set"]},
        trainings=tuple(Training(**{name: one[name] for name in wanted}) for one in trainings),
        seconds=seconds,
        image_iterations=passes,
        peak_memory_mib=memory,
        diversity=diversity["distilled"] if diversity else None,
        versions={name: text for name, text in report["versions"].items() if name != "platform"},
        hardware=_hardware(report["costs"]),
        date=report["costs"]["started"] if report["costs"] else "",
    )
    # A foreign set, and real images, cost nothing here.
    free = bool(external) or (entry is not None and entry.label == REAL)
    return replace(result, seconds=None, image_iterations=None, peak_memory_mib=None) if free else result


def _costs(costs: Mapping[str, Any] | None, own: Sequence[Stage]) -> tuple[float | None, int | None, float | None]:
    """Seconds of a method's own stages, image-iterations and peak memory of recovery."""
    if costs is None:
        return None, None, None
    stages = {stage["stage"]: stage for stage in costs["stages"] if stage["stage"] in own}
    if not stages:
        return None, None, None
    passes = sum(int(row["image_iterations"]) for row in costs["rounds"])
    memory = stages["recover"]["peak_memory_mib"] if "recover" in stages else None
    return sum(stage["seconds"] for stage in stages.values()), passes, memory


def _hardware(costs: Mapping[str, Any] | None) -> str:
    """The devices of the timing records; with the processor's name if they are this machine's."""
    if costs is None:
        return ""
    devices = sorted({device for stage in costs["stages"] for device in stage["devices"]})
    here = list(costs["hosts"]) == [platform.node()]
    return ", ".join([*devices, *([processor()] * here)])


def is_current(path: Path, entry: Entry, external: str = "") -> bool:
    """Whether the file holds the whole result of the entry.

    Raises:
        UserError: it holds the result of another configuration, or of another external set.
    """
    if not path.exists():
        return False
    result = Result.read(path)
    found = differences(result.identity, identity(entry.config, "evaluate"))
    if result.external != external:
        found.append(f"external set: {result.external}, now {external}")
    if found:
        raise UserError(
            "was made with another configuration:\n    " + "\n    ".join(found),
            where=str(path),
            remedy="choose another folder (--out, --run), restore the value, or delete this file and the run's folder",
        )
    have = {(one.student, one.seed, f"{one.images}-{one.labels}") for one in result.trainings}
    return have >= set(_trials(entry.config))


def _trials(config: Config) -> Sequence[tuple[str, int, str]]:
    evaluate = config.evaluate
    return [(s, seed, arm) for s in evaluate.students for seed in evaluate.seeds for arm in evaluate.arms]
