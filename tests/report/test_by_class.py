from pathlib import Path

import pytest
from helpers import fake_run
from helpers.fake_run import Shape

from delt_hpc.errors import UserError
from delt_hpc.report import by_class, class_figures
from delt_hpc.report.accuracy import by_arm, trainings
from delt_hpc.report.content import ArmResult, ByClass, ClassResult, Missing
from delt_hpc.run.folder import RunFolder

SHAPE = Shape(
    classes=("cat", "dog", "owl"), seeds=(1, 2), arms=("distilled-soft", "random-soft", "distilled-hard"),
    stages=("evaluate",),
)  # fmt: skip
HEADER = "class_index,predicted,images\n"
FIRST, SECOND = "0,0,3\n0,1,1\n1,1,4\n2,2,2\n2,0,1\n2,1,1\n", "0,0,2\n0,2,2\n1,1,4\n2,2,4\n"


def collected(root: Path, tables: dict[str, str]) -> ByClass | Missing:
    """From a run of three classes and two seeds, the named tables replaced (empty: deleted)."""
    config, run, dataset = fake_run.write(root, SHAPE)
    for name, text in tables.items():
        path = run.evaluate / f"convnet3-{name}" / "confusion.csv"
        path.write_text(HEADER + text) if text else path.unlink()
    results = by_arm(trainings(run, config))
    distilled = next((result for result in results if result.arm == "distilled-soft"), None)
    return by_class.collect(run, results, distilled, dataset.classes)


def test_counts_are_added_up_over_seeds(tmp_path: Path) -> None:
    found = collected(tmp_path, {"1-distilled-soft": FIRST, "2-distilled-soft": SECOND})
    assert isinstance(found, ByClass)
    assert (found.student, found.labels, found.shown, found.seeds) == ("convnet3", "soft", ("distilled", "random"), 2)
    assert [row.accuracy["distilled"] for row in found.classes] == [62.5, 100.0, 75.0]
    assert [row.images for row in found.classes] == [4, 4, 4]
    assert found.confusion == ((62.5, 12.5, 25.0), (0.0, 100.0, 0.0), (12.5, 12.5, 75.0))
    assert [(pair.true, pair.predicted, pair.share) for pair in found.confused] == [
        ("cat", "owl", 25.0),
        ("cat", "dog", 12.5),
        ("owl", "cat", 12.5),
        ("owl", "dog", 12.5),
    ]


def test_arms_of_earlier_versions_are_left_out(tmp_path: Path) -> None:
    found = collected(tmp_path / "a", {"1-random-soft": ""})
    assert isinstance(found, ByClass)
    assert found.shown == ("distilled",)
    missing = collected(tmp_path / "b", {"2-distilled-soft": ""})
    assert isinstance(missing, Missing)
    assert "earlier version" in missing.what


def test_without_a_training_on_distilled_images_there_are_no_classes(tmp_path: Path) -> None:
    _, run, dataset = fake_run.write(tmp_path, SHAPE)
    nothing: list[ArmResult] = []
    assert isinstance(by_class.collect(run, nothing, None, dataset.classes), Missing)


@pytest.mark.parametrize("row", ["3,0,1\n", "0,-1,1\n", "0,,1\n", "0,0,\n", "0,0,much\n"])
def test_a_damaged_table_is_named(tmp_path: Path, row: str) -> None:
    with pytest.raises(UserError, match="is damaged") as error:
        collected(tmp_path, {"1-distilled-soft": row})
    assert error.value.where == str(RunFolder(tmp_path).evaluate / "convnet3-1-distilled-soft" / "confusion.csv")


def many(count: int) -> ByClass:
    classes = tuple(
        ClassResult(i, str(i), f"class {i}", 50, {"distilled": float(i), "random": 50.0}) for i in range(count)
    )
    matrix = tuple(tuple(100.0 * (row == column) for column in range(count)) for row in range(count))
    return ByClass("convnet3", "soft", ("distilled", "random"), 3, classes, (), matrix)


def test_of_many_classes_the_chart_shows_the_lowest_and_highest() -> None:
    accuracy, confusion = class_figures.draw(many(60))
    assert "The 12 lowest and highest" in accuracy.note
    shown = {name for name in range(60) if f">class {name}</text>" in accuracy.svg}
    assert shown == {*range(12), *range(48, 60)}
    assert ">class 0</text>" not in confusion.svg  # too many for names
    few = class_figures.draw(many(10))
    assert "lowest" not in few[0].note
    assert few[1].svg.count(">100</text>") == 10
