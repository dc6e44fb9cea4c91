"""A run's data set is found once, checked and recorded; later calls use the record."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from delt_hpc.config.schema import Config, Data, Select
from delt_hpc.data import dataset
from delt_hpc.data.catalog.specs import root_of
from delt_hpc.data.dataset import Dataset, open_dataset, prepare
from delt_hpc.errors import UserError
from delt_hpc.run import progress
from delt_hpc.run.folder import RunFolder
from delt_hpc.run.progress import Reporter

COUNTS = {"00010": 5, "10": 4, "two words": 3, "été": 5}
ImageFolder = Callable[..., Path]


@pytest.fixture
def toy(tmp_path: Path, image_folder: ImageFolder) -> Path:
    root = tmp_path / "toy"
    image_folder(root / "train", COUNTS, size=8)
    image_folder(root / "val", dict.fromkeys(COUNTS, 2), size=8)
    return root


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "toy")


def configured(root: Path | None, ipc: int = 2, seed: int = 0, **changes: Any) -> Config:
    values: dict[str, Any] = {"name": "toy", "size": 8, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    return Config(seed=seed, data=Data(**values | {"root": root} | changes), select=Select(ipc=ipc))


def assert_same(found: Dataset, expected: Dataset) -> None:
    assert (found.spec, found.classes) == (expected.spec, expected.classes)
    for split in ("train", "val"):
        one, other = getattr(found, split), getattr(expected, split)
        assert (one.root, one.paths, one.labels.tolist()) == (other.root, other.paths, other.labels.tolist())


def test_the_data_set_is_found_and_recorded(toy: Path, run: RunFolder) -> None:
    config = configured(toy)
    found = prepare(config, run)
    assert found.classes.folders == found.classes.names == tuple(sorted(COUNTS))
    assert found.train.counts(4).tolist() == [5, 4, 3, 5]
    assert found.val.counts(4).tolist() == [2, 2, 2, 2]
    assert (found.train.root, found.val.root) == (toy / "train", toy / "val")
    assert (found.spec.name, found.spec.classes, found.spec.size) == ("toy", 4, 8)
    facts = json.loads(run.dataset.read_text())
    assert (facts["train_images"], facts["val_images"]) == (17, 8)
    assert_same(open_dataset(config, run), found)


def test_chosen_classes_are_labelled_in_the_chosen_order(toy: Path, run: RunFolder) -> None:
    found = prepare(configured(toy, classes=["été", "00010", "two words"]), run)
    assert found.classes.folders == ("été", "00010", "two words")
    for index in (found.train, found.val):
        assert [found.classes.folders[label] for label in index.labels] == [path.split("/")[0] for path in index.paths]
        assert sorted(set(index.labels.tolist())) == [0, 1, 2]


def test_the_second_call_reads_the_record_only(toy: Path, run: RunFolder) -> None:
    first = prepare(configured(toy), run)
    (toy / "train" / "10" / "00000.png").unlink()
    (toy / "train" / "a new class").mkdir()
    written = {path: path.stat().st_mtime_ns for path in run.root.rglob("*") if path.is_file()}
    assert_same(prepare(configured(toy), run), first)
    assert {path: path.stat().st_mtime_ns for path in run.root.rglob("*") if path.is_file()} == written


def test_the_data_set_may_be_moved(toy: Path, run: RunFolder) -> None:
    first = prepare(configured(toy), run)
    moved = toy.rename(toy.with_name("moved"))
    found = prepare(configured(moved), run)
    assert found.train.paths == first.train.paths
    assert found.train.root == moved / "train"


def test_another_set_of_images_has_another_fingerprint(toy: Path, tmp_path: Path) -> None:
    def fingerprint(name: str, **changes: Any) -> str:
        run = RunFolder(tmp_path / "runs" / name)
        prepare(configured(toy, **changes), run)
        return str(json.loads(run.dataset.read_text())["fingerprint"])

    prints = [fingerprint("first"), fingerprint("reversed", classes=sorted(COUNTS, reverse=True))]
    for split in ("train", "val"):
        (toy / split / "10" / "more.png").touch()
        prints.append(fingerprint(f"more {split}"))
    assert len(set(prints)) == 4
    assert fingerprint("again") == prints[-1]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "other"}, r"data\.name: made with 'toy', now 'other'"),
        ({"train": "val"}, r"data\.train: made with 'train', now 'val'"),
        ({"val": "train"}, r"data\.val: made with 'val', now 'train'"),
        ({"classes": ["10", "00010"]}, r"data\.classes: made with None, now \['10', '00010'\]"),
        ({"num_classes": 4}, r"data\.num_classes: made with None, now 4"),
        ({"size": 7}, r"data\.size: made with 8, now 7"),
        ({"resize": 9}, r"data\.resize: made with None, now 9"),
        ({"mean": [0.5, 0.5, 0.4]}, r"data\.mean: made with \[0\.5, 0\.5, 0\.5\], now \[0\.5, 0\.5, 0\.4\]"),
        ({"std": [0.3, 0.2, 0.2]}, r"data\.std: made with \[0\.2, 0\.2, 0\.2\], now \[0\.3, 0\.2, 0\.2\]"),
        ({"mirror": True}, r"data\.mirror: made with None, now True"),
    ],
)
def test_a_changed_value_is_named(changes: dict[str, Any], field: str, toy: Path, run: RunFolder) -> None:
    prepare(configured(toy), run)
    before = run.dataset.read_bytes()
    with pytest.raises(UserError, match=field) as caught:
        prepare(configured(toy, **changes), run)
    assert caught.value.where == str(run.root)
    assert run.dataset.read_bytes() == before
    prepare(configured(toy, seed=3), run)  # the first values again; the seed is not among them


def test_classes_with_fewer_than_ipc_images_are_named_with_their_counts(toy: Path, run: RunFolder) -> None:
    with pytest.raises(UserError, match=r"5 images per class requested, but 10 has 4, two words has 3") as caught:
        prepare(configured(toy, ipc=5), run)
    assert caught.value.where == "select.ipc"
    assert caught.value.expected.startswith("at most 3")
    assert prepare(configured(toy, ipc=3), run).train.counts(4).min() == 3


@pytest.mark.parametrize("folder", ["", "train", "val", "train/10/run", "val/run", "run", "..", "../link/run"])
def test_a_run_folder_that_overlaps_the_images_is_refused(folder: str, toy: Path) -> None:
    (toy.parent / "link").symlink_to(toy)
    before = sorted(toy.rglob("*"))
    with pytest.raises(UserError, match="overlap") as caught:
        prepare(configured(toy), RunFolder(toy / folder))
    assert caught.value.where == "data.root"
    assert sorted(toy.rglob("*")) == before
    assert not (toy.parent / "dataset.json").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_run_folder_inside_a_split_outside_the_root_is_refused(split: str, toy: Path) -> None:
    elsewhere = (toy / split).rename(toy.parent / "elsewhere")
    changes: dict[str, Any] = {split: "../elsewhere"}
    with pytest.raises(UserError, match="overlap") as caught:
        prepare(configured(toy, **changes), RunFolder(elsewhere / "run"))
    assert caught.value.where == f"data.{split}"


@pytest.mark.parametrize("folder", [".", "data", "data/toy", "data/toy/train/run", "data/toy/val/run"])
def test_overlap_with_the_default_root_is_refused(folder: str, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toy.parent)
    (toy.parent / "data").mkdir()
    toy.rename(toy.parent / "data" / "toy")
    with pytest.raises(UserError, match="overlap"):
        prepare(configured(None), RunFolder(Path(folder)))
    assert len(prepare(configured(None), RunFolder(Path("runs/toy"))).train) == 17


def test_a_class_missing_in_val_is_named(toy: Path, run: RunFolder) -> None:
    (toy / "val" / "two words").rename(toy / "val" / "2 words")
    with pytest.raises(UserError, match="no images for 1 of 4 classes: two words") as caught:
        prepare(configured(toy), run)
    assert caught.value.where == str(toy / "val")
    assert not run.root.exists()


def test_a_class_without_images_is_named(toy: Path, run: RunFolder) -> None:
    for path in (toy / "train" / "10").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="no images for 1 of 4 classes: 10") as caught:
        prepare(configured(toy), run)
    assert caught.value.where == str(toy / "train")


@pytest.mark.parametrize("name", ["", ".", "..", "10/", "../val/10", "nested/inner"])
def test_only_a_folders_name_can_be_a_class(name: str, toy: Path, run: RunFolder, image_folder: ImageFolder) -> None:
    for split in ("train", "val"):
        image_folder(toy / split, {"nested/inner": 2}, size=8)
    with pytest.raises(UserError, match="cannot name a class") as caught:
        prepare(configured(toy, classes=["00010", name]), run)
    assert repr(name) in caught.value.what
    assert caught.value.where == "data.classes"


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"num_classes": 3}, "data.num_classes"),
        ({"size": None}, "data.size"),
        ({"mean": None}, "data.mean"),
        ({"std": None}, "data.std"),
        ({"size": None, "mean": "measure", "std": "measure"}, "data.size"),
    ],
)
def test_missing_values_are_named(changes: dict[str, Any], where: str, toy: Path, run: RunFolder) -> None:
    with pytest.raises(UserError) as caught:
        prepare(configured(toy, **changes), run)
    assert caught.value.where == where
    assert not run.dataset.exists()


def test_colours_are_measured_once(toy: Path, run: RunFolder) -> None:
    config = configured(toy, mean="measure", std="measure")
    found = prepare(config, run)
    pixels = np.stack([np.asarray(Image.open(toy / "train" / path)) for path in found.train.paths]) / 255
    np.testing.assert_allclose(found.spec.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.spec.std, pixels.std(axis=(0, 1, 2)), rtol=1e-12)
    Image.new("RGB", (8, 8)).save(toy / "train" / "10" / "00000.png")
    assert prepare(config, run).spec == found.spec
    with pytest.raises(UserError, match="seed: made with 0, now 1"):
        prepare(config.model_copy(update={"seed": 1}), run)


def test_linked_class_folders_are_classes(toy: Path, run: RunFolder) -> None:
    for split in ("train", "val"):
        (toy / split / "linked").symlink_to(toy / split / "10")
    found = prepare(configured(toy), run)
    assert found.classes.folders == ("00010", "10", "linked", "two words", "été")
    assert found.train.counts(5).tolist() == [5, 4, 4, 3, 5]


def test_a_missing_table_is_named(toy: Path, run: RunFolder) -> None:
    prepare(configured(toy), run)
    run.index("val").unlink()
    with pytest.raises(UserError, match=r"index/val\.csv: missing"):
        prepare(configured(toy), run)


def test_the_default_root_is_named_after_the_data_set() -> None:
    assert root_of(Data(name="birds")) == Path("data") / "birds"
    assert root_of(Data(name="birds", root=Path("/mnt/birds"))) == Path("/mnt/birds")


@pytest.mark.parametrize("name", sorted(dataset.RESERVED))
def test_a_class_folder_named_like_a_file_of_the_distilled_set_is_refused(
    name: str, toy: Path, run: RunFolder, image_folder: ImageFolder
) -> None:
    for split in ("train", "val"):
        image_folder(toy / split, {name: 2}, size=8)
    with pytest.raises(UserError, match=f"{name} have the names of files of a distilled data set"):
        prepare(configured(toy), run)
    assert not run.root.exists()


def test_a_class_folder_with_a_very_long_name_is_refused(toy: Path, run: RunFolder, image_folder: ImageFolder) -> None:
    for split in ("train", "val"):
        image_folder(toy / split, {"é" * 120: 2}, size=8)
    with pytest.raises(UserError, match="at most 200 bytes"):
        prepare(configured(toy), run)


def test_quiet_also_silences_the_export_and_the_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    told = {}
    for quiet in (True, False):
        config = configured(tmp_path / str(quiet), name="digits", mean="measure", std="measure")
        prepare(config, RunFolder(tmp_path / f"run-{quiet}"), Reporter(quiet=quiet))
        told[quiet] = capsys.readouterr().err
    assert told[True] == ""
    assert "digits: writing images" in told[False] and "measuring colours" in told[False]
