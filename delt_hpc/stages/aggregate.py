"""Aggregate: the images of all batches as one checked ImageFolder in distilled/; all timing records as one table."""

import hashlib
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from delt_hpc.context import Context, StageFolder
from delt_hpc.distilled import card, manifest
from delt_hpc.errors import UserError
from delt_hpc.models import teacher
from delt_hpc.recovery.batch_folder import IMAGES
from delt_hpc.recovery.batches import plan
from delt_hpc.run import checksums, late, stop, timing
from delt_hpc.run.folder import is_done, read_json

_STRINGS = {"file": str, "source": str}
# Paths on this machine stay out of the published configuration.
_PRIVATE: Any = {"machine": True, "data": {"root"}, "teacher": {"checkpoint"}, "rank": {"csv"}}


def aggregate(context: Context) -> None:
    """Assemble the distilled set, or check the existing one; a broken one is set aside and made again.

    Raises:
        UserError: lists every batch and image that is missing or damaged.
        Interrupted: a stop was requested; the unfinished folder is deleted.
    """
    run = context.run
    stage = StageFolder(context, "aggregate", run.distilled)
    faults = manifest.faults(run.distilled) if run.distilled.exists() else ["not made yet"]
    if faults:
        table = _collect(context)  # before the broken set is moved: it may be impossible to make it again
        with stage.whole() as folder:
            _assemble(context, table, folder)
            if run.distilled.exists():  # not earlier: after `delt-hpc clean`, its good images are used again
                stage.set_aside(faults)
        _require(
            manifest.faults(run.distilled), run.distilled, "check the disk, delete the folder and run `aggregate` again"
        )
        stage.record("all", len(table))
        context.reporter.say(f"aggregate: {len(table)} images in {run.distilled}")
    timing.gather(run)


def _collect(context: Context) -> pd.DataFrame:
    """images.csv of all batches, in class order, with the `path` of each image."""
    run, config = context.run, context.config
    faults: list[str] = []
    parts: list[pd.DataFrame] = []
    batches = plan(len(context.dataset.classes), config.select.ipc, config.recover)
    late.all_done([run.recover / batch.id for batch in batches])
    with context.reporter.bar("aggregate", len(batches)) as bar:
        for batch in batches:
            stop.check()
            folder = run.recover / batch.id
            if not is_done(folder):
                faults.append(f"recover/{batch.id}: not finished (classes {batch.first}-{batch.last})")
                continue
            # The first damaged batch has waited long enough for all.
            changed = checksums.faults(folder) if faults else late.settled(folder, partial(checksums.faults, folder))
            if changed:
                faults += [f"recover/{batch.id}/{fault}" for fault in changed]
                continue
            part = pd.read_csv(folder / IMAGES, dtype=_STRINGS, keep_default_na=False)
            part["path"] = [str(folder / checksums.located(folder, file)) for file in part["file"]]
            for path, file in zip(part["path"], part["file"], strict=True):
                fault = manifest.image_fault(Path(path), context.dataset.spec.size)
                if fault:
                    faults.append(f"recover/{batch.id}/{file}: {fault}")
            parts.append(part)
            bar.advance()
    _require(faults, run.recover, "run `recover` again: it makes missing and damaged batches")
    return pd.concat(parts, ignore_index=True).sort_values(["class_index", "number"], ignore_index=True)


def _assemble(context: Context, table: pd.DataFrame, folder: Path) -> None:
    folders = context.dataset.classes.folders
    table["class"] = [folders[i] for i in table["class_index"]]
    files, digests = [], []
    for path, name, number in zip(table["path"], table["class"], table["number"], strict=True):
        stop.check()
        content = Path(path).read_bytes()
        file = f"{name}/{number:05d}{Path(path).suffix}"
        (folder / name).mkdir(exist_ok=True)
        (folder / file).write_bytes(content)
        files.append(file)
        digests.append(hashlib.sha256(content).hexdigest())
    table["file"], table["sha256"] = files, digests
    table.to_csv(folder / manifest.MANIFEST, index=False, columns=list(manifest.COLUMNS))
    shutil.copyfile(context.run.classes, folder / manifest.CLASSES)
    checksums.require(context.run.teacher, "squeeze", [teacher.CARD])
    teacher_card = read_json(context.run.teacher / teacher.CARD)
    (folder / manifest.CARD).write_text(card.render(context.config, context.dataset, teacher_card), encoding="utf-8")
    beside = [folder / name for name in (manifest.MANIFEST, manifest.CLASSES, manifest.CARD)]
    facts = {
        "spec": context.dataset.spec.to_json(),
        "ipc": context.config.select.ipc,
        "config": context.config.model_dump(mode="json", exclude=_PRIVATE),
        checksums.FILES: checksums.listing(folder, beside),
    }
    checksums.write_sealed(folder / manifest.FACTS, facts)


def _require(faults: list[str], folder: Path, remedy: str) -> None:
    if faults:
        raise UserError(
            f"{len(faults)} item(s) missing or damaged:\n    " + "\n    ".join(faults), where=str(folder), remedy=remedy
        )
