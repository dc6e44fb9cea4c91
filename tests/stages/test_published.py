"""The distilled set holds no path of the machine that made it."""

from pathlib import Path
from typing import Any

import pytest
from helpers.toy import Start

from delt_hpc.context import Context
from delt_hpc.errors import UserError
from delt_hpc.run import checksums
from delt_hpc.run.folder import DONE, read_json, write_json


@pytest.fixture
def changes(finished: Context) -> dict[str, Any]:
    """A configuration with given weights and a given ranking."""
    weights = finished.run.teacher / "weights.safetensors"
    return {"teacher": {"source": "checkpoint", "checkpoint": str(weights)}, "rank": {"csv": str(finished.run.ranking)}}


def test_no_file_of_the_set_holds_a_path(start: Start, toy: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    run = start(tmp_path / "run", ("squeeze", "rank", "select", "recover", "aggregate"), changes).run
    for path in run.distilled.iterdir():
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert str(tmp_path.parent) not in text and str(toy) not in text, path
    start(run.root, ("aggregate",), changes)
    assert not run.broken.exists()


def test_another_path_is_still_another_configuration(start: Start, tmp_path: Path, changes: dict[str, Any]) -> None:
    run = start(tmp_path / "run", ("squeeze", "rank", "select", "recover", "aggregate"), changes).run
    for folder in ("teacher", "rank", "selected", "recover"):
        (run.root / folder).rename(tmp_path / folder)
    other = tmp_path / "other.csv"
    other.write_bytes(Path(changes["rank"]["csv"]).read_bytes())
    with pytest.raises(UserError, match=r"rank\.csv: made with 'path [0-9a-f]{16}', now 'path [0-9a-f]{16}'"):
        start(run.root, (), changes | {"rank": {"csv": str(other)}})


def test_a_stamp_with_a_plain_path_stays_valid(start: Start, tmp_path: Path, changes: dict[str, Any]) -> None:
    """As earlier versions wrote it."""
    run = start(tmp_path / "run", ("squeeze", "rank", "select", "recover", "aggregate"), changes).run
    stamp = run.distilled / "made_by.json"
    write_json(stamp, read_json(stamp) | {"rank.csv": changes["rank"]["csv"]})
    done = read_json(run.distilled / DONE)
    files = done["files"] | checksums.listing(run.distilled, [stamp])
    write_json(run.distilled / DONE, done | {"files": files})
    start(run.root, ("aggregate",), changes)
    assert not run.broken.exists()
