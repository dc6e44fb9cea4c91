"""What jobs read is fetched before they are submitted. No network is used."""

from pathlib import Path

import pytest
from helpers.program import Program

from delt_hpc.data.catalog import sources
from delt_hpc.launch import downloads
from delt_hpc.launch.request import open_run
from delt_hpc.run.folder import write_text


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections go to a closed port, and no package of a data set is installed."""
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sources, "DEBIAN", Path("/nonexistent"))


def test_a_data_set_is_fetched_once(program: Program, tmp_path: Path) -> None:
    opened = open_run("digits", None, None, None)
    assert [finding.level for finding in downloads.examine(opened)] == ["warning"]
    assert program("fetch", "digits") == (0, "data set digits is in data/digits\n", "")
    assert len(list((tmp_path / "data" / "digits" / "train").iterdir())) == 10
    assert [finding.level for finding in downloads.examine(opened)] == ["OK"]
    assert not downloads.fetch(opened)


@pytest.mark.usefixtures("no_network")
def test_nothing_is_submitted_if_the_data_set_cannot_be_fetched(program: Program, tmp_path: Path) -> None:
    write_text(tmp_path / "site.yaml", "max_array_size: 100\n")
    answer = program("submit", "fashion-mnist", "--cluster", tmp_path / "site.yaml")
    assert answer.code == 2
    assert "its download failed" in answer.err and "put the four idx files into data/fashion-mnist" in answer.err
    assert not (tmp_path / "runs" / "fashion-mnist" / "launch" / "jobs").exists()


def test_a_data_set_that_this_machine_does_not_see_is_left_alone(program: Program, tmp_path: Path) -> None:
    elsewhere = open_run("digits", None, [f"data.root={tmp_path}/on-nodes-only"], None)
    downloads.fetch(elsewhere)
    assert not (tmp_path / "on-nodes-only").exists()


@pytest.mark.usefixtures("no_network")
def test_the_file_of_the_teacher_s_weights_is_named(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
    overrides = [f"data.root={tmp_path}/images"]
    opened = open_run("imagenet-1k-resnet18-ipc10", None, overrides, None)
    path = opened.run.weights / "resnet18-f37072fd.pth"
    data, weights = downloads.examine(opened)
    assert (data.level, weights.level) == ("OK", "warning")
    assert str(path) in weights.text
    answer = program("fetch", "imagenet-1k-resnet18-ipc10", "--set", *overrides)
    assert answer.code == 2
    assert f"{path}" in answer.err and "put the file here" in answer.err
    path.touch()
    assert [finding.level for finding in downloads.examine(opened)] == ["OK", "OK"]
