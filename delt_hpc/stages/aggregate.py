"""Aggregate: one ImageFolder distilled/ of all batches, checked; and one table of all timing records."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from delt_hpc.context import Context, StageFolder
from delt_hpc.distilled import card, manifest
from delt_hpc.errors import UserError
from delt_hpc.models import teacher
from delt_hpc.recovery.batches import plan
from delt_hpc.run import stop, timing
from delt_hpc.run.folder import is_done, read_json, write_json

_TEXTS = {"file": str, "source": str}
# Where files lay on the machine that made the set is nobody else's business.
_PLACES: Any = {"machine": True, "data": {"root"}, "teacher": {"checkpoint"}, "rank": {"csv"}}


def aggregate(context: Context) -> None:
    """Assemble the distilled set, or check the one that is there.

    Raises:
        UserError: naming every batch and image that is missing or damaged.
        Interrupted: a stop was requested; no part of the set is left behind.
    """
    run = context.run
    stage = StageFolder(context, "aggregate", run.distilled)
    if not stage.done:
        table = _collect(context)
        with stage.whole() as folder:
            _assemble(context, table, folder)
        stage.record("all", len(table))
        context.reporter.say(f"aggregate: {len(table)} images in {run.distilled}")
    _require(manifest.problems(run.distilled), run.distilled, "delete the folder and run `aggregate` again")
    timing.gather(run)


def _collect(context: Context) -> pd.DataFrame:
    """images.csv of all batches, in class order; `path` says where each image lies."""
    run, config = context.run, context.config
    faults: list[str] = []
    parts: list[pd.DataFrame] = []
    batches = plan(len(context.dataset.classes), config.select.ipc, config.recover)
    with context.reporter.bar("aggregate", len(batches)) as bar:
        for batch in batches:
            stop.check()
            folder = run.recover / batch.id
            if not is_done(folder):
                faults.append(f"recover/{batch.id}: not finished (classes {batch.first}-{batch.last})")
                continue
            part = pd.read_csv(folder / "images.csv", dtype=_TEXTS, keep_default_na=False)
            part["path"] = [str(folder / file) for file in part["file"]]
            for path, file in zip(part["path"], part["file"], strict=True):
                fault = manifest.image_fault(Path(path), context.dataset.spec.size)
                if fault:
                    faults.append(f"recover/{batch.id}/{file}: {fault}")
            parts.append(part)
            bar.advance()
    _require(faults, run.recover, "run `recover` again; of a damaged batch delete its folder first")
    return pd.concat(parts, ignore_index=True).sort_values(["class_index", "number"], ignore_index=True)


def _assemble(context: Context, table: pd.DataFrame, folder: Path) -> None:
    folders = context.dataset.classes.folders
    table["class"] = [folders[i] for i in table["class_index"]]
    files, digests = [], []
    for path, name, number in zip(table["path"], table["class"], table["number"], strict=True):
        stop.check()  # `whole` then leaves nothing behind
        content = Path(path).read_bytes()
        file = f"{name}/{number:05d}{Path(path).suffix}"
        (folder / name).mkdir(exist_ok=True)
        (folder / file).write_bytes(content)
        files.append(file)
        digests.append(hashlib.sha256(content).hexdigest())
    table["file"], table["sha256"] = files, digests
    table.to_csv(folder / manifest.MANIFEST, index=False, columns=list(manifest.COLUMNS))
    shutil.copyfile(context.run.classes, folder / manifest.CLASSES)
    facts = {
        "spec": context.dataset.spec.to_json(),
        "ipc": context.config.select.ipc,
        "config": context.config.model_dump(mode="json", exclude=_PLACES),
    }
    write_json(folder / manifest.FACTS, facts)
    about = read_json(context.run.teacher / teacher.CARD)
    (folder / manifest.CARD).write_text(card.render(context.config, context.dataset, about), encoding="utf-8")


def _require(faults: list[str], folder: Path, remedy: str) -> None:
    if faults:
        raise UserError(
            f"{len(faults)} missing or damaged:\n    " + "\n    ".join(faults), where=str(folder), remedy=remedy
        )
