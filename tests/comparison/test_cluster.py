"""Comparisons by the launcher: a run starts when the results that it shares are there."""

from collections.abc import Callable
from dataclasses import dataclass, field
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


@dataclass
class Queue:
    """The runs that were submitted. Those of the cluster `local` end at once, others when `work` is called."""

    names: list[str] = field(default_factory=list)
    waiting: list[tuple[str, str]] = field(default_factory=list)

    def submit(self, config: str, cluster: str, *, stages: str) -> None:
        self.names.append(Path(config).name)
        self.waiting.append((config, stages))
        if cluster == "local":
            self.work()
            raise typer.Exit(0)

    def work(self) -> None:
        for config, stages in self.waiting:
            context = pipeline.open_run(load_config(config), Path(config), Reporter(quiet=True))
            pipeline.run_stages(context, parse_stages(stages))
        self.waiting.clear()


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    made = Queue()
    monkeypatch.setattr(commands, "submit", made.submit)
    return made


def test_runs_wait_for_the_teacher_that_they_share(source: Path, queue: Queue, program: Program) -> None:
    call = ("compare", source, "--methods", "delt,cda", "--cluster", "some", "--run", "runs", "-q")
    answer = program(*call)
    assert answer.code == 0, answer.err
    assert queue.names == ["real"]
    assert "not finished: real, delt, cda; the same command again goes on" in answer.out
    queue.work()
    assert program(*call).code == 0
    assert queue.names == ["real", "delt", "cda"]
    queue.work()
    last = program(*call)
    assert queue.names == ["real", "delt", "cda"]
    assert "not finished" not in last.out
    assert last.out.splitlines()[-1] == "page: runs/compare/compare.html"
    assert "delt against random" in Path("runs/compare/compare.md").read_text(encoding="utf-8")


def test_on_this_machine_one_call_does_all(source: Path, queue: Queue, program: Program) -> None:
    answer = program("compare", source, "--methods", "delt", "--cluster", "local", "--run", "runs", "-q")
    assert (answer.code, queue.names) == (0, ["real", "delt"])
    assert "not finished" not in answer.out


def test_a_failed_task_ends_the_call(source: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def submit(*_: object, **__: object) -> None:
        raise typer.Exit(4)

    monkeypatch.setattr(commands, "submit", submit)
    assert program("compare", source, "--cluster", "local", "--run", "runs", "-q").code == 4
