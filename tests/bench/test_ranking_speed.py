"""The benchmark of whole rankings: the same files and scores for all settings, each in a process of its own."""

from pathlib import Path

import pandas as pd
import pytest

from delt_hpc.bench import ranking_speed
from delt_hpc.data.index import scan


@pytest.mark.parametrize("debian", [True, False])
def test_the_files_are_small_gray_pngs(debian: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not debian:
        monkeypatch.setattr(ranking_speed, "DEBIAN", tmp_path / "missing")
    ranking_speed.write_files(tmp_path / "files", 40)
    index = scan(tmp_path / "files", [str(label) for label in range(10)])
    assert len(index) == 40 and all(path.endswith(".png") for path in index.paths)


def test_every_setting_has_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking_speed, "ROUNDS", 1)
    table = ranking_speed.bench(64, tmp_path)
    assert table["settings"].tolist() == list(ranking_speed.SETTINGS)
    assert (table["files_per_s"] > 0).all()
    assert table.set_index("settings").loc["plain", "ratio"] == 1
    assert pd.read_csv(tmp_path / ranking_speed.FILE)["loader"].tolist() == table["loader"].tolist()
