"""Data sets set up in a folder: exports, unpacked archives, and every way in which this can fail."""

import gzip
import hashlib
import multiprocessing
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
from helpers.idx_files import idx_bytes
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

from delt_hpc.data.catalog import sources
from delt_hpc.data.index import class_folders, scan
from delt_hpc.errors import UserError
from delt_hpc.run import network

fork = multiprocessing.get_context("fork")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections go to a closed port, and no package is installed."""
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sources, "DEBIAN", Path("/nonexistent"))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def visible(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name != ".set-up.lock")


def write_idx(folder: Path, train: int = 30, val: int = 20, suffix: str = ".gz") -> dict[str, sources.Split]:
    """The four files with `train` and `val` random images, labels 0, 1, .. 9, 0, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(train)
    written: dict[str, sources.Split] = {}
    for split, count in (("train", train), ("t10k", val)):
        images, labels = random.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count) % 10
        written[split] = images, labels
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx_bytes(array)
            path = folder / f"{split}-{kind}-ubyte{suffix}"
            path.write_bytes(gzip.compress(content) if suffix else content)
    return written


def test_digits_keep_every_pixel_and_every_fifth_image_is_for_validation(tmp_path: Path) -> None:
    root = tmp_path / "data" / "digits"
    sources.provide("digits", root, "train", "val")
    assert visible(root) == ["train", "val"]
    folders = class_folders(root / "train")
    assert folders == [str(label) for label in range(10)]
    train, val = scan(root / "train", folders), scan(root / "val", folders)
    assert len(train) + len(val) == 1797
    digits = load_digits()
    for label in range(10):
        images = [np.rint(image * 255 / 16) for image in digits.images[digits.target == label]]
        expected = [image for number, image in enumerate(images, start=1) if number % 5 == 0]
        found = [pixels(val.root / val.paths[position]) for position in val.positions(label, label)]
        np.testing.assert_array_equal(found, expected)
        assert len(train.positions(label, label)) == len(images) - len(expected)
    assert max(pixels(train.root / path).max() for path in train.paths[:50]) == 255


def test_existing_folders_are_not_touched(tmp_path: Path) -> None:
    for folder in ("train", "val"):
        (tmp_path / folder / "a").mkdir(parents=True)
    sources.provide("digits", tmp_path, "train", "val")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "train",
        "train/a",
        "val",
        "val/a",
    ]


def test_only_the_missing_folder_is_exported(tmp_path: Path) -> None:
    (tmp_path / "train" / "mine").mkdir(parents=True)
    sources.provide("digits", tmp_path, "train", "val")
    assert class_folders(tmp_path / "train") == ["mine"]
    assert len(class_folders(tmp_path / "val")) == 10


@pytest.mark.parametrize("subfolder", ["", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_found_and_exported_pixel_by_pixel(subfolder: str, suffix: str, tmp_path: Path) -> None:
    written = write_idx(tmp_path / subfolder, suffix=suffix)
    sources.provide("fashion-mnist", tmp_path, "train", "val")
    for split, folder in (("train", "train"), ("t10k", "val")):
        images, labels = written[split]
        index = scan(tmp_path / folder, [str(label) for label in range(10)])
        found = [pixels(index.root / path) for path in index.paths]
        np.testing.assert_array_equal(found, images[np.argsort(labels, kind="stable")])


def test_idx_files_of_the_package_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "DEBIAN", tmp_path / "package")
    write_idx(tmp_path / "package")
    sources.provide("fashion-mnist", tmp_path / "root", "train", "val")
    assert visible(tmp_path / "root") == ["train", "val"]


def test_a_bad_idx_file_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    write_idx(tmp_path / "raw")
    bad = tmp_path / "raw" / "t10k-images-idx3-ubyte.gz"
    bad.write_bytes(bad.read_bytes()[:-40])
    with pytest.raises(UserError, match="cannot be read") as caught:
        sources.provide("fashion-mnist", tmp_path, "train", "val")
    assert caught.value.where == str(bad)
    assert visible(tmp_path) == ["raw"]


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match="lacks t10k-labels-idx1-ubyte"):
        sources.provide("fashion-mnist", tmp_path, "train", "val")


def killed_while_writing(root: Path, image: int) -> None:
    """Export, and kill this process at the given image."""
    saved = 0
    save = Image.Image.save

    def save_or_kill(self: Image.Image, *arguments: object, **options: object) -> None:
        nonlocal saved
        saved += 1
        if saved == image:
            os.kill(os.getpid(), signal.SIGKILL)
        save(self, *arguments, **options)  # type: ignore[arg-type]

    Image.Image.save = save_or_kill  # type: ignore[method-assign]
    sources.provide("fashion-mnist", root, "train", "val")


@pytest.mark.parametrize(("image", "left"), [(17, []), (45, ["train"])])
def test_a_kill_leaves_only_complete_splits_and_the_next_call_completes_them(
    image: int, left: list[str], tmp_path: Path
) -> None:
    write_idx(tmp_path / "raw")
    child = fork.Process(target=killed_while_writing, args=(tmp_path, image))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert [name for name in visible(tmp_path) if not name.startswith(".")] == ["raw", *left]
    sources.provide("fashion-mnist", tmp_path, "train", "val")
    assert visible(tmp_path) == ["raw", "train", "val"]
    assert [len(list((tmp_path / split).rglob("*.png"))) for split in ("train", "val")] == [30, 20]


