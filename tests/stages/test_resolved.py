"""What `auto` stood for belongs to a result: machines on which it differs do not continue each other's work."""

from pathlib import Path
from typing import Any

import pytest
from helpers.toy import Start, copy_run

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.schema import Stage
from delt_hpc.context import Context
from delt_hpc.errors import UserError
from delt_hpc.recovery import auto
from delt_hpc.run import checksums
from delt_hpc.run.folder import DONE, STAMP, is_done, read_json, write_json
from delt_hpc.training import precision


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch) -> Any:
    """hardware(True) makes this a machine with bfloat16 instructions, hardware(False) one without them."""

    def become(has_bfloat16: bool) -> None:
        for module in (auto, precision):
            monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: has_bfloat16)

    become(False)
    return become


def pretend_gpu(folder: Path, **resolved: str) -> None:
    """Rewrite the stamp as if the folder had been made on a GPU."""
    made_by = read_json(folder / STAMP)
    made_by["resolved"] |= {"machine.device": "cuda"} | {key.replace("_", "."): v for key, v in resolved.items()}
    write_json(folder / STAMP, made_by)
    if is_done(folder):
        done = read_json(folder / DONE)
        done[checksums.FILES] |= checksums.listing(folder, [folder / STAMP])
        write_json(folder / DONE, done)


def unfinish(folder: Path) -> None:
    (folder / "done.json").unlink()


@pytest.mark.parametrize(("stage", "name"), [("squeeze", "teacher"), ("rank", "rank"), ("recover", "recover")])
def test_stamps_tell_what_auto_stood_for(finished: Context, stage: Stage, name: str) -> None:
    resolved = read_json(finished.run.root / name / STAMP)["resolved"]
    assert resolved[f"{stage}.precision"] in ("float32", "bfloat16")
    assert resolved["machine.device"] == "cpu"
    # PIL: the toy data set has no JPEG files.
    assert resolved.get("machine.loader") == (None if stage == "recover" else "torchvision")


def test_an_unfinished_teacher_is_not_continued_in_another_precision(
    start: Start, hardware: Any, tmp_path: Path
) -> None:
    teacher = start(tmp_path / "run", ("squeeze",)).run.teacher
    unfinish(teacher)
    hardware(True)
    with pytest.raises(UserError) as caught:
        start(tmp_path / "run", ("squeeze",))
    assert caught.value.where == str(teacher)
    assert "squeeze.precision: made with float32; on this machine it is bfloat16" in caught.value.what
    assert "--set squeeze.precision=float32" in caught.value.remedy
    start(tmp_path / "run", ("squeeze",), {"squeeze": {"precision": "float32"}})


@pytest.mark.usefixtures("hardware")
def test_other_batches_are_not_recovered_on_another_device(finished: Context, start: Start, tmp_path: Path) -> None:
    root = copy_run(finished, tmp_path / "run", "select")
    run = start(root, ("recover",), classes=ClassRange(0, 1)).run
    pretend_gpu(run.recover, recover_precision="bfloat16")
    start(root, ("recover",), classes=ClassRange(0, 1))  # finished: nothing is mixed
    with pytest.raises(UserError) as caught:
        start(root, ("recover",))
    assert "recover.precision: made with bfloat16; on this machine it is float32" in caught.value.what
    assert "machine.device: made with cuda; on this machine it is cpu" in caught.value.what
    assert "--set recover.precision=bfloat16 --set machine.device=cuda" in caught.value.remedy


def test_other_classes_are_not_ranked_on_another_device(finished: Context, start: Start, tmp_path: Path) -> None:
    root = copy_run(finished, tmp_path / "run", "squeeze")
    run = start(root, ("rank",), classes=ClassRange(0, 1)).run
    pretend_gpu(run.rank, rank_precision="float16")
    with pytest.raises(UserError, match=r"rank\.precision: made with float16; on this machine it is .*float"):
        start(root, ("rank",))


def test_trials_are_not_added_on_another_device(finished: Context, start: Start, tmp_path: Path) -> None:
    root = copy_run(finished, tmp_path / "run")
    folder = next(finished.run.evaluate.iterdir()).name
    pretend_gpu(root / "evaluate" / folder)
    start(root, ("evaluate",))  # all finished
    with pytest.raises(UserError, match=r"machine\.device: made with cuda") as caught:
        start(root, ("evaluate",), {"evaluate": {"seeds": [1, 2, 3]}})
    assert caught.value.where == str(root / "evaluate" / folder)


def test_finished_stages_of_a_gpu_are_used_on_a_cpu(finished: Context, start: Start, tmp_path: Path) -> None:
    root = copy_run(finished, tmp_path / "run", "aggregate")
    for name in ("teacher", "rank", "recover"):
        pretend_gpu(root / name)
    run = start(root).run
    assert (run.report / "report.html").exists()
    assert not (root / "broken").exists()
