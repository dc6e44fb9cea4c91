import errno
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from delt_hpc.config.load import load_config
from delt_hpc.errors import UserError
from delt_hpc.run.tracker import Trackers, check

MADE: list["Recorder"] = []


class Recorder:
    def __init__(self, **given: Any) -> None:
        self.given, self.rows, self.closed = given, list[tuple[int, Mapping[str, float]]](), False
        MADE.append(self)

    def log(self, values: Mapping[str, float], step: int) -> None:
        if values.get("loss") == -1.0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.rows.append((step, values))

    def close(self) -> None:
        if self.rows and self.rows[-1][0] == 99:
            raise RuntimeError("lost")
        self.closed = True


@pytest.fixture
def trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Trackers, list[str]]:
    said: list[str] = []
    MADE.clear()
    module = type("module", (), {"make": Recorder, "broken": 3})
    monkeypatch.setitem(sys.modules, "own_tracker", module)
    return Trackers("own_tracker:make", tmp_path, {"seed": 0}, said.append), said


def test_a_unit_s_tracker_is_made_with_its_first_values(trackers: tuple[Trackers, list[str]], tmp_path: Path) -> None:
    unit = trackers[0].start("evaluate", "a-1")
    assert MADE == []
    unit.log({"loss": 2.0}, 7)
    unit.log({"loss": 1.0}, 8)
    unit.close()
    (made,) = MADE
    assert made.given == {
        "folder": tmp_path / "evaluate" / "a-1", "stage": "evaluate", "unit": "a-1", "first_step": 7,
        "config": {"seed": 0},
    }  # fmt: skip
    assert made.rows == [(7, {"loss": 2.0}), (8, {"loss": 1.0})]
    assert made.closed


def test_a_failed_tracker_is_switched_off_with_one_warning(trackers: tuple[Trackers, list[str]]) -> None:
    first, second = trackers[0].start("recover", "a"), trackers[0].start("recover", "b")
    first.log({"loss": -1.0}, 0)
    first.log({"loss": 1.0}, 1)
    second.log({"loss": 1.0}, 0)
    first.close()
    second.close()
    (warning,) = trackers[1]
    assert "`own_tracker:make` failed and is switched off" in warning
    assert "No space left on device" in warning
    assert [made.rows for made in MADE] == [[]]


def test_a_tracker_that_fails_when_it_closes_is_a_warning(trackers: tuple[Trackers, list[str]]) -> None:
    unit = trackers[0].start("recover", "a")
    unit.log({"loss": 1.0}, 99)
    unit.close()
    assert "lost" in trackers[1][0]


def test_without_a_tracker_nothing_happens(tmp_path: Path) -> None:
    unit = Trackers("none", tmp_path / "tracking", {}, pytest.fail).start("squeeze", "teacher")
    unit.log({"loss": 1.0}, 0)
    unit.close()
    assert not (tmp_path / "tracking").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:make", r"`no_such_module` cannot be imported"),
        ("own_tracker:missing", r"`own_tracker` has no function `missing`"),
        ("own_tracker:broken", r"`own_tracker` has no function `broken`"),
    ],
)
def test_functions_are_found_before_work_starts(trackers: object, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(name)
    check("own_tracker:make")
    check("none")


def test_names_of_trackers_are_checked() -> None:
    with pytest.raises(UserError, match=r"machine\.tracker.*none, tensorboard, or package\.module:function"):
        load_config("digits", ["machine.tracker=wandb"])
    assert load_config("digits", ["machine.tracker=a.b:c"]).machine.tracker == "a.b:c"


def test_tensorboard_that_is_not_installed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'delt-hpc\[tensorboard\]'"):
        check("tensorboard")


def test_the_example_of_the_documentation_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tracking.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "tracker_of_the_page.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    name = "tracker_of_the_page:json_lines"
    check(name)
    unit = Trackers(name, tmp_path, {}, pytest.fail).start("squeeze", "teacher")
    unit.log({"lr": 0.5}, 3)
    unit.close()
    assert (tmp_path / "squeeze" / "teacher" / "from-3.jsonl").read_text() == '{"step": 3, "lr": 0.5}\n'
