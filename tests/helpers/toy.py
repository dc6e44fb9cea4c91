"""A tiny data set with class names that break naive tools, and runs of the whole pipeline on it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.load import merge, parse_config
from delt_hpc.config.schema import STAGES, Config, Stage
from delt_hpc.context import Context
from delt_hpc.pipeline import open_run, run_stages
from delt_hpc.run.progress import Reporter

FOLDERS = ("00010", "10", "two words", "été")  # ImageFolder sorts them in this order, too

SETTINGS: dict[str, Any] = {
    "name": "toy",
    "data": {"name": "toy", "size": 8, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    "squeeze": {"epochs": 2, "warmup_epochs": 0, "batch_size": 16, "lr": 0.02},
    "select": {"ipc": 3},
    "recover": {
        "iterations": 8,
        "round_iterations": 2,
        "batch_size": 6,
        "image_format": "png",
        "checkpoint_seconds": 0.0,
    },
    "evaluate": {"epochs": 2, "seeds": [1, 2], "batch_size": 6, "validate_every": 1},
    "machine": {"device": "cpu", "workers": 0},
}

Start = Callable[..., Context]


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory, image_folder: Callable[..., Path]) -> Path:
    """12 training and 4 validation images of each of four classes, 8 x 8 pixels."""
    root = tmp_path_factory.mktemp("toy")
    image_folder(root / "train", dict.fromkeys(FOLDERS, 12), size=8)
    image_folder(root / "val", dict.fromkeys(FOLDERS, 4), size=8)
    return root


@pytest.fixture(scope="session")
def configure(toy: Path) -> Callable[..., Config]:
    def make(changes: dict[str, Any] | None = None) -> Config:
        tree = merge(SETTINGS, {"data": {"root": str(toy)}})
        return parse_config(merge(tree, changes or {}), "test")

    return make


@pytest.fixture(scope="session")
def start(configure: Callable[..., Config]) -> Start:
    """start(run folder, stages, changes, classes): open the run and run these stages, or all of them."""

    def go(
        root: Path,
        stages: tuple[Stage, ...] | None = None,
        changes: dict[str, Any] | None = None,
        classes: ClassRange | None = None,
        *,
        quiet: bool = True,
    ) -> Context:
        config = configure(changes)
        context = open_run(config, root, Reporter(quiet=quiet))
        run_stages(context, config.stages if stages is None else stages, classes)
        return context

    return go


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, start: Start) -> Context:
    """A finished run of all stages. Tests must not change it: they copy it."""
    return start(tmp_path_factory.mktemp("finished") / "run")


# What a run holds of each stage.
FOLDERS_OF: dict[Stage, tuple[str, ...]] = {
    "squeeze": ("teacher",),
    "rank": ("rank", "ranking.csv"),
    "select": ("selected",),
    "recover": ("recover",),
    "aggregate": ("distilled",),
    "evaluate": ("evaluate",),
    "report": ("report",),
}


def copy_run(context: Context, root: Path, until: Stage = "report") -> Path:
    """Copy a run with the stages up to `until` to `root`, and return `root`."""
    later = STAGES[STAGES.index(until) + 1 :]
    left_out = [name for stage in later for name in FOLDERS_OF[stage]]
    shutil.copytree(context.run.root, root, ignore=shutil.ignore_patterns(*left_out))
    return root


def images_of(folder: Path) -> dict[str, bytes]:
    """Every image below the folder by its relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".png", ".jpg")
    }
