"""Distilled sets of other tools: an ImageFolder, or tensors, as the distilled set of a run.

All images are kept in 8 bits, as those of this package are: values of tensors outside 0..1 are clipped, and how many is
told. Soft labels that come with tensors only say the class: every row is trained with labels of the same teacher.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from delt_hpc.context import Context, StageFolder
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.data.index import EXTENSIONS, ClassMap
from delt_hpc.data.transforms import quantise
from delt_hpc.distilled import manifest
from delt_hpc.errors import UserError, some
from delt_hpc.run import checksums
from delt_hpc.run.folder import is_done
from delt_hpc.version import VERSION

_TENSORS = (".pt", ".pth")
_EXPECTED = (
    "class folders with images, or a .pt file: (images, labels), {images: ..., labels: ...}, or images*.pt beside"
    " labels*.pt; images [N, 3, S, S], labels [N] or [N, classes]"
)


def describe(folder: Path) -> str:
    """A line that changes with the content of the set.

    Raises:
        UserError: it cannot be read.
    """
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    total = hashlib.blake2b(digest_size=checksums.HASH_BYTES)
    try:
        for path in files:
            name = path.relative_to(folder).as_posix() if path != folder else path.name
            total.update(f"{name}\0{checksums.of_file(path)}\0".encode())
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(folder)) from None
    return f"{folder.name}, {len(files)} files, BLAKE2b {total.hexdigest()}"


def place(context: Context, folder: Path) -> None:
    """Write the set to distilled/ of the run, unless it is there.

    Raises:
        UserError: it has other classes, sizes or numbers of images than the run.
    """
    run, classes, spec = context.run, context.dataset.classes, context.dataset.spec
    if is_done(run.distilled) and not manifest.faults(run.distilled):
        return
    stage = StageFolder(context, "aggregate", run.distilled, stamped=False)
    if run.distilled.exists():
        stage.set_aside(["damaged or unfinished"])
    rows, note = _tensors(folder, classes, spec) if _is_tensors(folder) else _images(folder, classes, spec)
    _check_counts(folder, classes, [row[0] for row in rows], context.config.select.ipc)
    with stage.whole() as target:
        table = _write(target, rows, classes)
        table.to_csv(target / manifest.MANIFEST, index=False, columns=list(manifest.COLUMNS))
        (target / manifest.CLASSES).write_bytes(run.classes.read_bytes())
        card = f"# {folder.name}\n\nA distilled set of another tool, read by delt-hpc {VERSION}.\n{note}\n"
        (target / manifest.CARD).write_text(card, encoding="utf-8")
        beside = [target / name for name in (manifest.MANIFEST, manifest.CLASSES, manifest.CARD)]
        facts = {"spec": spec.to_json(), "ipc": context.config.select.ipc, "external": describe(folder)}
        checksums.write_sealed(target / manifest.FACTS, facts | {checksums.FILES: checksums.listing(target, beside)})
    context.reporter.say(f"{folder}: {len(rows)} images. {note}")


Content = tuple[int, bytes, str]  # class index, file content, suffix


def _is_tensors(folder: Path) -> bool:
    return folder.is_file() or (folder.is_dir() and any(path.suffix in _TENSORS for path in folder.iterdir()))


def _images(folder: Path, classes: ClassMap, spec: DatasetSpec) -> tuple[list[Content], str]:
    """The files of class folders, in class order, named by class folder, class name or class index."""
    rows: list[Content] = []
    present = {path.name: path for path in folder.iterdir() if path.is_dir()}
    for index, names in enumerate(zip(classes.folders, classes.names, strict=True)):
        numbers = [name for name in present if name.isdecimal() and int(name) == index]
        found = next((present[name] for name in (*names, *numbers) if name in present), None)
        files = sorted(path for path in found.rglob("*") if path.suffix.lower() in EXTENSIONS) if found else []
        faults = [f"{path}: {fault}" for path in files if (fault := manifest.image_fault(path, spec.size))]
        if faults:
            raise UserError(f"{len(faults)} unusable image(s):\n    " + some(faults), where=str(folder))
        rows += [(index, path.read_bytes(), path.suffix.lower()) for path in files]
    return rows, "Image files, as they are."


def _tensors(folder: Path, classes: ClassMap, spec: DatasetSpec) -> tuple[list[Content], str]:
    images, labels = _read(folder)
    if labels.ndim == 2 and labels.shape[1] == len(classes):
        labels, told = labels.argmax(1), "Its soft labels only say the class."
    else:
        told = "Its labels are class indices."
    size = spec.size
    fits = images.ndim == 4 and images.shape[1] in (1, 3) and tuple(images.shape[2:]) == (size, size)
    if not fits or labels.shape != images.shape[:1] or not (labels.numel() and labels.min() >= 0):
        raise UserError(
            f"has images {list(images.shape)} and labels {list(labels.shape)}",
            where=str(folder),
            expected=f"images [N, 3, {size}, {size}]; labels [N] from 0 to {len(classes) - 1}, or [N, {len(classes)}]",
        )
    if int(labels.max()) >= len(classes):
        raise UserError(f"has the label {int(labels.max())}", where=str(folder), expected=f"0 to {len(classes) - 1}")
    pixels, how = _pixels(images.expand(-1, 3, -1, -1), spec)
    order = np.argsort(labels.numpy(), kind="stable").tolist()
    return [(int(labels[i]), _png(pixels[i].numpy()), ".png") for i in order], f"{how} {told}"


def _read(folder: Path) -> tuple[Tensor, Tensor]:
    """Images and labels."""
    if folder.is_file():
        content = _load(folder)
    else:
        files = sorted(path for path in folder.iterdir() if path.suffix in _TENSORS)
        parts = [[path for path in files if path.name.startswith(start)] for start in ("images", "labels")]
        if len(files) == 1:
            content = _load(files[0])
        elif all(len(part) == 1 for part in parts):
            content = [_load(part[0]) for part in parts]
        else:
            content = None
    if isinstance(content, Mapping):
        content = [content.get("images"), content.get("labels")]
    if not isinstance(content, Sequence) or len(content) != 2 or not all(isinstance(one, Tensor) for one in content):
        raise UserError("is not a distilled set", where=str(folder), expected=_EXPECTED)
    images, labels = (one.detach().cpu() for one in content)
    if not (images.float().isfinite().all() and labels.float().isfinite().all()):
        raise UserError("contains NaN or infinite values", where=str(folder))
    return images, labels


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"cannot be loaded: {error}", where=str(path), expected=_EXPECTED) from None


def _pixels(images: Tensor, spec: DatasetSpec) -> tuple[Tensor, str]:
    """uint8 [N, S, S, 3], and what the values were taken for: bytes, 0..1, or normalised if some lie outside 0..1."""
    if images.dtype == torch.uint8:
        return images.permute(0, 2, 3, 1).contiguous(), "Tensors of bytes."
    values = images.float()
    if values.min() >= 0 and values.max() <= 1:
        return (values * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous(), "Tensors of values in 0..1."
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (spec.mean, spec.std))
    raw = values * std + mean
    clipped = ((raw < -0.5 / 255) | (raw > 1 + 0.5 / 255)).float().mean().item()
    how = f"Tensors normalised by the data set's mean and std; {clipped:.1%} of the values were clipped to 0..1."
    return quantise(values, spec), how


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def _check_counts(folder: Path, classes: ClassMap, labels: Sequence[int], ipc: int) -> None:
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=len(classes)).tolist()
    wrong = [f"{name} has {count}" for name, count in zip(classes.folders, counts, strict=True) if count != ipc]
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(classes)} classes do not have {ipc} images: {some(wrong)}",
            where=str(folder),
            remedy="compare with the same number of images (--set select.ipc=N); class folders are named as those of"
            " the data set, or by class index",
        )


def _write(target: Path, rows: Sequence[Content], classes: ClassMap) -> pd.DataFrame:
    """Write the images; returns the rows of the manifest. Iterations and losses are not known and stand as 0."""
    table = pd.DataFrame(_numbered(rows, classes), columns=list(manifest.COLUMNS))
    for file, (_, content, _) in zip(table["file"], rows, strict=True):
        (target / file).parent.mkdir(exist_ok=True)
        (target / file).write_bytes(content)
    return table


def _numbered(rows: Sequence[Content], classes: ClassMap) -> Iterator[tuple[object, ...]]:
    number, before = 0, -1
    for class_index, content, suffix in rows:
        number = number + 1 if class_index == before else 0
        before, name = class_index, classes.folders[class_index]
        digest = hashlib.sha256(content).hexdigest()
        yield (f"{name}/{number:05d}{suffix}", digest, class_index, name, number, "", 0, 0, 0.0, 0.0)
