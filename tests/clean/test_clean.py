"""`delt-hpc clean`: what it removes, what it refuses, and that a cleaned run is still a finished one."""

import json
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.locks import holder
from helpers.program import Program
from helpers.toy import Start, copy_run, images_of

from delt_hpc.config.load import load_config
from delt_hpc.context import Context
from delt_hpc.launch import records
from delt_hpc.launch.plan import Task
from delt_hpc.launch.process import ProcessIdentity
from delt_hpc.launch.records import LaunchFolder, Submission
from delt_hpc.run.folder import RunFolder
from delt_hpc.stages import recover as recovering

MORE = (
    "compile-cache/key/files.tar",
    "broken/teacher-0/weights.safetensors",
    "evaluate/convnet3-1-distilled-hard/checkpoint.pt",
)


@pytest.fixture
def run(finished: Context, tmp_path: Path) -> Path:
    """A finished run with some files that accumulate."""
    root = copy_run(finished, tmp_path / "run")
    for name in MORE:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"1234")
    return root


def sums(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not {"timing", "timing.csv", "locks"} & set(path.relative_to(root).parts)
    }


def test_without_yes_nothing_is_removed(run: Path, program: Program) -> None:
    before = sums(run)
    answer = program("clean", run)
    assert answer.code == 0
    assert "images of finished batches, also in distilled/" in answer.out
    assert "27 files" in answer.out
    assert f"`delt-hpc clean {run} --yes` removes it" in answer.out
    assert sums(run) == before
    groups = json.loads(program("clean", run, "--json").out)["groups"]
    assert [group["files"] for group in groups] == [12, 12, 1, 1, 1]
    assert groups[0]["bytes"] == sum(map(len, images_of(run / "recover").values()))
    assert groups[2] == {"what": "checkpoints of finished work", "files": 1, "bytes": 4}


def test_only_what_is_also_elsewhere_is_removed(run: Path, program: Program) -> None:
    before, distilled = sums(run), images_of(run / "distilled")
    assert program("clean", run, "--yes").code == 0
    after = sums(run)
    gone = before.keys() - after.keys()
    assert gone == {name for name in before if re.match(r"(recover|selected)/.*png$", name)} | set(MORE)
    assert images_of(run / "distilled") == distilled
    assert {name: content for name, content in after.items() if name in before} == {
        name: content for name, content in before.items() if name not in gone
    }
    assert [path.name for path in (run / "selected").iterdir() if path.is_dir()] == []
    assert program("clean", run).out == f"{run}: nothing to remove\n"


