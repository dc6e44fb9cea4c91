"""A finished run as the source of an export: everything that it provides, checked before anything is written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from delt_hpc.config.load import load_config
from delt_hpc.config.schema import Config, Evaluate
from delt_hpc.data.dataset import Dataset, open_dataset
from delt_hpc.distilled import manifest
from delt_hpc.errors import UserError, some
from delt_hpc.models import teacher
from delt_hpc.report import accuracy
from delt_hpc.report.content import ArmResult
from delt_hpc.run import checksums
from delt_hpc.run.folder import RESOLVED, STAMP, RunFolder, is_done, read_json


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
    _refuse_labels(config.evaluate)
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


def _refuse_labels(given: Evaluate) -> None:
    """The training script of an export labels online, with new draws in every epoch."""
    usual = Evaluate()
    found = [
        f"evaluate.{name}: {getattr(given, name)}"
        for name in ("labels", "epochs_kept")
        if getattr(given, name) != getattr(usual, name)
    ]
    if found:
        raise UserError(
            f"the training script of an export cannot follow this protocol: {some(found)}",
            expected="the defaults of these options",
        )
