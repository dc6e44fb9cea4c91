"""Comparisons by the launcher: a run starts when the results that it shares are there."""

from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from helpers.program import Program

from delt_hpc import pipeline
from delt_hpc.config.load import dump_config, load_config
from delt_hpc.config.options import parse_stages
from delt_hpc.config.schema import Config
from delt_hpc.launch import commands
from delt_hpc.run.progress import Reporter


@pytest.fixture
def source(configure: Callable[..., Config], tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(dump_config(configure({"evaluate": {"epochs": 1, "seeds": [1]}})), encoding="utf-8")
    return path


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that were submitted; they end at once, as on the cluster `local`."""
    names: list[str] = []

    def submit(config: str, cluster: str, *, stages: str) -> None:
        names.append(Path(config).name)
        context = pipeline.open_run(load_config(config), Path(config), Reporter(quiet=True))
        pipeline.run_stages(context, parse_stages(stages))
        if cluster == "local":
            raise typer.Exit(0)

    monkeypatch.setattr(commands, "submit", submit)
    return names


def test_runs_wait_for_the_teacher_that_they_share(source: Path, submitted: list[str], program: Program) -> None:
    call = ("compare", source, "--methods", "delt,cda", "--cluster", "some", "--run", "runs", "-q")
    answer = program(*call)
    assert answer.code == 0, answer.err
    assert submitted == ["real"]
    assert "not finished: real, delt, cda; the same command again goes on" in answer.out
    assert program(*call).code == 0
    assert submitted == ["real", "delt", "cda"]
    last = program(*call)
    assert submitted == ["real", "delt", "cda"]
    assert "not finished" not in last.out
    assert last.out.splitlines()[-1] == "page: runs/compare/compare.html"
    assert "delt against random" in Path("runs/compare/compare.md").read_text(encoding="utf-8")


def test_on_this_machine_one_call_does_all(source: Path, submitted: list[str], program: Program) -> None:
    answer = program("compare", source, "--methods", "delt", "--cluster", "local", "--run", "runs", "-q")
    assert (answer.code, submitted) == (0, ["real", "delt"])
    assert "not finished" not in answer.out


def test_a_failed_task_ends_the_call(source: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def submit(*_: object, **__: object) -> None:
        raise typer.Exit(4)

    monkeypatch.setattr(commands, "submit", submit)
    assert program("compare", source, "--cluster", "local", "--run", "runs", "-q").code == 4
