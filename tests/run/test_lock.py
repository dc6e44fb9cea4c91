"""Locks between processes: overlapping work waits, other work does not, and a killed process holds nothing."""

from pathlib import Path

import pytest
from helpers.locks import holder

from delt_hpc.errors import UserError
from delt_hpc.run import stop
from delt_hpc.run.folder import watch, write_text
from delt_hpc.run.lock import locked


def test_overlapping_work_waits_until_the_other_process_ends(tmp_path: Path) -> None:
    with holder(tmp_path / "recover", 3, 4) as process:
        with locked(tmp_path / "recover", 7, 10, pytest.fail), locked(tmp_path / "rank", 0, 100, pytest.fail):
            pass
        with locked(tmp_path / "recover", 0, 4, process.kill):
            process.wait()
            assert process.returncode


def test_waiting_ends_with_a_stop_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "_requested", [15])
    with holder(tmp_path / "lock", 0, 1), pytest.raises(stop.Interrupted), locked(tmp_path / "lock", 0, 1, list):
        pass


def test_nothing_is_held_where_no_file_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with locked(tmp_path / "file" / "lock", 0, 1, pytest.fail):
        pass


@pytest.mark.parametrize("replaced", [False, True])
def test_a_run_folder_that_was_deleted_is_not_made_again(replaced: bool, tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    watch(root)
    write_text(root / "recover" / "images.csv", "content")
    root.rename(tmp_path / "elsewhere")
    if replaced:
        root.mkdir()
    with pytest.raises(UserError, match="was deleted or replaced during the work"):
        write_text(root / "recover" / "images.csv", "content")
    assert not (root / "recover").exists()
    write_text(tmp_path / "other" / "images.csv", "content")
