"""Damage to files of the run folder is found by the stage that reads them, and mended by the stage that it names."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.toy import FOLDERS, Start, copy_run, images_of

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.schema import Stage
from delt_hpc.context import Context
from delt_hpc.errors import UserError
from delt_hpc.recovery.state import State
from delt_hpc.run import stop
from delt_hpc.stages.recover import recover
from delt_hpc.training.loop import Training


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_a_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def swap_two_rows(path: Path) -> None:
    first, second, third, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join((first, third, second, *rest)))


# The file, the last stage that was run, the stage that reads it, the stage that makes it again.
TABLES: list[tuple[str, Stage, Stage, Stage]] = [
    ("ranking.csv", "rank", "select", "rank"),
    ("selected/selected.csv", "select", "recover", "select"),
    ("recover/00000-00001/images.csv", "recover", "aggregate", "recover"),
    ("recover/00000-00001/curve.csv", "evaluate", "report", "recover"),
    ("distilled/manifest.csv", "aggregate", "evaluate", "aggregate"),
    ("distilled/classes.csv", "aggregate", "evaluate", "aggregate"),
    ("evaluate/convnet3-1-distilled-soft/history.csv", "evaluate", "report", "evaluate"),
    ("teacher/history.csv", "evaluate", "report", "squeeze"),
]
OTHERS: list[tuple[str, Stage, Stage, Stage]] = [
    ("teacher/weights.safetensors", "squeeze", "rank", "squeeze"),
    ("teacher/teacher.json", "squeeze", "rank", "squeeze"),
    (f"selected/{FOLDERS[2]}/00001.png", "select", "recover", "select"),
    ("recover/00000-00001/images/00001/00002.png", "recover", "aggregate", "recover"),
    (f"distilled/{FOLDERS[2]}/00001.png", "aggregate", "evaluate", "aggregate"),
    ("distilled/dataset.json", "aggregate", "evaluate", "aggregate"),
    ("distilled/README.md", "aggregate", "evaluate", "aggregate"),
    ("evaluate/convnet3-1-distilled-soft/result.json", "evaluate", "report", "evaluate"),
]
CASES = [(*case, damage) for case in TABLES for damage in (flip_a_bit, cut_a_line, swap_two_rows)]
CASES += [(*case, flip_a_bit) for case in OTHERS]


@pytest.mark.parametrize(("file", "until", "reader", "maker", "damage"), CASES)
def test_a_changed_file_is_refused_by_its_reader_and_made_again(
    finished: Context,
    start: Start,
    tmp_path: Path,
    file: str,
    until: Stage,
    reader: Stage,
    maker: Stage,
    damage: Callable[[Path], None],
) -> None:
    root = copy_run(finished, tmp_path / "run", until)
    before = (root / file).read_bytes()
    damage(root / file)
    with pytest.raises(UserError) as error:
        start(root, (reader,))
    assert Path(file).name in str(error.value)
    assert f"`{maker}`" in error.value.remedy
    start(root, (maker,))
    after = (root / file).read_bytes()
    if Path(file).name not in ("teacher.json", "result.json"):  # these hold times
        assert after == before
    start(root, (reader,))


@pytest.mark.parametrize("damage", [flip_a_bit, cut_a_line, swap_two_rows])
def test_a_changed_ranking_of_a_class_is_scored_again(
    finished: Context, start: Start, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    root = copy_run(finished, tmp_path / "run", "rank")
    (root / "rank" / "done.json").unlink()
    damage(root / "rank" / "00002.csv")
    start(root, ("rank",))
    for name in ("rank/00002.csv", "ranking.csv"):
        assert (root / name).read_bytes() == (finished.run.root / name).read_bytes()
    (aside,) = (root / "broken").iterdir()
    assert aside.name.startswith("rank-00002.csv-")


@pytest.mark.parametrize("name", ["classes.csv", "index/train.csv", "index/val.csv", "dataset.json"])
@pytest.mark.parametrize("damage", [flip_a_bit, cut_a_line, swap_two_rows])
def test_a_changed_record_of_the_data_set_is_refused_and_made_again(
    finished: Context, start: Start, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    root = copy_run(finished, tmp_path / "run", "squeeze")
    damage(root / name)
    with pytest.raises(UserError, match=Path(name).name) as error:
        start(root, ())
    assert error.value.remedy.startswith("delete dataset.json;")
    (root / "dataset.json").unlink()
    start(root, ("squeeze",))
    assert (root / name).read_bytes() == (finished.run.root / name).read_bytes()


@pytest.mark.parametrize("damage", [flip_a_bit, cut_a_line])
@pytest.mark.parametrize(("folder", "stage"), [("teacher", "squeeze"), ("distilled", "aggregate")])
def test_a_finished_folder_with_a_damaged_stamp_is_made_again(
    finished: Context, start: Start, tmp_path: Path, folder: str, stage: Stage, damage: Callable[[Path], None]
) -> None:
    root = copy_run(finished, tmp_path / "run", stage)
    damage(root / folder / "made_by.json")
    start(root, (stage,))
    stamp = f"{folder}/made_by.json"
    assert (root / stamp).read_bytes() == (finished.run.root / stamp).read_bytes()


def test_an_interrupted_selection_keeps_no_changed_copy(finished: Context, start: Start, tmp_path: Path) -> None:
    root = copy_run(finished, tmp_path / "run", "select")
    (root / "selected" / "done.json").unlink()
    copy = root / "selected" / FOLDERS[1] / "00000.png"
    before = copy.read_bytes()
    flip_a_bit(copy)
    start(root, ("select",))
    assert copy.read_bytes() == before


def empty(path: Path) -> None:
    path.write_bytes(b"")


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [empty, halve, flip_a_bit])
def test_a_batch_with_a_damaged_checkpoint_starts_again_and_the_others_resume(
    finished: Context,
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    root = copy_run(finished, tmp_path / "run", "select")
    context = start(root, ())
    for classes in (ClassRange(0, 1), ClassRange(2, 3)):
        with monkeypatch.context() as patch, pytest.raises(stop.Interrupted):
            patch.setattr(stop, "_requested", [15])
            recover(context, classes)
    damage(root / "recover" / "00000-00001" / "checkpoint.pt")
    started: list[int] = []
    load = State.load
    monkeypatch.setattr(State, "load", lambda *given: (state := load(*given), started.append(state.t))[0])
    start(root, ("recover",), quiet=False)
    assert len(started) == 1
    assert "recover/00000-00001/checkpoint.pt is" in capsys.readouterr().err
    assert len(list((root / "broken").iterdir())) == 1
    assert images_of(root / "recover") == images_of(finished.run.recover)


@pytest.mark.parametrize("damage", [empty, halve, flip_a_bit])
def test_a_training_with_a_damaged_checkpoint_starts_again(
    finished: Context,
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    step = Training._step

    def stopping(training: Training, *given: object) -> None:
        step(training, *given)  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(stop.Interrupted), stop.on_signal():
        patch.setattr(Training, "_step", stopping)
        start(tmp_path / "run", ("squeeze",))
    damage(tmp_path / "run" / "teacher" / "checkpoint.pt")
    run = start(tmp_path / "run", ("squeeze",), quiet=False).run
    assert "teacher/checkpoint.pt is" in capsys.readouterr().err
    weights = "weights.safetensors"
    assert (run.teacher / weights).read_bytes() == (finished.run.teacher / weights).read_bytes()
    assert len(list(run.broken.iterdir())) == 1
