"""How often a stage asks the disk to sync: on a network file system each time is a round trip to its server."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from delt_hpc.config.load import parse_config
from delt_hpc.pipeline import open_run, run_stages
from delt_hpc.run.progress import Reporter


def syncs(root: Path, data: Path, ipc: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Calls of fsync by select and by recover, for two classes in one batch."""
    tree = {
        "data": {"name": "toy", "root": str(data), "size": 8, "mean": [0.5] * 3, "std": [0.25] * 3},
        "squeeze": {"epochs": 1, "warmup_epochs": 0},
        "select": {"ipc": ipc},
        "recover": {"iterations": 2, "round_iterations": 2, "batch_size": 2 * ipc},
        "machine": {"device": "cpu", "loader": "torchvision", "workers": 0},
    }
    context = open_run(parse_config(tree, "test"), root, Reporter(quiet=True))
    run_stages(context, ["squeeze", "rank"])
    counted: dict[str, int] = {}
    original = os.fsync
    for stage in ("select", "recover"):
        calls: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda handle, calls=calls: (calls.append(handle), original(handle)))
            run_stages(context, [stage])  # type: ignore[list-item]
        counted[stage] = len(calls)
    return counted


def test_an_image_costs_one_sync_and_its_folder_one_for_all_its_images(
    tmp_path: Path, image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    image_folder(tmp_path / "data" / "train", dict.fromkeys("ab", 8), size=8)
    image_folder(tmp_path / "data" / "val", dict.fromkeys("ab", 1), size=8)
    few, many = (syncs(tmp_path / f"run{ipc}", tmp_path / "data", ipc, monkeypatch) for ipc in (1, 6))
    for stage in ("select", "recover"):
        assert many[stage] - few[stage] == 2 * 5, (few, many)  # ten more images: a file each
