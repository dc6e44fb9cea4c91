"""The configurations of results/ load with every method that `make results` compares."""

import re
from pathlib import Path

import pytest

from delt_hpc.comparison.plan import entries

REPOSITORY = Path(__file__).parents[2]
CONFIGURATIONS = sorted((REPOSITORY / "results").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_a_configuration_and_its_name(path: Path) -> None:
    listed = re.search(r"^METHODS := (\S+)$", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed
    methods = listed[1].split(",")
    found = entries(str(path), methods=methods)
    assert [entry.name for entry in found] == [
        "real",
        *(name for name in methods if name not in ("random", "selected")),
    ]
    config = found[0].config
    data, _, ipc = config.name.removesuffix("-real").rpartition("-ipc")
    assert (config.select.ipc, f"{data}-ipc{ipc}") == (int(ipc), path.stem)
    assert path.stem.startswith(config.data.name)
    assert config.evaluate.students == [config.teacher.model]
    assert config.teacher.model.replace("-small-stem", "") in path.stem or config.data.name == "digits"
