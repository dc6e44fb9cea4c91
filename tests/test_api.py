"""The package in Python: the examples of docs/python.md, quick imports, and a distilled set against its files."""

import doctest
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.toy import copy_run
from PIL import Image

import delt_hpc
from delt_hpc.context import Context
from delt_hpc.data.transforms import normalise
from delt_hpc.distilled import manifest
from delt_hpc.errors import UserError
from delt_hpc.models import teacher

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


@pytest.mark.slow
def test_the_examples_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    examples = doctest.DocTestParser().get_doctest(text.replace("```", ""), {}, "python.md", str(PAGE), 0)
    assert len(examples.examples) > 10
    failures: list[str] = []
    doctest.DocTestRunner().run(examples, out=failures.append)
    assert not failures, "".join(failures)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = """
import sys, delt_hpc
heavy = {"torch", "torchvision", "numpy", "pandas", "pydantic", "yaml", "typer", "delt_hpc.config.schema"}
assert not heavy & sys.modules.keys()
delt_hpc.status
assert not {"torch", "torchvision"} & sys.modules.keys()
assert {"distil", "load_distilled", "status"} <= set(delt_hpc.__all__)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="module `delt_hpc` has no attribute `distill`"):
        _ = delt_hpc.distill  # type: ignore[attr-defined]


def test_items_are_the_images_of_the_manifest_with_the_labels_of_the_class_map(finished: Context) -> None:
    folder = finished.run.distilled
    loaded = delt_hpc.load_distilled(folder)
    table = manifest.read_manifest(folder)
    assert loaded.targets == table["class_index"].tolist()
    assert loaded.classes == finished.dataset.classes.names
    assert loaded.spec == finished.dataset.spec
    image, label = loaded[5]
    assert label == table["class_index"][5]
    np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(folder / table["file"][5])))
    assert delt_hpc.load_distilled(folder, transform=lambda image: image.size)[5] == (image.size, label)


def test_the_teacher_is_that_of_the_run(finished: Context) -> None:
    loaded = delt_hpc.load_distilled(finished.run.distilled)
    images = normalise(torch.from_numpy(np.stack([np.asarray(image) for image, _ in loaded])), loaded.spec)
    expected = teacher.load(finished.run, finished.dataset, torch.device("cpu"))
    assert torch.equal(loaded.teacher()(images), expected(images))


def test_a_folder_away_from_its_run_has_no_teacher(finished: Context, tmp_path: Path) -> None:
    run = copy_run(finished, tmp_path / "run")
    away = (run / "distilled").rename(tmp_path / "away")
    with pytest.raises(UserError, match="there is no teacher beside the distilled set"):
        delt_hpc.load_distilled(away).teacher()


def test_what_is_not_a_distilled_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no manifest\.csv"):
        delt_hpc.load_distilled(tmp_path)


def test_an_image_is_compared_with_its_checksum_when_it_is_read(finished: Context, tmp_path: Path) -> None:
    folder = copy_run(finished, tmp_path / "run") / "distilled"
    loaded = delt_hpc.load_distilled(folder)
    first, second = (Path(path) for path, _ in loaded.samples[:2])
    second.write_bytes(first.read_bytes())
    assert loaded[0][1] == 0
    with pytest.raises(UserError, match=r"00001\.png: its content has changed"):
        loaded[1]
    first.unlink()
    with pytest.raises(UserError, match=r"00000\.png: cannot be read"):
        loaded[0]


@pytest.mark.parametrize("name", ["manifest.csv", "classes.csv", "dataset.json"])
def test_a_changed_table_of_a_distilled_set_is_refused(finished: Context, tmp_path: Path, name: str) -> None:
    folder = copy_run(finished, tmp_path / "run") / "distilled"
    content = (folder / name).read_text(encoding="utf-8")
    (folder / name).write_text(content.replace("two words", "two w0rds").replace('"ipc": 3', '"ipc": 2'))
    with pytest.raises(UserError, match=name):
        delt_hpc.load_distilled(folder)


def test_a_configuration_can_be_given_itself(finished: Context, tmp_path: Path) -> None:
    run = delt_hpc.distil(finished.config, copy_run(finished, tmp_path / "run", until="rank"), stages=["select"])
    assert run == tmp_path / "run"
    states = {row.task.stage: row.state for row in delt_hpc.status(run)}
    assert (states["select"], states["recover"]) == ("done", "missing")
