"""A toy run without Slurm."""

from collections.abc import Callable
from pathlib import Path

import pytest

from delt_hpc.config.load import dump_config, load_config, parse_config
from delt_hpc.pipeline import open_run, run_stages
from delt_hpc.run.folder import write_text
from delt_hpc.run.progress import Reporter

TREE = {
    "name": "toy",
    "data": {"name": "toy", "size": 8, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    "squeeze": {"epochs": 1, "warmup_epochs": 0, "batch_size": 16, "lr": 0.02},
    "select": {"ipc": 2},
    "recover": {
        "iterations": 4,
        "round_iterations": 2,
        "batch_size": 4,
        "image_format": "png",
        "checkpoint_seconds": 0.2,
    },
    "evaluate": {"epochs": 1, "seeds": [1], "arms": ["distilled-soft"], "batch_size": 8},
    "machine": {"device": "cpu", "workers": 0},
}


@pytest.fixture
def config(tmp_path: Path, image_folder: Callable[..., Path]) -> Path:
    """A configuration file of a data set of four classes; recovery batches are two classes each."""
    image_folder(tmp_path / "data" / "train", dict.fromkeys("abcd", 4), size=8)
    image_folder(tmp_path / "data" / "val", dict.fromkeys("abcd", 1), size=8)
    data = TREE["data"] | {"root": str(tmp_path / "data")}  # type: ignore[operator]
    write_text(tmp_path / "toy.yaml", dump_config(parse_config(TREE | {"data": data}, "test")))
    return tmp_path / "toy.yaml"


@pytest.fixture
def run(config: Path, tmp_path: Path) -> Path:
    """A run folder of the configuration after squeeze, rank and select."""
    context = open_run(load_config(str(config)), tmp_path / "run", Reporter(quiet=True))
    run_stages(context, ("squeeze", "rank", "select"))
    return tmp_path / "run"