def test_concurrent_processes_make_one_complete_export(tmp_path: Path) -> None:
    write_idx(tmp_path / "raw", train=600)
    children = [
        fork.Process(target=sources.provide, args=("fashion-mnist", tmp_path, "train", "val")) for _ in range(3)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert visible(tmp_path) == ["raw", "train", "val"]
    assert len(list((tmp_path / "train").rglob("*.png"))) == 600


def write_cifar(monkeypatch: pytest.MonkeyPatch, kind: type, root: Path, labels_key: str) -> dict[str, sources.Split]:
    """Batches of three classes in CIFAR's own format, with their checksums."""
    folder = root / kind.base_folder  # type: ignore[attr-defined]
    folder.mkdir(parents=True)
    random, written = np.random.default_rng(0), {}

    def put(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    for split, attribute in (("train", "train_list"), ("test", "test_list")):
        images, labels = random.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8), np.arange(9) % 3
        written[split] = images, labels
        batch = {"data": images.transpose(0, 3, 1, 2).reshape(9, -1), labels_key: labels.tolist()}
        monkeypatch.setattr(kind, attribute, [[split, put(split, batch)]])
    meta = {**kind.meta, "filename": "meta"}  # type: ignore[attr-defined]
    monkeypatch.setattr(kind, "meta", {**meta, "md5": put("meta", {meta["key"]: ["ant", "bee", "cat"]})})
    return written


@pytest.mark.parametrize(
    ("name", "kind", "key"),
    [("cifar10", datasets.CIFAR10, "labels"), ("cifar100", datasets.CIFAR100, "fine_labels")],
)
def test_cifar_batches_are_exported_in_colour(
    name: str, kind: type, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_cifar(monkeypatch, kind, tmp_path, key)
    sources.provide(name, tmp_path, "train", "val")
    for split, folder in (("train", "train"), ("test", "val")):
        images, labels = written[split]
        index = scan(tmp_path / folder, ["ant", "bee", "cat"])
        found = [pixels(index.root / path) for path in index.paths]
        np.testing.assert_array_equal(found, images[np.argsort(labels, kind="stable")])


def test_damaged_cifar_batches_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(monkeypatch, datasets.CIFAR10, tmp_path, "labels")
    (tmp_path / "cifar-10-batches-py" / "train").write_bytes(b"half of it")
    with pytest.raises(UserError, match="incomplete or damaged") as caught:
        sources.provide("cifar10", tmp_path, "train", "val")
    assert caught.value.where == str(tmp_path / "cifar-10-batches-py")
    assert visible(tmp_path) == ["cifar-10-batches-py"]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("fashion-mnist", "dataset-fashion-mnist"),
        ("cifar10", "cifar-10-batches-py/"),
        ("cifar100", "cifar-100-python/"),
        ("imagenette", "imagenette2.tgz"),
    ],
)
@pytest.mark.usefixtures("no_network")
def test_a_failed_download_says_what_to_do_and_leaves_nothing(name: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / ".download.old" / "half").mkdir(parents=True)
    with pytest.raises(UserError, match="download failed") as caught:
        sources.provide(name, tmp_path, "train", "val")
    assert remedy in caught.value.remedy
    assert visible(tmp_path) == []


@pytest.mark.usefixtures("no_network")
def test_a_later_call_succeeds_after_a_failed_download(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="download failed"):
        sources.provide("fashion-mnist", tmp_path, "train", "val")
    write_idx(tmp_path)
    sources.provide("fashion-mnist", tmp_path, "train", "val")
    assert len(class_folders(tmp_path / "val")) == 10


@pytest.mark.parametrize(
    ("name", "unpacked"),
    [("imagenette", "imagenette2"), ("imagewoof", "imagewoof2-320"), ("tiny-imagenet", "tiny-imagenet-200")],
)
def test_an_unpacked_archive_is_linked(name: str, unpacked: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / unpacked / split / "n01440764").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / unpacked / split / "n01440764" / "a.png")
    sources.provide(name, tmp_path, "train", "val")
    assert scan(tmp_path / "train", ["n01440764"]).paths == ("n01440764/a.png",)
    assert (tmp_path / "val").resolve() == tmp_path / unpacked / "val"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("birds", "set data.root, data.train and data.val"),
        ("imagenet-1k", "set data.root to ImageNet-1K"),
        ("imagewoof", "imagewoof2.tgz"),
        ("tiny-imagenet", "tiny-imagenet-200.zip"),
    ],
)
def test_a_missing_data_set_is_reported_with_the_folder_and_what_to_do(name: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="no folder val") as caught:
        sources.provide(name, tmp_path, "train", "val")
    assert caught.value.where == str(tmp_path)
    assert "val/<class>/<images>" in caught.value.expected
    assert remedy in caught.value.remedy


def test_only_the_default_folder_names_are_created(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder training, val") as caught:
        sources.provide("digits", tmp_path, "training", "val")
    assert "omit data.train and data.val" in caught.value.remedy
    assert visible(tmp_path) == []


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be set up") as caught:
        sources.provide("digits", tmp_path / "file" / "digits", "train", "val")
    assert caught.value.where == str(tmp_path / "file" / "digits")


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "imagenette"])
@pytest.mark.usefixtures("no_network")
def test_a_job_downloads_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(network.VARIABLE, "0")
    with pytest.raises(UserError, match="jobs download nothing") as caught:
        sources.provide(name, tmp_path, "train", "val")
    assert "`delt-hpc fetch` where there is a network" in caught.value.remedy
    assert visible(tmp_path) == []
