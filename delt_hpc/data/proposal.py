"""A configuration proposed for a folder of images: what was found there, and settings that suit it."""

import math
import os
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml
from PIL import Image

from delt_hpc.config.schema import Config, Data, Select
from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.data.check import DataCheck, check
from delt_hpc.data.dataset import locate
from delt_hpc.data.index import Index
from delt_hpc.errors import UserError, some
from delt_hpc.keyed_random import permutation
from delt_hpc.run.progress import Reporter

_TRAIN, _VAL = ("train", "training"), ("val", "valid", "validation", "test")
_WARNINGS = 10  # of the data set that are repeated in the file, at most
_SIZES_READ = 2000  # images whose size is read, at most
# Input size -> a usual network of the literature for it, and a faster one.
_NETWORKS = {
    16: ("convnet3", "convnet3"),
    32: ("resnet18-small-stem", "convnet3"),
    64: ("resnet18-small-stem", "convnet4"),
    128: ("resnet18", "convnet5"),
    224: ("resnet18", "convnet6"),
}
_LOSSLESS_BELOW = 64  # pixels; JPEG costs detail in smaller images
_STEPS = 20_000  # of the teacher's training, about
_ITERATIONS, _ROUNDS = 4000, (8, 5, 4, 2, 1)  # of recovery, as published; the divisors of it that are tried


@dataclass(frozen=True)
class Proposal:
    """The text of the configuration file, and what was found in the folder."""

    text: str
    checked: DataCheck


def propose(name: str, root: Path, reporter: Reporter) -> Proposal:
    """Look at the folder, read every image once, and propose a configuration for it.

    Args:
        name: of the data set and the run; not that of a registered data set.
        root: has a folder of class folders for training and one for validation.

    Raises:
        UserError: the name is taken, there are no such folders, or a run would stop at what is in them.
    """
    if name in SPECS:
        raise UserError(
            f"`{name}` is a registered data set", where=name, remedy="choose another name, or use its recipe"
        )
    train, val = _split(root, _TRAIN), _split(root, _VAL)
    data = Data(name=name, root=root, train=train, val=val, mean="measure", std="measure", on_bad="skip")
    _, index, _ = locate(data, reporter)
    size = _input_size(index)
    data = data.model_copy(update={"size": size})
    checked = check(Config(name=name, data=data, select=Select(ipc=1)), reporter)
    if checked.errors:
        raise UserError(f"a run would stop: {some(list(checked.errors))}", where=str(root), remedy="repair the folder")
    return Proposal(_text(name, data, size, checked), checked)


def _split(root: Path, names: Sequence[str]) -> str:
    if not root.is_dir():
        raise UserError("there is no such folder", where=str(root), remedy="correct --data")
    found = [name for name in names if (root / name).is_dir()]
    if not found:
        kind = "training" if names is _TRAIN else "validation"
        raise UserError(
            f"has no folder of {kind} images",
            where=str(root),
            expected=f"{' or '.join(names)}/ with one folder of images for each class",
            remedy="move images of every class there; validation images must not be training images",
        )
    return found[0]


def _input_size(train: Index) -> int:
    """The usual input size that is nearest to the median of the images' shorter sides."""
    positions = permutation(len(train), 0, "proposal", "sizes")[:_SIZES_READ]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        sides = [side for side in pool.map(_shorter_side, (train.root / train.paths[p] for p in positions)) if side]
    if not sides:
        raise UserError("not one training image is readable", where=str(train.root))
    median = statistics.median(sides)
    return min(_NETWORKS, key=lambda size: abs(math.log(size / median)))


