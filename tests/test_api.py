"""The package in Python: the examples of docs/python.md, quick imports, and a distilled set against its files."""

import doctest
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.toy import copy_run
from PIL import Image

import delt_hpc
from delt_hpc import pipeline
from delt_hpc.context import Context
from delt_hpc.data.transforms import normalise
from delt_hpc.distilled import manifest
from delt_hpc.errors import UserError
from delt_hpc.models import teacher
from delt_hpc.run import stop

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


@pytest.mark.slow
def test_the_examples_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # for `delt-hpc`
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


def export(finished: Context, folder: Path, *options: str) -> Path:
    command = [sys.executable, "-m", "delt_hpc.cli", "export", finished.run.root, "-q", "--out", folder, *options]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_an_export_has_the_same_images_teacher_and_stored_labels(finished: Context, tmp_path: Path) -> None:
    folder = export(finished, tmp_path / "out", "--to", "imagefolder", "--labels", "2")
    loaded, original = delt_hpc.load_distilled(folder), delt_hpc.load_distilled(finished.run.distilled)
    assert (loaded.targets, loaded.classes, loaded.spec) == (original.targets, original.classes, original.spec)
    pixels = np.stack([np.asarray(image) for image, _ in loaded])
    np.testing.assert_array_equal(pixels, np.stack([np.asarray(image) for image, _ in original]))
    images = normalise(torch.from_numpy(pixels), loaded.spec)
    assert torch.equal(loaded.teacher()(images), original.teacher()(images))
    assert [view["logits"].shape for view in loaded.soft_labels] == [(12, 4)] * 2
    (folder / "labels" / "00001.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        _ = loaded.soft_labels[1]
    weights = folder / "teacher.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match="was changed"):
        loaded.teacher()


def test_what_an_export_lacks(finished: Context, tmp_path: Path) -> None:
    loaded = delt_hpc.load_distilled(export(finished, tmp_path / "a", "--to", "imagefolder", "--no-teacher"))
    with pytest.raises(UserError, match="the export has no teacher"):
        loaded.teacher()
    for without in (loaded, delt_hpc.load_distilled(finished.run.distilled)):
        with pytest.raises(UserError, match="there are no stored soft labels"):
            _ = without.soft_labels
    with pytest.raises(UserError, match="is an export with --to webdataset"):
        delt_hpc.load_distilled(export(finished, tmp_path / "b", "--to", "webdataset"))


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_stops_the_work_at_its_next_step(
    number: signal.Signals,
    expected: type[BaseException],
    finished: Context,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[str] = []

    def work(*_: object) -> None:
        os.kill(os.getpid(), number)
        steps.append("finished after the signal")
        stop.check()
        steps.append("after the stop")

    monkeypatch.setattr(pipeline, "run_stages", work)
    before = signal.getsignal(number)
    with pytest.raises(expected):
        delt_hpc.distil(finished.config, copy_run(finished, tmp_path / "run"))
    assert steps == ["finished after the signal"]
    assert signal.getsignal(number) == before


def test_it_also_runs_in_another_thread(finished: Context, tmp_path: Path) -> None:
    run = copy_run(finished, tmp_path / "run", until="rank")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(delt_hpc.distil, finished.config, run, stages=["select"]).result() == run
    assert (run / "selected" / "done.json").exists()


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
