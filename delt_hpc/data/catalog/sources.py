"""Sources of data sets: existing folders, known archives unpacked in the root, and exports to image files.

An export is an ImageFolder of lossless PNGs; each of its folders train and val appears complete or not at all.
"""

import fcntl
import io
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from functools import partial
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

from delt_hpc.data.catalog import idx
from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.errors import UserError, some
from delt_hpc.run import network
from delt_hpc.run.folder import writing_folder
from delt_hpc.run.progress import Reporter

Split = tuple[np.ndarray, np.ndarray]  # uint8 [n, height, width] or [n, height, width, 3]; class positions int64 [n]

DEBIAN = Path("/usr/share/datasets/fashion-mnist")

_DEFAULT_SPLITS = ("train", "val")
_DIGITS = [str(digit) for digit in range(10)]
# Folders that the published archives unpack to.
_UNPACKED = {
    "imagenette": ("imagenette2", "imagenette2-320"),
    "imagewoof": ("imagewoof2", "imagewoof2-320"),
    "tiny-imagenet": ("tiny-imagenet-200",),
}
# The list of imagenet100_wnids.txt was introduced by contrastive multiview coding (arXiv 1906.05849).
_SUBSETS = {
    "imagenette": "imagenette_wnids.txt",
    "imagewoof": "imagewoof_wnids.txt",
    "imagenet-100": "imagenet100_wnids.txt",
}
_IMAGENET = "set data.root to ImageNet-1K, sorted into train/<wnid>/ and val/<wnid>/"
_REMEDIES = {
    "fashion-mnist": "install Debian's package dataset-fashion-mnist, or put the four idx files into {root}",
    "cifar10": "unpack cifar-10-python.tar.gz in {root}, so that it holds cifar-10-batches-py/",
    "cifar100": "unpack cifar-100-python.tar.gz in {root}, so that it holds cifar-100-python/",
    "imagenette": f"unpack imagenette2.tgz in {{root}}, or {_IMAGENET}; the ten classes are selected",
    "imagewoof": f"unpack imagewoof2.tgz in {{root}}, or {_IMAGENET}; the ten classes are selected",
    "tiny-imagenet": "unpack tiny-imagenet-200.zip in {root}, or set data.root to its folder",
    "imagenet-100": f"{_IMAGENET}; the hundred classes are selected",
    "imagenet-1k": _IMAGENET,
}


def provide(name: str, root: Path, train: str, val: str, reporter: Reporter | None = None) -> None:
    """Make sure that `root/train` and `root/val` exist.

    If they do not, `digits`, `fashion-mnist`, `cifar10` and `cifar100` are exported, `imagenette` is downloaded, and
    known archives unpacked in `root` are linked. This is done for the default folder names only.

    Raises:
        UserError: the data set is not found, cannot be downloaded or is damaged, or `root` is not writable.
    """
    if _complete(root, train, val):
        return
    _refuse_inner_folder(root, train, val)
    if (train, val) == _DEFAULT_SPLITS and (name in _PROVIDERS or name in _UNPACKED):
        try:
            root.mkdir(parents=True, exist_ok=True)
            with _locked(root):
                if not _complete(root, train, val):
                    _PROVIDERS.get(name, partial(_link_unpacked, name))(root, reporter or Reporter())
        except OSError as error:
            raise UserError(
                f"`{name}` cannot be set up: {error}",
                where=str(root),
                remedy="set data.root to a writable folder",
            ) from None
    if not _complete(root, train, val):
        raise _not_found(name, root, train, val)


def subset(name: str, available: Sequence[str]) -> list[str] | None:
    """The class folders of a data set that is a subset of ImageNet-1K.

    Args:
        available: the existing class folders.

    Returns:
        The subset's wnids, sorted, if `available` contains them and others; None if there is nothing to select.

    Raises:
        UserError: `available` contains only some of them, and others.
    """
    if name not in _SUBSETS:
        return None
    wanted = Path(__file__).with_name(_SUBSETS[name]).read_text(encoding="utf-8").split()
    missing = sorted(set(wanted) - set(available))
    if len(available) <= len(wanted) or len(missing) == len(wanted):
        return None
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(wanted)} classes of `{name}` are missing: {some(missing)}", where="data.root"
        )
    return wanted


