from pathlib import Path
from typing import Any

import pytest

from delt_hpc.launch import environment

WHOLE: dict[str, Any] = {
    "torch": {"version": "2.14", "gpus": 1},
    "triton": {"version": "3.8"},
    "DALI": {"version": "2.4", "gpus": 1},
    "submitit": {"version": "1.5"},
    "compilers": {"version": "gcc, g++"},
    "caches": {"version": "at their own places"},
}
BROKEN = {"error": "ImportError: no"}


def levels(*, gpus: bool, **changes: Any) -> list[str]:
    return [finding.level for finding in environment.judge(WHOLE | changes, gpus=gpus) if finding.level != "OK"]


@pytest.mark.parametrize(
    ("name", "found", "with_gpu", "without"),
    [
        ("torch", BROKEN, "error", "error"),
        ("torch", {"version": "2.14", "gpus": 0}, "error", None),
        ("DALI", {"version": "2.4", "gpus": 0}, "error", None),
        ("DALI", BROKEN, "error", "warning"),
        ("triton", BROKEN, "error", "warning"),
        ("compilers", BROKEN, "error", "warning"),
        ("submitit", BROKEN, "warning", "warning"),
    ],
)
def test_what_is_wrong(name: str, found: dict[str, Any], with_gpu: str | None, without: str | None) -> None:
    assert levels(gpus=True, **{name: found}) == [with_gpu]
    assert levels(gpus=False, **{name: found}) == ([without] if without else [])


def test_nothing_is_wrong() -> None:
    assert levels(gpus=True) == levels(gpus=False) == []


def test_this_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    seen = environment.probe()
    assert seen.keys() == WHOLE.keys()
    assert {name for name, found in seen.items() if "error" in found} <= {"DALI", "submitit", "compilers"}
    assert str(tmp_path / "triton") in seen["caches"]["version"]


def test_a_compiler_that_fails_and_none_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "false")
    monkeypatch.setattr(environment, "_COMPILERS", environment._COMPILERS[:1])
    assert "false: exit code 1" in environment.probe()["compilers"]["error"]
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "none of gcc, clang is on PATH" in environment.probe()["compilers"]["error"]


def test_a_cache_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert "NotADirectoryError" in environment.probe()["caches"]["error"]