def test_a_cleaned_run_is_finished_and_usable(
    run: Path, finished: Context, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = images_of(run / "report")
    assert program("clean", run, "--yes").code == 0
    monkeypatch.setattr(recovering, "recover_batches", pytest.fail)
    kept = sums(run)
    assert program("run", run, "-q").code == 0
    assert sums(run) == kept
    assert program("status", run).code == 0
    assert program("verify", run / "distilled").code == 0
    assert program("export", run, "--to", "imagefolder", "--out", "out", "-q").code == 0
    shutil.rmtree(run / "report")
    assert program("report", run, "-q").code == 0
    assert images_of(run / "report").keys() == pictures.keys()
    sample = "figures/samples-00000.png"
    assert images_of(run / "report")[sample] == pictures[sample]


@pytest.mark.parametrize("damaged", ["distilled/README.md", "distilled/10/00001.png"])
def test_damage_after_cleaning_is_mended_with_the_same_bytes(
    damaged: str, run: Path, finished: Context, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = images_of(run / "distilled")
    assert program("clean", run, "--yes").code == 0
    (run / damaged).write_bytes(b"damage")
    recovered: list[Any] = []
    original = recovering.recover_batches

    def count(context: Context, unfinished: list[Any], *rest: Any) -> None:
        recovered.extend(unfinished)
        original(context, unfinished, *rest)

    monkeypatch.setattr(recovering, "recover_batches", count)
    assert program("run", run, "-q").code == 0
    assert images_of(run / "distilled") == expected
    assert len(recovered) == (1 if damaged.endswith("png") else 0), "only the damaged batch"
    assert program("verify", run / "distilled").code == 0


def test_students_train_on_the_originals_of_removed_selected_images(
    finished: Context, tmp_path: Path, start: Start, program: Program
) -> None:
    runs = [copy_run(finished, tmp_path / name) for name in ("cleaned", "whole")]
    assert program("clean", runs[0], "--yes").code == 0
    results = []
    for root in runs:
        shutil.rmtree(root / "evaluate" / "convnet3-1-selected-soft")
        start(root, ("evaluate",), {"evaluate": {"arms": ["selected-soft"], "seeds": [1]}})
        folder = root / "evaluate" / "convnet3-1-selected-soft"
        results.append(
            (json.loads((folder / "result.json").read_text())["final"], (folder / "history.csv").read_bytes())
        )
    assert results[0] == results[1]


def test_a_data_set_that_was_moved_afterwards(
    finished: Context, toy: Path, tmp_path: Path, start: Start, program: Program
) -> None:
    (tmp_path / "data").symlink_to(toy)
    run = start(tmp_path / "run", None, {"data": {"root": str(tmp_path / "data")}}).run
    assert program("clean", run.root, "--yes").code == 0
    (tmp_path / "data").rename(tmp_path / "moved")
    shutil.rmtree(run.report)
    moved = ("--set", f"data.root={tmp_path / 'moved'}", "-q")
    assert program("run", run.root, "--stages", "select,recover,aggregate", *moved).code == 0
    answer = program("report", run.root, *moved)
    assert answer.code == 2
    assert "12 image(s) that `delt-hpc clean` removed are no longer in the data set" in answer.err
    assert f"delete {run.selected / 'done.json'} and run the stage `select` again" in answer.err
    (run.selected / "done.json").unlink()
    assert program("run", run.root, *moved).code == 0
    assert len(images_of(run.selected)) == 12
    assert (run.report / "report.html").exists()


def test_images_that_are_nowhere_else_stay(run: Path, tmp_path: Path, program: Program) -> None:
    (run / "distilled" / "10" / "00001.png").write_bytes(b"damage")
    config = (run / "config.yaml").read_text()
    moved = tmp_path / "moved"
    root = load_config(str(run)).data.root
    assert root
    shutil.copytree(root, moved)
    (run / "config.yaml").write_text(config.replace(str(root), str(moved)))
    listed = (run / "selected" / "selected.csv").read_text().splitlines()[1].split(",")
    (moved / "train" / listed[3]).write_bytes(b"another image")
    groups = json.loads(program("clean", run, "--json").out)["groups"]
    assert [(group["what"].split(",")[0], group["files"]) for group in groups[:2]] == [
        ("selected images", 11),
        ("checkpoints of finished work", 1),
    ]


def test_an_unfinished_run_keeps_its_images_and_checkpoints(
    finished: Context, tmp_path: Path, program: Program
) -> None:
    root = copy_run(finished, tmp_path / "run", until="recover")
    batch = next((root / "recover").glob("0*"))
    (batch / "done.json").unlink()
    (batch / "checkpoint.pt").write_bytes(b"state")
    assert program("clean", root, "--yes").out == f"{root}: nothing to remove\n"


def test_a_held_lock_is_refused(run: Path, program: Program) -> None:
    before = sums(run)
    with holder(run / "locks" / "recover", 3, 1):
        answer = program("clean", run, "--yes")
    assert answer.code == 2
    assert "a process works on the stage `recover`" in answer.err
    assert sums(run) == before


def test_live_tasks_are_refused(finished: Context, tmp_path: Path, program: Program) -> None:
    root = copy_run(finished, tmp_path / "run", until="recover")
    process = ProcessIdentity.of(os.getpid())
    tasks = (Task("aggregate"),)
    entry = Submission(
        "local", "local", platform.node(), records.now(), str(os.getpid()), False, "aggregate", tasks, 4, process
    )
    records.write_submission(LaunchFolder(RunFolder(root)), entry)
    before = images_of(root)
    answer = program("clean", root, "--yes")
    assert answer.code == 2
    assert "aggregate" in answer.err
    assert "delt-hpc cancel" in answer.err
    assert images_of(root) == before


def test_what_is_not_a_run(tmp_path: Path, program: Program) -> None:
    answer = program("clean", tmp_path, "--yes")
    assert answer.code == 2
    assert "is not a run folder" in answer.err
