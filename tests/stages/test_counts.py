"""The counts of results and of timing records are those of the work that was really done."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.toy import FOLDERS, Start, copy_run

from delt_hpc import context as contexts
from delt_hpc.config.schema import Stage
from delt_hpc.context import Context
from delt_hpc.errors import UserError
from delt_hpc.run import checksums, timing
from delt_hpc.run.folder import DONE, RunFolder, read_json, write_json

COUNTED = ["stage", "unit", "round", "images", "image_iterations"]


def test_an_arm_with_fewer_images_than_ipc_is_refused(finished: Context, start: Start, tmp_path: Path) -> None:
    """The table lost its last row before its checksum was taken."""
    root = copy_run(finished, tmp_path / "run", "aggregate")
    table, marker = root / "selected" / "selected.csv", root / "selected" / DONE
    table.write_text("".join(table.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    done = read_json(marker)
    write_json(marker, done | {"files": done["files"] | checksums.listing(root / "selected", [table])})
    with pytest.raises(UserError, match=f"1 of 4 classes do not have 3 images: {FOLDERS[3]} has 2"):
        start(root, ("evaluate",), {"evaluate": {"arms": ["selected-hard"]}})
    assert not list(root.glob("evaluate/*/result.json"))


def test_skipped_training_images_are_not_counted_and_the_run_says_so(
    start: Start, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "images"
    shutil.copytree(toy, root)
    (root / "train" / FOLDERS[2] / "00005.png").write_bytes(b"no image")
    changes = {
        "data": {"root": str(root), "on_bad": "skip"},
        "squeeze": {"epochs": 1},
        "select": {"ipc": 12},
        "evaluate": {"epochs": 1, "seeds": [1], "arms": ["random-hard"]},
    }
    run = start(tmp_path / "run", ("squeeze", "evaluate"), changes, quiet=False).run
    assert "1 of 48 images are unreadable" in capsys.readouterr().err
    result = json.loads(next(run.evaluate.glob("*/result.json")).read_text(encoding="utf-8"))
    assert result["train_images"] == 47
    records = timing.gather(run).set_index("stage")
    assert records.loc["evaluate", "images"] == 47


def counts(run: RunFolder) -> list[tuple[object, ...]]:
    table = timing.gather(run)
    return sorted(table[table["stage"] != "report"][COUNTED].fillna(-1).itertuples(index=False, name=None))


class KillError(BaseException):
    """Simulates the death of the process."""


@pytest.mark.parametrize("stage", ["squeeze", "rank", "select", "recover", "aggregate", "evaluate"])
def test_no_work_is_counted_twice_after_a_kill_before_its_marker(
    finished: Context, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    def kill(*_: object) -> None:
        raise KillError

    root, stages = tmp_path / "run", ("squeeze", "rank", "select", "recover", "aggregate", "evaluate")
    start(root, stages[: stages.index(stage)])
    with monkeypatch.context() as patch, pytest.raises(KillError):
        patch.setattr(contexts, "mark_done", kill)
        start(root, (stage,))
    assert counts(start(root, stages).run) == counts(finished.run)
