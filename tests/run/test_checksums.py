"""Checksums of finished files: every change is found and named."""

from pathlib import Path

import pytest

from delt_hpc.errors import UserError
from delt_hpc.run import checksums
from delt_hpc.run.folder import DONE, mark_done, write_text


def finish(folder: Path) -> None:
    for name in ("whole.csv", "cut.csv", "flipped.csv", "class/lost.png"):
        write_text(folder / name, "content")
    (folder / "checkpoint.pt").touch()
    mark_done(folder, {"files": checksums.listing(folder)})


def test_lost_truncated_and_changed_files_of_a_finished_folder_are_named(tmp_path: Path) -> None:
    finish(tmp_path)
    assert checksums.faults(tmp_path) == []
    (tmp_path / "cut.csv").write_text("")
    (tmp_path / "flipped.csv").write_text("contenu")
    (tmp_path / "class" / "lost.png").unlink()
    assert checksums.faults(tmp_path) == [
        "class/lost.png: missing",
        "cut.csv: 0 bytes instead of 7",
        "flipped.csv: its content has changed",
    ]
    assert checksums.faults(tmp_path, ["whole.csv"]) == []
    assert checksums.faults(tmp_path, ["new.csv"]) == ["new.csv: not listed in done.json"]


@pytest.mark.parametrize("marker", ["", "[]", "{}", '{"files": 3}', '{"files": {"whole.csv": 7}}'])
def test_a_damaged_marker_is_a_fault(tmp_path: Path, marker: str) -> None:
    finish(tmp_path)
    (tmp_path / DONE).write_text(marker)
    assert checksums.faults(tmp_path)[0].startswith("done.json: is damaged")


def test_a_changed_file_is_refused_with_the_stage_that_makes_it(tmp_path: Path) -> None:
    finish(tmp_path)
    checksums.require(tmp_path, "select")
    (tmp_path / "cut.csv").unlink()
    with pytest.raises(UserError, match=r"(?s)cut\.csv: missing.*run the stage `select` again"):
        checksums.require(tmp_path, "select")


def test_a_sealed_record_reads_back_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    path, content = tmp_path / "facts.json", {"mean": [0.1, 1e-300], "name": "ét\u00e9"}
    checksums.write_sealed(path, content)
    assert checksums.read_sealed(path, "") == content
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with pytest.raises(UserError, match="checksum does not match"):
        checksums.read_sealed(path, "")
