"""Rows of made-up results: which trainings are compared with which, and what is said to be missing."""

import dataclasses
from collections.abc import Mapping

import pytest

from delt_hpc.comparison.dd_ranking import augmentation_robust_score, label_robust_score
from delt_hpc.comparison.result import Result, Training
from delt_hpc.comparison.table import Row, rows

Accuracies = Mapping[str, Mapping[int, float]]
REAL: Accuracies = {
    "random-soft": {1: 80.0, 2: 90.0},
    "random-hard": {1: 40.0, 2: 44.0},
    "selected-soft": {1: 82.0, 2: 90.0},
}
DELT: Accuracies = {"distilled-soft": {1: 81.0, 2: 93.0, 3: 1.0}, "distilled-hard": {1: 50.0, 2: 52.0}}


def result(label: str, accuracies: Accuracies, **changes: object) -> Result:
    """A result of a student s; the teacher is the same network, with 95 %."""
    trainings = tuple(
        Training("s", seed, *arm.split("-"), final=top1, best=top1 + 1, ema=None, epochs=3, train_images=20)
        for arm, of_seeds in accuracies.items()
        for seed, top1 in of_seeds.items()
    )
    made = Result(
        name=label,
        label=label,
        point=(),
        plain=False,
        external="",
        identity={"seed": 0, "select.ipc": 2, "recover.lr": 0.25, "evaluate.epochs": 3, "evaluate.mix": "cutmix"},
        fingerprint="f",
        teacher={"model": "s", "source": "train", "val_accuracy": 95.0, "checksum": "t"},
        data={"name": "d", "classes": 10, "ipc": 2, "size": 8, "train_images": 100, "val_images": 50},
        trainings=trainings,
        seconds=50.0 if label != "real" else None,
        image_iterations=1000 if label != "real" else None,
        peak_memory_mib=100.0 if label != "real" else None,
        diversity=0.9 if label != "real" else None,
        versions={},
        hardware="",
        date="",
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def by_name(found: list[Row]) -> dict[str, Row]:
    return {row.name: row for row in found}


def test_differences_are_paired_over_shared_seeds() -> None:
    delt = by_name(rows([result("real", REAL), result("delt", DELT)]))["delt"]
    assert delt.over_random is not None and delt.over_selected is not None and delt.hard_over_random is not None
    assert (delt.over_random.mean, delt.over_random.n) == (2.0, 2)
    assert (delt.over_selected.mean, delt.hard_over_random.mean) == (1.0, 9.0)
    assert delt.soft is not None and delt.soft.n == 3
    assert (delt.seconds_per_image, delt.image_iterations) == (2.5, 1000)


def test_the_order_of_rows() -> None:
    table = rows([result("delt", DELT), result("real", REAL), result("cda", DELT)])
    assert [(row.name, row.images) for row in table] == [
        ("random", "random"),
        ("selected", "selected"),
        ("delt", "distilled"),
        ("cda", "distilled"),
    ]
    assert table[0].over_random is None and table[1].over_selected is None


def test_the_teacher_stands_for_real_images_where_it_is_the_student_s_network() -> None:
    delt = by_name(rows([result("real", REAL), result("delt", DELT)]))["delt"]
    assert delt.lrs == pytest.approx(label_robust_score(175 / 3, 51.0, 85.0, 95.0))
    trained = {**REAL, "full-hard": {1: 91.0, 2: 93.0}}
    delt = by_name(rows([result("real", trained), result("delt", DELT)]))["delt"]
    assert delt.lrs == pytest.approx(label_robust_score(175 / 3, 51.0, 85.0, 92.0))


def test_arms_that_a_score_lacks_are_named() -> None:
    other = {"teacher": {"model": "t", "source": "train", "val_accuracy": 95.0, "checksum": "t"}}
    soft = {"distilled-soft": DELT["distilled-soft"]}
    row = by_name(rows([result("real", REAL, **other), result("delt", soft, **other)]))["delt"]
    assert (row.lrs, row.ars) == (None, None)
    assert row.missing == ("hard", "full-hard", "soft without augmentation")
    alone = rows([result("delt", soft)])[0]
    assert alone.missing == ("hard", "random-soft", "soft without augmentation")
    assert alone.over_random is None


def test_augmentation_robust_score_of_the_runs_without_augmentation() -> None:
    identity = result("real", REAL).identity | {"evaluate.mix": "none"}
    plain = {"plain": True, "identity": identity}
    table = rows(
        [
            result("real", REAL),
            result("delt", DELT),
            result("real", {"random-soft": {1: 70.0, 2: 60.0}}, **plain),
            result("delt", {"distilled-soft": {1: 69.0, 2: 57.0}}, **plain),
            result("cda", {"distilled-soft": {1: 1.0, 2: 1.0}}, **plain),
        ]
    )
    assert [row.name for row in table] == ["random", "selected", "delt"]
    assert by_name(table)["delt"].ars == pytest.approx(augmentation_robust_score(2.0, -2.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint": "other"},
        {"teacher": {"model": "s", "source": "train", "val_accuracy": 95.0, "checksum": "other"}},
        {"identity": {"seed": 0, "select.ipc": 2, "evaluate.epochs": 4}},
        {"identity": {"seed": 0, "select.ipc": 3, "evaluate.epochs": 3}},
    ],
)
def test_results_of_other_images_teachers_and_protocols_are_not_compared(changes: dict[str, object]) -> None:
    delt = by_name(rows([result("real", REAL), result("delt", DELT, **changes)]))["delt"]
    assert (delt.over_random, delt.over_selected, delt.lrs) == (None, None, None)


def test_recovery_may_differ() -> None:
    changed = result("real", REAL).identity | {"recover.lr": 9.0, "select.strategy": "top", "rank.batch_size": 1}
    assert by_name(rows([result("real", REAL), result("delt", DELT, identity=changed)]))["delt"].over_random


def test_points_of_a_sweep_are_in_the_names() -> None:
    real = result("real", REAL, point=("evaluate.epochs=3",))
    delt = result("delt", DELT, point=("recover.lr=1", "evaluate.epochs=3"))
    names = [row.name for row in rows([real, delt])]
    assert names == [
        "random, evaluate.epochs=3",
        "selected, evaluate.epochs=3",
        "delt, recover.lr=1, evaluate.epochs=3",
    ]
