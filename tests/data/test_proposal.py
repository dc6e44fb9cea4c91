"""`delt-hpc new`: the proposed configuration is valid, suits the folder, and runs as it is."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.program import Program
from PIL import Image

from delt_hpc.config.load import load_config
from delt_hpc.config.schema import Config
from delt_hpc.data.proposal import propose
from delt_hpc.errors import UserError
from delt_hpc.models import registry
from delt_hpc.run.progress import Reporter


def proposed(name: str, root: Path, tmp_path: Path) -> Config:
    path = tmp_path / "proposed.yaml"
    path.write_text(propose(name, root, Reporter(quiet=True)).text, encoding="utf-8")
    return load_config(str(path))


def folder(
    root: Path, image_folder: Any, size: Any = 32, train: str = "train", val: str = "val", count: int = 6
) -> Path:
    image_folder(root / train, {"a": count, "b": count + 4, "été 1": count}, size)
    image_folder(root / val, {"a": 2, "b": 2, "été 1": 2}, size)
    return root


@pytest.mark.parametrize(
    ("size", "chosen", "network"),
    [
        (8, 16, "convnet3"),
        (28, 32, "resnet18-small-stem"),
        (64, 64, "resnet18-small-stem"),
        ((400, 120), 128, "resnet18"),
        ((300, 500), 224, "resnet18"),
    ],
)
def test_input_size_and_network_follow_the_images(
    tmp_path: Path, image_folder: Any, size: Any, chosen: int, network: str
) -> None:
    config = proposed("mine", folder(tmp_path / "data", image_folder, size, count=2), tmp_path)
    assert (config.data.size, config.teacher.model, config.evaluate.students) == (chosen, network, [network])
    assert config.data.resize == (chosen if chosen <= 64 else None)
    registry.check(config.teacher.model, 3, chosen, where="teacher.model", needs_batch_norm=True)


def test_of_few_images_fewer_are_distilled_in_fewer_rounds(tmp_path: Path, image_folder: Any) -> None:
    few = proposed("mine", folder(tmp_path / "few", image_folder, 8, count=4), tmp_path)
    assert (few.select.ipc, few.recover.rounds, few.squeeze.batch_size, few.squeeze.epochs) == (1, 1, 8, 200)
    more = proposed("mine", folder(tmp_path / "more", image_folder, 8, count=30), tmp_path)
    assert (more.select.ipc, more.recover.rounds) == (6, 5)
    many = proposed("mine", folder(tmp_path / "many", image_folder, 8, count=60), tmp_path)
    assert (many.select.ipc, many.recover.rounds, many.evaluate.batch_size) == (10, 8, 15)


def test_mean_and_std_are_measured(tmp_path: Path, image_folder: Any) -> None:
    root = folder(tmp_path / "data", image_folder, 16)
    for path in root.glob("train/*/*.png"):
        Image.new("RGB", (16, 16), (0, 51, 255)).save(path)
    for path in root.glob("train/a/*.png"):
        Image.new("RGB", (16, 16), (255, 51 * 4, 0)).save(path)
    config = proposed("mine", root, tmp_path)
    share = 6 / 22
    assert config.data.mean == pytest.approx([share, 0.2 + 0.6 * share, 1 - share], abs=1e-4)
    spread = (share * (1 - share)) ** 0.5
    assert config.data.std == pytest.approx([spread, 0.6 * spread, spread], abs=1e-4)


def test_other_names_of_the_splits_and_names_that_yaml_must_quote(tmp_path: Path, image_folder: Any) -> None:
    root = folder(tmp_path / "a: #odd", image_folder, 16, "training", "test")
    config = proposed("123", root, tmp_path)
    assert (config.name, config.data.name, config.data.root) == ("123", "123", root)
    assert (config.data.train, config.data.val) == ("training", "test")


def test_unreadable_files_are_left_out_and_named(tmp_path: Path, image_folder: Any) -> None:
    root = folder(tmp_path / "data", image_folder, 16)
    (root / "train" / "a" / "00000.png").write_bytes(b"no image")
    proposal = propose("mine", root, Reporter(quiet=True))
    assert yaml.safe_load(proposal.text)["data"]["on_bad"] == "skip"
    assert "1 unreadable files are left out" in proposal.text
    assert "# warning: " in proposal.text
    assert "train/a/00000.png" in proposal.text


@pytest.mark.parametrize(
    ("name", "missing", "message"),
    [
        ("cifar10", "", "is a registered data set"),
        ("mine", "train", "has no folder of training images"),
        ("mine", "val", "has no folder of validation images"),
    ],
)
def test_what_cannot_be_proposed_is_named(
    tmp_path: Path, image_folder: Any, name: str, missing: str, message: str
) -> None:
    root = folder(tmp_path / "data", image_folder, 16)
    if missing:
        (root / missing).rename(root / "elsewhere")
    with pytest.raises(UserError, match=message):
        propose(name, root, Reporter(quiet=True))


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        propose("mine", tmp_path / "nowhere", Reporter(quiet=True))


def test_the_written_file_is_checked_and_runs(
    program: Program, tmp_path: Path, image_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "flowers", image_folder, 10, count=20)
    written = program("new", "flowers", "--data", "flowers")
    assert written.code == 0, written.err
    assert "written: flowers.yaml" in written.out
    assert "44 images" not in written.out
    assert "64 images in 3 classes, 20 to 24 in a class" in written.out
    assert yaml.safe_load((tmp_path / "flowers.yaml").read_text())["data"]["root"] == str(tmp_path / "flowers")

    again = program("new", "flowers", "--data", "flowers")
    assert again.code == 2
    assert "flowers.yaml: exists already" in again.err

    assert program("check", "flowers.yaml").code == 0
    short = ["squeeze.epochs=1", "squeeze.warmup_epochs=0", "recover.iterations=4", "recover.round_iterations=1"]
    short += ["evaluate.epochs=1", "evaluate.seeds=[1]", "evaluate.arms=[distilled-soft]", "machine.workers=0"]
    run = program("run", "flowers.yaml", *(part for value in short for part in ("--set", value)))
    assert run.code == 0, run.err
    assert (tmp_path / "runs" / "flowers" / "report" / "report.html").exists()
    assert len(list((tmp_path / "runs" / "flowers" / "distilled").glob("*/*.png"))) == 3 * 4
