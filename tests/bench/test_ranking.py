"""The agreement benchmark: real photographs, every backend, float32 rounding beside the differences."""

from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("nvidia.dali")

from delt_hpc.bench import ranking


def test_decoders_agree_on_the_order_of_photographs(tmp_path: Path) -> None:
    table = ranking.bench(20, tmp_path, precisions=("float32",)).set_index("backend")
    assert table.index.tolist()[:2] == ["float32 rounding", "dali-cpu"]
    assert table.loc["float32 rounding", "spearman_min"] > 0.999
    assert table.loc["dali-cpu", "spearman_min"] > 0.97
    assert table.loc["dali-cpu", "same_medium"] >= 0.9
    assert 0 < table.loc["dali-cpu", "max_difference"] < 0.02
    assert pd.read_csv(tmp_path / "ranking.csv")["backend"].tolist() == table.index.tolist()
