import subprocess
import sys
from pathlib import Path

import pytest

from delt_hpc.config.schema import Evaluate
from delt_hpc.errors import UserError
from delt_hpc.run.folder import RunFolder
from delt_hpc.training.trial import Trial, find, trials

CONFIG = Evaluate(students=["resnet18-small-stem", "convnet3"], seeds=[1, 22], arms=["distilled-soft", "random-hard"])


def test_every_student_arm_and_seed_is_a_trial() -> None:
    found = [trial.id for trial in trials(CONFIG)]
    assert len(set(found)) == 8
    assert found[:3] == [
        "resnet18-small-stem-1-distilled-soft",
        "resnet18-small-stem-22-distilled-soft",
        "resnet18-small-stem-1-random-hard",
    ]


@pytest.mark.parametrize("trial", trials(CONFIG), ids=lambda trial: trial.id)
def test_an_id_is_found_again_and_names_the_folder(trial: Trial) -> None:
    assert find(trial.id, CONFIG) == trial
    assert trial.folder(RunFolder(Path("run"))).name == trial.id


@pytest.mark.parametrize("text", ["convnet3-3-random-hard", "convnet3-1", "", "convnet3-1-random-hard "])
def test_a_trial_that_nobody_asked_for_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="asks for no such trial"):
        find(text, CONFIG)


def test_a_slip_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match="STUDENT-SEED-ARM: convnet3-1-random-hard"):
        find("convnet3-1-random_hard", CONFIG)


def test_the_command_refuses_it_before_anything_is_made(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "delt_hpc.cli", "evaluate", "digits", "--trial", "convnet3-1-random-soft"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert done.stderr.startswith("error: --trial convnet3-1-random-soft: the configuration asks for no such trial\n")
