"""Inputs that another node has just finished, and that the file system of this node shows late."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from delt_hpc.config.load import parse_config
from delt_hpc.config.schema import Config, Stage
from delt_hpc.errors import UserError
from delt_hpc.pipeline import open_run, run_stages
from delt_hpc.run import late
from delt_hpc.run.folder import STAMP
from delt_hpc.run.progress import Reporter

READS: dict[Stage, tuple[str, str]] = {  # stage: an input, and the folder with the stage's results
    "rank": ("teacher", "rank"),
    "select": ("rank", "selected"),
    "recover": ("selected", "recover"),
    "aggregate": ("recover/00000-00001", "distilled"),
    "evaluate": ("distilled", "evaluate"),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, image_folder: Callable[..., Path]) -> Config:
    root = tmp_path_factory.mktemp("data")
    image_folder(root / "train", dict.fromkeys("ab", 4), size=8)
    image_folder(root / "val", dict.fromkeys("ab", 1), size=8)
    tree = {
        "data": {"name": "toy", "root": str(root), "size": 8, "mean": [0.5] * 3, "std": [0.25] * 3},
        "squeeze": {"epochs": 1, "warmup_epochs": 0},
        "select": {"ipc": 2},
        "recover": {"iterations": 2, "round_iterations": 1, "batch_size": 4},
        "evaluate": {"epochs": 1, "seeds": [1], "arms": ["distilled-soft"]},
        "machine": {"device": "cpu", "loader": "torchvision", "workers": 0},
    }
    return parse_config(tree, "test")


@pytest.fixture(scope="module")
def finished(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished") / "run"
    run_stages(open_run(config, root, Reporter(quiet=True)), [s for s in config.stages if s != "report"])
    return root


@pytest.mark.parametrize("what", ["marker", "a file beside it"])
@pytest.mark.parametrize("stage", READS)
def test_a_job_looks_again_and_others_do_not(
    stage: Stage, what: str, config: Config, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, (read, written) = tmp_path / "run", READS[stage]
    shutil.copytree(finished, root)
    shutil.rmtree(root / written)
    if stage == "rank":
        (root / "ranking.csv").unlink()
    marker = root / read / "done.json"
    listed = [root / read / name for name in json.loads(marker.read_text())["files"] if name != STAMP]
    hidden = marker
    if what == "a file beside it":
        hidden = root / "ranking.csv" if stage == "select" else max(listed, key=lambda path: path.stat().st_size)
    content = hidden.read_bytes()
    hidden.unlink()
    context = open_run(config, root, Reporter(quiet=True))
    with pytest.raises(UserError):
        run_stages(context, [stage])
    looks: list[float] = []

    def appears(seconds: float) -> None:  # a fake of the time in which the file system shows the file
        looks.append(seconds)
        if len(looks) == 3:
            hidden.write_bytes(content)

    monkeypatch.setenv(late.VARIABLE, "60")
    monkeypatch.setattr(time, "sleep", appears)
    run_stages(context, [stage])
    assert len(looks) == 3
