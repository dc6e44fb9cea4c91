"""A finished run as the source of an export: everything that it provides, checked before anything is written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from delt_hpc.config.load import load_config
from delt_hpc.config.schema import Config, Evaluate, is_free
from delt_hpc.data.dataset import Dataset, open_dataset
from delt_hpc.distilled import manifest
from delt_hpc.errors import UserError, some
from delt_hpc.models import teacher
from delt_hpc.report import accuracy
from delt_hpc.report.content import ArmResult
from delt_hpc.run import checksums
from delt_hpc.run.folder import RESOLVED, STAMP, RunFolder, is_done, read_json

# Options of `evaluate` that the training script of an export follows (protocol.json has them), and those that change
# nothing in it. It can only follow the defaults of all others.
FOLLOWED = (
    *("epochs", "batch_size", "lr", "lr_schedule", "weight_decay", "mix", "temperature", "randaugment", "crop_scale"),
    *("soft_loss", "ce_weight", "teacher_statistics", "shuffle_patches", "mirror", "precision"),
)
WITHOUT_EFFECT = (
    *("ema_decay", "validate_every"),  # of figures that it does not give
    *("label_format", "label_top_k"),  # of stored labels, which it cannot follow
)


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """What an export is made of.

    Attributes:
        table: manifest.csv, a row an image.
        teacher: the content of teacher.json.
        results: accuracy of every student and arm.
        precision: autocast type of the evaluation.
    """

    config: Config
    run: RunFolder
    dataset: Dataset
    table: pd.DataFrame
    teacher: dict[str, Any]
    results: tuple[ArmResult, ...]
    precision: str

    def image(self, file: str) -> bytes:
        """The content of an image, by its path in the manifest."""
        return (self.run.distilled / file).read_bytes()


def open_finished(folder: Path) -> FinishedRun:
    """Open a run and check all files that an export reads.

    Raises:
        UserError: it is not a run folder, a stage is not finished, or a file is damaged.
    """
    run = RunFolder(folder)
    if not run.config.is_file():
        raise UserError("is not a run folder", where=str(folder), expected="a folder with config.yaml, made by a run")
    config = load_config(str(folder))
    _refuse_protocol(folder, config.evaluate)
    for made, stage in ((run.teacher, "squeeze"), (run.distilled, "aggregate")):
        if not is_done(made):
            raise UserError("is missing or not finished", where=str(made), remedy=f"run the stage `{stage}` first")
    manifest.require(run.distilled)
    checksums.require(run.teacher, "squeeze", (teacher.CARD, teacher.WEIGHTS))
    trainings = accuracy.trainings(run, config)
    missing = accuracy.missing(trainings, config)
    if missing:
        raise UserError(missing.what, where=str(run.evaluate), remedy="run the stage `evaluate` first")
    finished = accuracy.finished(run)
    for trained in finished:
        checksums.require(trained, "evaluate")
    stamp = read_json(finished[0] / STAMP)
    return FinishedRun(
        config=config,
        run=run,
        dataset=open_dataset(config, run),
        table=manifest.read_manifest(run.distilled),
        teacher=read_json(run.teacher / teacher.CARD),
        results=accuracy.by_arm(trainings),
        precision=stamp[RESOLVED]["evaluate.precision"],
    )


def _refuse_protocol(folder: Path, given: Evaluate) -> None:
    """Refuse an option that has not its default and that the training script of an export does not follow."""
    known = {*FOLLOWED, *WITHOUT_EFFECT}
    refused = [name for name, field in Evaluate.model_fields.items() if name not in known and not is_free(field)]
    usual = Evaluate()
    found = [
        f"evaluate.{name}: {getattr(given, name)}" for name in refused if getattr(given, name) != getattr(usual, name)
    ]
    if found:
        raise UserError(
            f"the training script of an export cannot follow this protocol: {some(found)}",
            where=str(folder),
            expected=", ".join(f"{name}: {getattr(usual, name)}" for name in refused),
            remedy="make another run with such values; `distilled/` of this run is an ImageFolder, too",
        )