def _shorter_side(path: Path) -> int | None:
    try:
        with Image.open(path) as image:
            return min(image.size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # `check` lists it
        return None


def _text(name: str, data: Data, size: int, checked: DataCheck) -> str:
    counts, val_images = list(checked.train.counts.values()), sum(checked.val.counts.values())
    classes, images, least = len(counts), sum(counts), min(counts)
    skipped = len(checked.train.unreadable) + len(checked.val.unreadable)
    network, faster = _NETWORKS[size]
    ipc = max(1, min(10, least // 5))
    rounds = next(rounds for rounds in _ROUNDS if rounds <= ipc)
    batch = 2 ** max(3, min(7, int(math.log2(max(1, images // 16)))))
    epochs = max(20, min(200, round(_STEPS / math.ceil(images / batch))))
    mean, std = (_numbers(values) for values in (checked.mean, checked.std))
    assert checked.train.smallest
    assert checked.train.largest
    smallest, largest = (f"{width} x {height}" for width, height in (checked.train.smallest, checked.train.largest))
    span = f"{least} to {max(counts)}" if least != max(counts) else str(least)
    resize = f"  resize: {size}  # the shorter side, before the centre crop; equal to size: nothing is cut off\n"
    lines = [
        f"# Proposed by `delt-hpc new` after reading {data.root}:",
        f"# {images} training images of {classes} classes ({span} in a class), {val_images} validation images,",
        f"# {smallest} to {largest} pixels.",
        *_warnings(checked.warnings),
        "# Every other option has a default: `delt-hpc config` prints them, docs/config.md explains them.",
        f"name: {_scalar(name)}  # the run folder is runs/<name>",
        "method: delt",
        "",
        "data:",
        f"  name: {_scalar(name)}",
        f"  root: {_scalar(str(data.root))}",
        f"  train: {data.train}",
        f"  val: {data.val}",
        f"  size: {size}  # input of the networks, pixels: the usual size that is nearest to these images",
        *([resize.rstrip()] if size <= 64 else []),
        f"  mean: {mean}  # measured",
        f"  std: {std}",
        "  mirror: true  # false where a mirrored image has another class, as for digits and letters",
        *([f"  on_bad: skip  # {skipped} unreadable files are left out; `raise` stops at them"] if skipped else []),
        "",
        "teacher:",
        f"  model: {network}" + (f"  # {faster} is smaller and faster" if faster != network else ""),
        "",
        "squeeze:  # the training of the teacher",
        f"  epochs: {epochs}  # about {epochs * math.ceil(images / batch)} steps",
        f"  batch_size: {batch}",
        "",
        "select:",
        f"  ipc: {ipc}  # distilled images of each class, of {least} real ones or more",
        "",
        f"recover:  # {_ITERATIONS} iterations in {rounds} round{'s' if rounds > 1 else ''}",
        f"  iterations: {_ITERATIONS}  # fewer are a quick trial",
        f"  round_iterations: {_ITERATIONS // rounds if rounds > 1 else 'null'}",
        *(["  image_format: png  # JPEG costs detail in small images"] if size < _LOSSLESS_BELOW else []),
        "",
        "evaluate:  # students trained on the distilled images, and on as many real ones",
        f"  students: [{network}]",
        f"  batch_size: {_student_batch(classes, ipc)}",
    ]
    return "\n".join(lines) + "\n"


def _warnings(found: Sequence[str]) -> Iterator[str]:
    yield from (f"# warning: {' '.join(warning.split())}" for warning in found[:_WARNINGS])
    if len(found) > _WARNINGS:
        yield f"# {len(found) - _WARNINGS} more warnings: `delt-hpc check` lists them"


def _student_batch(classes: int, ipc: int) -> int:
    """As published: 10 with one image per class, 50 with ten, of ten classes; 100 of more classes."""
    published = 100 if classes > 10 else 10 if ipc == 1 else 50
    return max(2, min(published, classes * ipc // 2))


def _numbers(values: Sequence[float] | None) -> str:
    assert values
    return "[" + ", ".join(f"{value:.4f}" for value in values) + "]"


def _scalar(text: str) -> str:
    """The text as YAML, quoted where that is needed."""
    return yaml.safe_dump([text], default_flow_style=True, allow_unicode=True, width=10**6).strip()[1:-1]
