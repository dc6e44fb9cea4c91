"""A trial of the evaluation: one training of one student. Does not import torch, because the launcher uses it."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from delt_hpc.config.network_name import in_file_names
from delt_hpc.config.schema import Arm, Evaluate, Images
from delt_hpc.errors import UserError, some
from delt_hpc.run.folder import RunFolder


@dataclass(frozen=True)
class Trial:
    """A student, a seed, and an arm: which images with which labels."""

    student: str
    seed: int
    arm: Arm

    @property
    def images(self) -> Images:
        return cast(Images, self.arm.split("-")[0])

    @property
    def soft(self) -> bool:
        return self.arm.endswith("soft")

    @property
    def id(self) -> str:
        """STUDENT-SEED-ARM, also the name of its folder; a `/` or `:` in the student's name becomes `-`."""
        return f"{in_file_names(self.student)}-{self.seed}-{self.arm}"

    def folder(self, run: RunFolder) -> Path:
        return run.evaluate / self.id


def trials(config: Evaluate) -> list[Trial]:
    """All trials of the configuration, in the order in which they run."""
    return [Trial(student, seed, arm) for student in config.students for arm in config.arms for seed in config.seeds]


def find(text: str, config: Evaluate) -> Trial:
    """The trial with that id.

    Raises:
        UserError: the configuration has no such trial.
    """
    known = {trial.id: trial for trial in trials(config)}
    if text not in known:
        close = difflib.get_close_matches(text, known, n=1)
        raise UserError(
            "the configuration has no such trial",
            where=f"--trial {text}",
            expected=f"STUDENT-SEED-ARM: {close[0] if close else some(list(known))}",
            remedy="choose one of evaluate.students, evaluate.seeds and evaluate.arms",
        )
    return known[text]
