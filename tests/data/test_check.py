"""The check of a data set: everything that is wrong with it is found in one pass."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.program import Program
from PIL import Image

from delt_hpc.config.schema import Config, Data, Select
from delt_hpc.data import measure
from delt_hpc.data.check import check, lines, summary
from delt_hpc.data.dataset import prepare
from delt_hpc.errors import UserError
from delt_hpc.run.folder import RunFolder
from delt_hpc.run.progress import Reporter

CLASSES = {"a": 3, "b": 5}


@pytest.fixture
def root(tmp_path: Path, image_folder: Any) -> Path:
    """Two classes in train/ and val/."""
    for split in ("train", "val"):
        image_folder(tmp_path / "images" / split, CLASSES, 8)
    return tmp_path / "images"


def config_of(root: Path, ipc: int = 2, **data: Any) -> Config:
    given = {"name": "mine", "root": root, "size": 8, "mean": "measure", "std": "measure"} | data
    return Config(data=Data(**given), select=Select(ipc=ipc))


def checked(config: Config) -> Any:
    return check(config, Reporter(quiet=True))


def rotate(path: Path, orientation: int) -> None:
    image = Image.open(path).copy()
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)


def test_a_good_data_set(root: Path) -> None:
    Image.new("RGB", (30, 20)).save(root / "train" / "a" / "00000.png")
    result = checked(config_of(root))
    assert (result.errors, result.warnings) == ((), ())
    assert (result.train.counts, result.val.counts) == (CLASSES, CLASSES)
    assert (result.train.smallest, result.train.largest) == ((8, 8), (30, 20))


def test_mean_and_std_are_those_a_run_measures(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MAX_IMAGES", 4)
    config = config_of(root)
    result = checked(config)
    spec = prepare(config, RunFolder(tmp_path / "run")).spec
    assert (result.mean, result.std) == (spec.mean, spec.std)


def test_every_unreadable_file_is_named(root: Path) -> None:
    bad = ["train/a/00001.png", "train/b/00000.png", "val/b/00004.png"]
    for path in bad:
        (root / path).write_bytes(b"no image")
    result = checked(config_of(root))
    assert [line.removeprefix(f"{root}/").partition(":")[0] for line in result.errors] == bad
    assert result.train.counts == {"a": 2, "b": 4}
    skipped = checked(config_of(root, on_bad="skip"))
    assert (skipped.errors, skipped.warnings) == ((), result.errors)


def test_readable_images_must_be_enough(root: Path) -> None:
    (root / "train" / "a" / "00001.png").write_bytes(b"")
    result = checked(config_of(root, ipc=3, on_bad="skip"))
    assert result.errors == ("select.ipc: 3 images per class requested, but a has 2; use at most 2",)
    assert checked(config_of(root, ipc=2, on_bad="skip")).errors == ()


def test_classes_of_val_alone_are_named(root: Path, image_folder: Any) -> None:
    image_folder(root / "val", {"c": 1, "d": 1}, 8)
    (warning,) = checked(config_of(root)).warnings
    assert warning == "val/ has class folders that train/ does not have; they are not used: c, d"


def test_chosen_classes_leave_no_class_of_val_alone(root: Path) -> None:
    assert checked(config_of(root, classes=["a"])).warnings == ()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_rotated_images_are_named(root: Path, suffix: str) -> None:
    turned, upright = root / "train" / "a" / f"x{suffix}", root / "train" / "a" / f"y{suffix}"
    for path, orientation in ((turned, 6), (upright, 1)):
        Image.new("RGB", (12, 8)).save(path)
        rotate(path, orientation)
    result = checked(config_of(root))
    assert result.train.rotated == (f"a/x{suffix}",)
    assert result.warnings[0].startswith("EXIF marks images as rotated. They are used as stored")
    assert result.train.largest == (12, 8), "as stored"


def test_options_that_are_missing_are_errors_beside_unreadable_files(root: Path) -> None:
    (root / "train" / "a" / "00001.png").write_bytes(b"")
    result = checked(config_of(root, size=None, mean=None, std=None))
    assert result.mean is None
    assert result.errors[0].startswith("data.size: `mine` is not a registered data set")
    assert len(result.errors) == 2


def test_a_constant_channel_cannot_be_normalised(root: Path) -> None:
    for path in (root / "train").rglob("*.png"):
        Image.fromarray(np.full((8, 8, 3), 7, dtype=np.uint8)).save(path)
    assert checked(config_of(root)).errors == (
        "data.std: a channel is the same in every pixel, so it cannot be normalised",
    )


def test_a_data_set_without_readable_images(root: Path) -> None:
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    result = checked(config_of(root, on_bad="skip"))
    assert [line.partition(":")[0] for line in result.errors] == ["select.ipc", str(root / "val")]
    assert len(result.warnings) == 16
    assert "train" in "\n".join(lines(config_of(root), result))


# --- data.root


def test_a_root_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data.root: the folder .*nowhere does not exist"):
        checked(config_of(tmp_path / "nowhere"))


@pytest.mark.parametrize("inner", ["train", "val", "train/a"])
@pytest.mark.parametrize("name", ["mine", "digits"])
def test_a_root_inside_the_data_set(root: Path, inner: str, name: str) -> None:
    with pytest.raises(UserError, match=r"^data.root: .* is inside the data set") as caught:
        checked(config_of(root / inner, name=name))
    assert caught.value.remedy == f"set data.root to {root}"


def test_a_root_beside_other_folders_named_train_and_val(tmp_path: Path) -> None:
    for folder in ("train", "val", "data/mine"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(UserError, match="`mine` has no folder train, val there"):
        checked(config_of(tmp_path / "data" / "mine"))


# --- the commands


def write(root: Path, folder: Path) -> Path:
    tree = {"name": "mine", "data": {"name": "mine", "root": str(root), "size": 8, "mean": "measure", "std": "measure"}}
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(tree | {"select": {"ipc": 2}}), encoding="utf-8")
    return file


def test_the_command_prints_the_findings(root: Path, tmp_path: Path, program: Program) -> None:
    file = write(root, tmp_path)
    answer = program("check", file, "-q")
    assert answer.code == 0
    assert answer.out.splitlines()[:2] == [
        f"train: {root}/train: 8 images in 2 classes, 3 to 5 in a class",
        "  from 8 x 8 to 8 x 8 pixels",
    ]
    (root / "val" / "a" / "00000.png").write_bytes(b"")
    answer = program("check", file, "-q")
    assert answer.code == 1
    assert answer.out.splitlines()[-1].startswith(f"error: {root}/val/a/00000.png: ")
    content = json.loads(program("check", file, "--json", "-q").out)
    assert content["val"]["counts"] == {"a": 2, "b": 5}
    assert not (tmp_path / "runs").exists()


def test_a_run_says_first_what_it_works_on(root: Path, tmp_path: Path, image_folder: Any) -> None:
    image_folder(root / "val", {"c": 1}, 8)
    config = config_of(root)
    assert list(summary(config, prepare(config, RunFolder(tmp_path / "run")))) == [
        "mine: 2 classes, 8 training and 8 validation images, network input 8 x 8, 2 distilled images per class",
        "warning: val/ has class folders that train/ does not have; they are not used: c",
    ]


def test_validation_images_that_are_the_training_images(root: Path) -> None:
    (root / "same").symlink_to(root / "train")
    expected = "data.val and data.train are the same folder: accuracies will say nothing about new images"
    for val in ("train", "same"):
        assert checked(config_of(root, val=val)).warnings == (expected,)
