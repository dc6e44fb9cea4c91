"""Students learn equally well from the images of both engines: real images, three seeds."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from delt_hpc.config.load import merge, parse_config
from delt_hpc.data.catalog import idx
from delt_hpc.data.catalog.sources import DEBIAN
from delt_hpc.pipeline import open_run, run_stages
from delt_hpc.run.progress import Reporter

SETTINGS: dict[str, Any] = {
    "name": "fashion",
    "data": {"name": "fashion", "size": 16, "mean": [0.29] * 3, "std": [0.35] * 3},
    "squeeze": {"epochs": 4, "warmup_epochs": 1, "batch_size": 50, "lr": 0.05, "crop_scale": [0.5, 1.0]},
    "rank": {"batch_size": 250},
    "select": {"ipc": 5},
    "recover": {"iterations": 40, "round_iterations": 10, "batch_size": 25, "image_format": "png"},
    "evaluate": {
        "arms": ["distilled-soft"], "seeds": [1, 2, 3], "epochs": 60, "batch_size": 25, "randaugment": False,
        "validate_every": 60,
    },
    "machine": {"device": "cpu", "workers": 0},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="apt-get install dataset-fashion-mnist")
def test_students_of_both_engines_are_equally_good(tmp_path: Path) -> None:
    """Within two standard errors of their difference; and they have learnt from their images."""
    data = tmp_path / "data"
    for split, folder, per_class in (("train", "train", 150), ("t10k", "val", 60)):
        write_fashion(data / folder, split, per_class)
    accuracy = {}
    for engine in ("packed", "reference"):
        root = tmp_path / engine
        if engine == "reference":
            # Both engines use the same teacher, ranking and selection.
            shutil.copytree(
                tmp_path / "packed", root, ignore=shutil.ignore_patterns("recover", "distilled", "evaluate")
            )
        tree = merge(SETTINGS, {"data": {"root": str(data)}, "recover": {"engine": engine}})
        config = parse_config(tree, "test")
        stages = tuple(stage for stage in config.stages if stage != "report")
        run_stages(open_run(config, root, Reporter(quiet=True)), stages)
        results = [json.loads(path.read_text()) for path in sorted(root.glob("evaluate/*/result.json"))]
        accuracy[engine] = np.array([result["final"] for result in results])
    packed, reference = accuracy["packed"], accuracy["reference"]
    assert len(packed) == len(reference) == 3
    spread = np.sqrt((packed.var(ddof=1) + reference.var(ddof=1)) / 3)
    assert abs(packed.mean() - reference.mean()) <= max(2 * spread, 1.0), accuracy
    assert min(packed.mean(), reference.mean()) > 40, accuracy


def write_fashion(root: Path, split: str, per_class: int) -> None:
    """The first images of each class, one folder a class."""
    pixels, labels = idx.read_split(DEBIAN, split, 10)
    for label in range(10):
        (root / str(label)).mkdir(parents=True)
        for number, image in enumerate(pixels[labels == label][:per_class]):
            Image.fromarray(image).convert("RGB").save(root / str(label) / f"{number:05d}.png")
