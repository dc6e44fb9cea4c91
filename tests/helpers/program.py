"""The command line, called in this process."""

import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from delt_hpc import cli


class Answer(NamedTuple):
    code: int
    out: str
    err: str


class Program:
    """`delt-hpc` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str | Path) -> Answer:
        self._monkeypatch.setattr(sys, "argv", ["delt-hpc", *map(str, arguments)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        code = stop.value.code
        assert isinstance(code, int)
        return Answer(code, *self._capsys.readouterr())


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Program:
    """The command line, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    return Program(monkeypatch, capsys)