def listed_validation(val_root: Path, folders: Sequence[str]) -> list[tuple[str, int]] | None:
    """Tiny-ImageNet's validation images, which are in one folder with a table of their classes.

    Args:
        val_root: folder with images/ and val_annotations.txt (tab separated: file, wnid, box).
        folders: class folders in class-map order; lines of other classes are ignored.

    Returns:
        (path relative to `val_root`, class index) of each image; None if there is no such table.

    Raises:
        UserError: naming malformed lines, missing files, unknown wnids, and classes without a line.
    """
    table, images = val_root / "val_annotations.txt", val_root / "images"
    if not table.is_file() or not images.is_dir():
        return None
    index = {folder: position for position, folder in enumerate(folders)}
    existing = {path.name for path in images.iterdir()}
    wnids = val_root.resolve().parent / "wnids.txt"
    known = {*folders, *wnids.read_text(encoding="utf-8").split()} if wnids.is_file() else None
    seen: set[str] = set()
    pairs: list[tuple[str, int]] = []
    problems: list[str] = []
    for number, line in enumerate(table.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        file, wnid = [*(part.strip() for part in line.split("\t")), ""][:2]
        if not file or not wnid:
            problems.append(f"line {number} is not file, wnid, box separated by tabs")
        elif file in seen:
            problems.append(f"line {number} lists {file} again")
        elif wnid not in index and (wnid not in known if known else not re.fullmatch(r"n\d{8}", wnid)):
            problems.append(f"line {number} has the unknown wnid {wnid}")
        elif file not in existing:
            problems.append(f"line {number} lists {file}, which is not in images/")
        elif wnid in index:
            pairs.append((f"images/{file}", index[wnid]))
        seen.add(file)
    without = sorted(set(range(len(folders))) - {label for _, label in pairs})
    if without and not problems:
        problems.append(f"no line for {some([folders[label] for label in without])}")
    if problems:
        raise UserError(some(problems), where=str(table), remedy="unpack tiny-imagenet-200.zip again")
    return pairs


def _complete(root: Path, train: str, val: str) -> bool:
    return (root / train).is_dir() and (root / val).is_dir()


def _layout(train: str, val: str) -> str:
    return f"{train}/<class>/<images> and {val}/<class>/<images>"


def _refuse_inner_folder(root: Path, train: str, val: str) -> None:
    """`data.root` must be the folder that holds train/ and val/, not one of these or a class folder in them."""
    full = root.absolute()
    for whole, split in ((full.parent, full), (full.parent.parent, full.parent)):
        if _complete(whole, train, val) and split in (whole / train, whole / val):
            raise UserError(
                f"{root} is inside the data set",
                where="data.root",
                expected=f"the folder with {_layout(train, val)}",
                remedy=f"set data.root to {whole}",
            )


def _not_found(name: str, root: Path, train: str, val: str) -> UserError:
    if not root.exists() and name not in SPECS:
        return UserError(
            f"the folder {root} does not exist",
            where="data.root",
            expected=f"a folder with {_layout(train, val)}",
            remedy="correct data.root",
        )
    missing = some([folder for folder in (train, val) if not (root / folder).is_dir()])
    remedy = "set data.root, data.train and data.val to the folders of the images"
    if (train, val) == _DEFAULT_SPLITS:
        remedy = _REMEDIES.get(name, remedy).format(root=root)
    elif name in _PROVIDERS:
        remedy += ", or omit data.train and data.val to have it set up here"
    return UserError(
        f"the data set `{name}` has no folder {missing} there",
        where=str(root),
        expected=_layout(train, val),
        remedy=remedy,
    )


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One process at a time sets a data set up; others wait and then find it complete."""
    with (root / ".set-up.lock").open("w") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _export(name: str, root: Path, folders: Sequence[str], splits: dict[str, Split], reporter: Reporter) -> None:
    missing = {split: images for split, images in splits.items() if not (root / split).is_dir()}
    with reporter.bar(f"{name}: writing images", sum(len(labels) for _, labels in missing.values())) as bar:
        for split, (images, labels) in missing.items():
            with writing_folder(root / split) as temporary:
                for folder in folders:
                    (temporary / folder).mkdir()
                for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
                    Image.fromarray(image).save(temporary / folders[label] / f"{number:05d}.png", compress_level=1)
                    bar.advance()


def _digits(root: Path, reporter: Reporter) -> None:
    """scikit-learn's 8 x 8 digits, gray values 0..16; every fifth image of each class is a validation image."""
    digits = load_digits()
    images, labels = np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target.astype(np.int64)
    is_val = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        is_val[np.flatnonzero(labels == label)[4::5]] = True
    splits = {"train": (images[~is_val], labels[~is_val]), "val": (images[is_val], labels[is_val])}
    _export("digits", root, _DIGITS, splits, reporter)


def _fashion_mnist(root: Path, reporter: Reporter) -> None:
    folder = _idx_folder(root)
    if folder is None:
        folder = root / "raw"
        fetch = partial(datasets.FashionMNIST, download=True)
        _download("fashion-mnist", root, "FashionMNIST/raw", folder, fetch, reporter)
    splits = {"train": idx.read_split(folder, "train", 10), "val": idx.read_split(folder, "t10k", 10)}
    _export("fashion-mnist", root, _DIGITS, splits, reporter)


def _idx_folder(root: Path) -> Path | None:
    for folder in (root, root / "raw", root / "FashionMNIST" / "raw", DEBIAN):
        missing = idx.missing(folder)
        if not missing:
            return folder
        if len(missing) < 4:
            raise UserError(f"lacks {some(missing)}", where=str(folder), expected="all four idx files, plain or as .gz")
    return None


def _cifar(name: str, kind: Any, root: Path, reporter: Reporter) -> None:
    batches = root / kind.base_folder
    if not batches.is_dir():
        _download(name, root, kind.base_folder, batches, partial(kind, download=True), reporter)
    try:
        parts = {split: kind(root, train=split == "train") for split in _DEFAULT_SPLITS}
    except RuntimeError:
        raise UserError("is incomplete or damaged", where=str(batches), remedy="delete it and start again") from None
    splits = {split: (part.data, np.asarray(part.targets)) for split, part in parts.items()}
    _export(name, root, parts["train"].classes, splits, reporter)


def _imagenette(root: Path, reporter: Reporter) -> None:
    if not any((root / folder).is_dir() for folder in _UNPACKED["imagenette"]):
        fetch = partial(datasets.Imagenette, download=True)
        _download("imagenette", root, "imagenette2", root / "imagenette2", fetch, reporter)
    _link_unpacked("imagenette", root, reporter)


def _link_unpacked(name: str, root: Path, _: Reporter) -> None:
    """Link `train` and `val` to the first unpacked archive that has both."""
    for folder in _UNPACKED[name]:
        if _complete(root / folder, *_DEFAULT_SPLITS):
            for split in _DEFAULT_SPLITS:
                if not (root / split).is_dir():
                    (root / split).symlink_to(Path(folder) / split)


def _download(
    name: str, root: Path, inner: str, target: Path, fetch: Callable[[str], object], reporter: Reporter
) -> None:
    """Move what torchvision downloads and unpacks as `inner` to `target`; leave nothing behind if it fails."""
    for stale in root.glob(".download.*"):
        shutil.rmtree(stale, ignore_errors=True)
    remedy = _REMEDIES[name].format(root=root)
    if not network.allowed():
        raise UserError(
            f"`{name}` is missing, and jobs download nothing",
            where=str(root),
            expected=_layout(*_DEFAULT_SPLITS),
            remedy=f"`delt-hpc fetch` where there is a network, or {remedy}",
        )
    try:
        with network.timeout(), TemporaryDirectory(prefix=".download.", dir=root) as scratch:
            with nullcontext() if sys.stderr.isatty() and not reporter.quiet else redirect_stderr(io.StringIO()):
                fetch(scratch)
            (Path(scratch) / inner).rename(target)
    except (OSError, RuntimeError, HTTPException) as error:
        raise UserError(
            f"`{name}` is missing, and its download failed: {' '.join(str(error).split())}",
            where=str(root),
            expected=_layout(*_DEFAULT_SPLITS),
            remedy=remedy,
        ) from None


_PROVIDERS: dict[str, Callable[[Path, Reporter], None]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "cifar10": partial(_cifar, "cifar10", datasets.CIFAR10),
    "cifar100": partial(_cifar, "cifar100", datasets.CIFAR100),
    "imagenette": _imagenette,
}
