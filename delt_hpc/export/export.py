"""Export of a finished run: images, labels, teacher, training script and card in one new folder."""

import hashlib
import json
import shutil
from importlib import resources
from pathlib import Path

from delt_hpc.context import choose_device
from delt_hpc.data import randaugment as policy
from delt_hpc.distilled.dataset import PROTOCOL
from delt_hpc.distilled.manifest import CARD, CLASSES, MANIFEST
from delt_hpc.errors import UserError
from delt_hpc.export import card, images, labels, protocol
from delt_hpc.export.images import Format
from delt_hpc.export.run import FinishedRun, open_finished
from delt_hpc.models import networks, teacher
from delt_hpc.run.folder import writing_folder
from delt_hpc.run.progress import Reporter

SUMS = "SHA256SUMS"


def export(
    run: Path, target: Path, to: Format, reporter: Reporter, *, with_teacher: bool = True, views: int = 0
) -> None:
    """Write a finished run to a new folder, complete or not at all.

    Args:
        run: the run folder.
        target: the folder to make; it must not be there, or be empty.
        with_teacher: ship the teacher's weights.
        views: number of views of each image to store soft labels for.

    Raises:
        UserError: the run is unfinished or damaged, the target is in use, or a library is missing.
        Interrupted: a stop was requested; nothing is left.
    """
    images.require_library(to)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError("already exists", where=str(target), remedy="give another folder (--out), or delete this one")
    if target.resolve().is_relative_to(run.resolve()):
        raise UserError("is inside the run folder", where=str(target), remedy="give another folder (--out)")
    source = open_finished(run)
    if views:
        labels.require_support(source.config.evaluate)
    with writing_folder(target) as folder:
        _write(source, folder, to, reporter, with_teacher, views)


def _write(source: FinishedRun, folder: Path, to: Format, reporter: Reporter, with_teacher: bool, views: int) -> None:
    reporter.say(f"export: {len(source.table)} images as {to}")
    images.write(source, to, folder)
    for name in (MANIFEST, CLASSES):
        shutil.copyfile(source.run.distilled / name, folder / name)
    if with_teacher:
        shutil.copyfile(source.run.teacher / teacher.WEIGHTS, folder / protocol.TEACHER)
    if views:
        labels.write(source, views, folder, choose_device(source.config.machine), reporter)
    modules = _copy_modules(folder, randaugment=source.config.evaluate.randaugment)
    facts = protocol.describe(source, to, _sha256(folder / protocol.TEACHER) if with_teacher else None, views)
    (folder / PROTOCOL).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shards = sorted(path.name for path in folder.glob("*.tar"))
    (folder / CARD).write_text(card.render(source, to, facts, shards, modules), encoding="utf-8")
    listed = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = "".join(f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in listed)
    (folder / SUMS).write_text(sums, encoding="utf-8")


def _copy_modules(folder: Path, *, randaugment: bool) -> list[str]:
    """Copy the Python files of the training and return their names."""
    scripts = resources.files("delt_hpc.export") / "files"
    sources = {
        "train.py": (scripts / "train.py").read_text(encoding="utf-8"),
        "dataset.py": (scripts / "dataset.py").read_text(encoding="utf-8"),
        "model.py": Path(networks.__file__).read_text(encoding="utf-8"),
    }
    if randaugment:
        sources["randaugment.py"] = Path(policy.__file__).read_text(encoding="utf-8")
    for name, text in sources.items():
        (folder / name).write_text(text, encoding="utf-8")
    return list(sources)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
