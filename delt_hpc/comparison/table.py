"""The rows of a comparison: accuracies with intervals, paired differences, scores and costs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from delt_hpc.comparison.dd_ranking import augmentation_robust_score, label_robust_score
from delt_hpc.comparison.plan import BASELINES, REAL
from delt_hpc.comparison.result import Result
from delt_hpc.report.paired import Interval, interval, paired


@dataclass(frozen=True)
class Row:
    """A kind of images, on which a student was trained. Accuracies are those of the last epoch, in per cent.

    Attributes:
        images: random, selected, distilled or external.
        soft, hard: with soft and with hard labels.
        over_random, over_selected: paired differences with soft labels, percentage points.
        hard_over_random: the same with hard labels.
        best, ema: means with soft labels, at the best epoch and of the averaged weights.
        lrs, ars: scores of DD-Ranking.
        missing: the arms that the scores would need.
    """

    name: str
    images: str
    student: str
    soft: Interval | None
    hard: Interval | None
    over_random: Interval | None
    over_selected: Interval | None
    hard_over_random: Interval | None
    best: float | None
    ema: float | None
    lrs: float | None
    ars: float | None
    missing: tuple[str, ...]
    diversity: float | None
    seconds_per_image: float | None
    image_iterations: int | None
    peak_memory_mib: float | None


def rows(results: Sequence[Result]) -> list[Row]:
    """Every student's rows: real images first, then the methods in the order of the results."""
    students = list(dict.fromkeys(one.student for result in results for one in result.trainings))
    shown = [result for result in results if not result.plain]
    found: list[Row] = []
    for student in students:
        for images in BASELINES:
            seen: set[str] = set()
            for result in shown:
                if result.protocol not in seen and result.accuracies(images, "soft", student):
                    seen.add(result.protocol)
                    found.append(_row(result, images, student, results))
        found += [
            _row(result, "distilled", student, results)
            for result in shown
            if any(result.accuracies("distilled", labels, student) for labels in ("soft", "hard"))
        ]
    return found


def _row(result: Result, images: str, student: str, results: Sequence[Result]) -> Row:
    comparable = [one for one in results if one.protocol == result.protocol]
    soft, hard = (result.accuracies(images, labels, student) for labels in ("soft", "hard"))
    random, random_hard = (_of(comparable, "random", labels, student) for labels in ("soft", "hard"))
    lrs, lacks_labels = _lrs(soft, hard, random, _real_hard(comparable, student))
    ars, lacks_plain = _ars(result, images, student, soft, random, results)
    distilled = images == "distilled"
    count = result.data["classes"] * result.data["ipc"]
    trained = [one for one in result.trainings if (one.images, one.labels, one.student) == (images, "soft", student)]
    ema = [one.ema for one in trained if one.ema is not None]
    return Row(
        name=", ".join([images if result.label == REAL or not distilled else result.label, *result.point]),
        images="external" if distilled and result.external else images,
        student=student,
        soft=_interval(soft),
        hard=_interval(hard),
        over_random=None if images == "random" else paired(soft, random),
        over_selected=None if images == "selected" else paired(soft, _of(comparable, "selected", "soft", student)),
        hard_over_random=None if images == "random" else paired(hard, random_hard),
        best=_mean(one.best for one in trained),
        ema=_mean(ema),
        lrs=lrs,
        ars=ars,
        missing=(*lacks_labels, *lacks_plain),
        diversity=result.diversity if distilled else None,
        seconds_per_image=result.seconds / count if distilled and result.seconds is not None else None,
        image_iterations=result.image_iterations if distilled else None,
        peak_memory_mib=result.peak_memory_mib if distilled else None,
    )


def _lrs(
    soft: Mapping[int, float], hard: Mapping[int, float], random: Mapping[int, float], real: float | None
) -> tuple[float | None, list[str]]:
    """The score, or the arms that are missing."""
    means = {"soft": _mean(soft.values()), "hard": _mean(hard.values()), "random-soft": _mean(random.values())}
    lacks = [*(name for name, mean in means.items() if mean is None), *(["full-hard"] * (real is None))]
    values = [mean for mean in (*means.values(), real) if mean is not None]
    return (None, lacks) if lacks else (label_robust_score(*values), [])


def _ars(
    result: Result,
    images: str,
    student: str,
    soft: Mapping[int, float],
    random: Mapping[int, float],
    results: Sequence[Result],
) -> tuple[float | None, list[str]]:
    """The score, or the arms that are missing."""
    plain = [
        one
        for one in results
        if one.plain and one.protocol_without_augmentation == result.protocol_without_augmentation
    ]
    own = [one for one in plain if (one.label, one.point) == (result.label, result.point)]
    gains = [paired(soft, random), paired(_of(own, images, "soft", student), _of(plain, "random", "soft", student))]
    found = [gain.mean for gain in gains if gain is not None]
    return (augmentation_robust_score(*found), []) if len(found) == 2 else (None, ["soft without augmentation"])


def _real_hard(comparable: Iterable[Result], student: str) -> float | None:
    """Accuracy of training on all real images with hard labels; that of the teacher, if it is the same network."""
    comparable = list(comparable)
    trained = _mean(_of(comparable, "full", "hard", student).values())
    if trained is not None:
        return trained
    teachers = [one.teacher for one in comparable]
    same = [one["val_accuracy"] for one in teachers if (one["model"], one["source"]) == (student, "train")]
    return next((float(top1) for top1 in same if top1 is not None), None)


def _of(results: Iterable[Result], images: str, labels: str, student: str) -> dict[int, float]:
    """Accuracy by seed of the first result that has some."""
    found = (result.accuracies(images, labels, student) for result in results)
    return next((accuracies for accuracies in found if accuracies), {})


def _interval(accuracies: Mapping[int, float]) -> Interval | None:
    return interval(accuracies.values()) if accuracies else None


def _mean(values: Iterable[float]) -> float | None:
    sample = list(values)
    return sum(sample) / len(sample) if sample else None
