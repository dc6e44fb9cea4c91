"""The accuracy table for a terminal."""

from pathlib import Path
from typing import Any

from delt_hpc.report.summary import text
from delt_hpc.run.folder import write_json


def arm(**changes: Any) -> dict[str, Any]:
    value = {"mean": 81.256, "std": 1.5, "n": 3}
    row = {"student": "convnet3", "images": "distilled", "labels": "soft", "final": value, "best": value, "ema": value}
    return row | changes


def test_a_row_an_arm_in_aligned_columns(tmp_path: Path) -> None:
    one_seed = {"mean": 7.0, "std": None, "n": 1}
    write_json(tmp_path / "n.json", {"accuracy": [arm(), arm(images="random", final=one_seed, ema=None)]})
    head, rule, first, second = text(tmp_path / "n.json").splitlines()
    assert set(rule) == {"-"}
    assert first.split("  ")[0] == "convnet3" and "81.26 ± 1.50" in first
    assert second.index("7.00") == head.index("final") and second.endswith("-")
    assert "±" not in second[head.index("final") : head.index("best")]


def test_before_any_evaluation(tmp_path: Path) -> None:
    write_json(tmp_path / "n.json", {"accuracy": []})
    assert text(tmp_path / "n.json") == "accuracy: not evaluated yet"
