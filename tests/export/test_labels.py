"""Stored soft labels: the shipped reader makes the images whose logits are stored."""

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.toy import Start
from safetensors.torch import load_file

from delt_hpc.config.schema import Evaluate
from delt_hpc.context import Context
from delt_hpc.export import labels
from delt_hpc.export.export import export
from delt_hpc.models import teacher
from delt_hpc.run.progress import Reporter


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports dataset.py of an export."""

    def read(folder: Path) -> Any:
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, "dataset", raising=False)
        return import_module("dataset")

    yield read
    sys.modules.pop("dataset", None)


@pytest.mark.parametrize("mix", ["cutmix", "mixup", "none"])
def test_the_reader_makes_the_images_whose_logits_are_stored(
    mix: str, finished: Context, start: Start, tmp_path: Path, reader: Any
) -> None:
    run, views = tmp_path / "run", 3
    trained = start(run, changes={"data": {"mirror": True}, "evaluate": {"mix": mix, "epochs": 1, "seeds": [1]}})
    folder = tmp_path / "out"
    export(run, folder, "imagefolder", Reporter(quiet=True), views=views)
    protocol = json.loads((folder / "protocol.json").read_text(encoding="utf-8"))
    images = reader(folder).Distilled(folder, protocol, stored=True)
    network = teacher.load(trained.run, trained.dataset, torch.device("cpu"))
    seen = []
    for epoch in range(views + 1):
        images.start(epoch)
        batch, stored = (torch.stack(parts) for parts in zip(*(images[row] for row in range(len(images))), strict=True))
        torch.testing.assert_close(network(batch).half().float(), stored, rtol=2e-3, atol=2e-3)
        seen.append(stored)
    assert torch.equal(seen[0], seen[views]), "after the last view comes the first"
    assert not torch.equal(seen[0], seen[1])
    drawn = load_file(folder / labels.files(views)[0])
    assert drawn["mirrored"].any()
    assert not drawn["mirrored"].all()
    assert (drawn["share"] < 1).any() == (mix == "mixup")
    assert drawn["box"].any() == (mix == "cutmix")


def test_boxes_have_the_areas_of_cutmix() -> None:
    stream = iter([0.75, 0.5, 0.5, 0.0, 0.0, 0.99, 1.0, 0.3, 0.3])
    assert labels._box(stream, 16) == (4, 4, 12, 12)  # half the side at lambda 0.75
    assert labels._box(stream, 16) == (0, 7, 8, 16)  # cut off at the edges
    left, top, right, bottom = labels._box(stream, 16)
    assert (right - left) * (bottom - top) == 0
    assert Evaluate().mix == "cutmix"
