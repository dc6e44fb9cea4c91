from pathlib import Path

import pytest

from delt_hpc import cli
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
def test_an_unconfigured_trial_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="has no such trial"):
        find(text, CONFIG)


def test_a_typo_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match="STUDENT-SEED-ARM: convnet3-1-random-hard"):
        find("convnet3-1-random_hard", CONFIG)


def test_the_command_refuses_it_before_creating_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["delt-hpc", "evaluate", "digits", "--trial", "convnet3-1-random-soft"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert (stop.value.code, list(tmp_path.iterdir())) == (2, [])
    message = "error: --trial convnet3-1-random-soft: the configuration has no such trial\n"
    assert capsys.readouterr().err.startswith(message)
